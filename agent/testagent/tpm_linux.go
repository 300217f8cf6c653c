package main

import (
	"os"
	"path/filepath"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"pfoertner/agent/identity"
	"pfoertner/internal/attest/chip"
)

// keys are in the software TPM behind a socket, or in a file when none is named.
func (o options) keys() identity.Keys {
	if o.tpm == "" {
		return identity.Software{}
	}
	return identity.TPM{Chip: chip.New(
		func() (transport.TPMCloser, error) { return linuxudstpm.Open(o.tpm) }, o.eventLog)}
}

// eventLog is what the machine of the tree says it measured; an error: it says
// nothing.
func (o options) eventLog() ([]byte, error) { return os.ReadFile(filepath.Join(o.tree, "eventlog")) }
