package probe

import (
	"errors"
	"fmt"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// tbsNoTPM is TBS_E_TPM_NOT_FOUND: no chip, or one that the firmware hides.
const tbsNoTPM = 0x8028400F

// windowsTPM asks TPM Base Services. Any other error than "none" says nothing
// about the chip: the service may be stopped or disabled.
func windowsTPM(w *Windows, out *posturev1.Tpm) error {
	out.Reading.Source = "Tbsi_GetDeviceInfo"
	if w.SecurityChip == nil {
		return errors.New("TPM Base Services are not readable on this machine")
	}
	answer, err := w.SecurityChip.Device()
	switch {
	case err != nil:
		return fmt.Errorf("TPM Base Services: %w", err)
	case answer.Result == tbsNoTPM:
		out.Present = no
		return nil
	case answer.Result != 0:
		return fmt.Errorf("TPM Base Services: error 0x%08X", answer.Result)
	}
	out.Present = yes
	switch answer.Version {
	case 1:
		out.Version = "1.2"
	case 2:
		out.Version = "2.0"
	default:
		return fmt.Errorf("version of the TPM: %d is not known", answer.Version)
	}
	return nil
}
