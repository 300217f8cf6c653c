package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	firmwareDir = "sys/firmware"
	efivarsDir  = firmwareDir + "/efi/efivars"
	// efiGlobalGUID is the vendor of the variables of UEFI 2.10, 3.3.
	efiGlobalGUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
)

// secureBootProbe reads whether the firmware starts signed code only.
func secureBootProbe() Probe {
	return Probe{Section: "secure_boot", Collect: collectSecureBoot}
}

func collectSecureBoot(_ context.Context, h Host, ev *posturev1.Evidence) error {
	out := &posturev1.SecureBoot{Reading: &posturev1.Reading{Source: "/" + efivarsDir}}
	ev.SecureBoot = out
	if h.Windows != nil {
		return windowsSecureBoot(h.Windows, out)
	}
	if h.Files == nil {
		return errors.New("this machine's files are not readable")
	}
	if err := efivarsReadable(h.Files); err != nil {
		return err
	}
	var errEnabled, errSetup error
	out.Enabled, errEnabled = efiSwitch(h.Files, "SecureBoot")
	out.SetupMode, errSetup = efiSwitch(h.Files, "SetupMode")
	return errors.Join(errEnabled, errSetup)
}

// efivarsReadable tells a machine without UEFI, to which Secure Boot does not
// apply, from one whose variables are hidden from us, as in a container.
func efivarsReadable(files fs.FS) error {
	firmware, err := fs.ReadDir(files, firmwareDir)
	if err != nil {
		return err
	}
	if len(firmware) == 0 {
		return fmt.Errorf("/%s is empty: it is hidden from this process", firmwareDir)
	}
	if _, err := fs.Stat(files, firmwareDir+"/efi"); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("started by a legacy BIOS, not by UEFI: %w", ErrNotApplicable)
	}
	variables, err := fs.ReadDir(files, efivarsDir)
	if err != nil {
		return err
	}
	if len(variables) == 0 {
		return fmt.Errorf("/%s is empty: efivarfs is not mounted", efivarsDir)
	}
	return nil
}

// efiSwitch reads a variable that is on or off. Firmware that knows UEFI but
// not the variable does not have what it switches.
func efiSwitch(files fs.FS, name string) (posturev1.Ternary, error) {
	content, err := fs.ReadFile(files, efivarsDir+"/"+name+"-"+efiGlobalGUID)
	if errors.Is(err, fs.ErrNotExist) {
		return posturev1.Ternary_TERNARY_NO, nil
	}
	if err != nil {
		return posturev1.Ternary_TERNARY_UNSPECIFIED, err
	}
	value, err := parseEFISwitch(content)
	if err != nil {
		return posturev1.Ternary_TERNARY_UNSPECIFIED, fmt.Errorf("EFI variable %s: %w", name, err)
	}
	return ternary(value), nil
}

// parseEFISwitch reads an efivarfs file: four bytes of attributes, then the
// value, here one byte that is 0 or 1.
func parseEFISwitch(content []byte) (bool, error) {
	if len(content) != 5 || content[4] > 1 {
		return false, fmt.Errorf("% x is not four bytes of attributes and 0 or 1", content[:min(len(content), 8)])
	}
	return content[4] == 1, nil
}

// ternary turns what was really read into the answer of evidence.
func ternary(yes bool) posturev1.Ternary {
	if yes {
		return posturev1.Ternary_TERNARY_YES
	}
	return posturev1.Ternary_TERNARY_NO
}
