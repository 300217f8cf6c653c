package chip

import (
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/windowstpm"
	"github.com/google/go-tpm/tpmutil/tbs"

	"pfoertner/internal/attest/bootlog"
)

// Open returns this machine's TPM 2.0, through TPM Base Services. Whether there
// is one shows at the first use. Calls into tbs.dll: Tbsi_GetDeviceInfo,
// Tbsi_Context_Create (version 2, includeTpm20), Tbsip_Submit_Command
// (priority normal), Tbsip_Context_Close; for the log Tbsi_Get_TCG_Log.
func Open() *Chip {
	return New(func() (transport.TPMCloser, error) {
		tpm, err := windowstpm.Open()
		if err != nil {
			return nil, err
		}
		return tpm, nil
	}, readEventLog)
}

// readEventLog reads the Windows Boot Configuration Log, which is an event log
// in the TCG's format.
func readEventLog() ([]byte, error) {
	context, err := tbs.CreateContext(tbs.TPMVersion20, tbs.IncludeTPM20)
	if err != nil {
		return nil, err
	}
	defer context.Close()
	log := make([]byte, bootlog.MaxBytes)
	n, err := context.GetTCGLog(log)
	if err != nil {
		return nil, err
	}
	return log[:n], nil
}
