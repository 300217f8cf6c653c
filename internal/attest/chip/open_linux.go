package chip

import (
	"io/fs"
	"os"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// Open returns this machine's TPM 2.0, through the kernel's resource manager;
// never /dev/tpm0, which only one program can have open. Whether there is one
// shows at the first use.
func Open() *Chip {
	return New(
		func() (transport.TPMCloser, error) { return linuxtpm.Open("/dev/tpmrm0") },
		func() ([]byte, error) { return ReadEventLog(os.DirFS("/")) },
	)
}

// ReadEventLog reads the event log of a Linux machine, whose files begin at
// root: securityfs gives it out to root only.
func ReadEventLog(root fs.FS) ([]byte, error) {
	return fs.ReadFile(root, "sys/kernel/security/tpm0/binary_bios_measurements")
}
