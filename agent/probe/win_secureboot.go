package probe

import (
	"errors"
	"fmt"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	secureBootKey   = `SYSTEM\CurrentControlSet\Control\SecureBoot\State`
	secureBootValue = "UEFISecureBootEnabled"
)

// windowsSecureBoot reads the firmware's variables, and beside them what
// Windows noted in the registry when it started. The firmware's word is the
// evidence; where the registry says otherwise, both are reported.
func windowsSecureBoot(w *Windows, out *posturev1.SecureBoot) error {
	out.Reading.Source = "firmware variables, registry"
	if w.Firmware == nil {
		return errors.New("the firmware is not readable on this machine")
	}
	var errEnabled, errSetup error
	out.Enabled, errEnabled = firmwareSwitch(w.Firmware, "SecureBoot")
	noted, set, errNoted := registryNumber(w.Registry, secureBootKey, secureBootValue)
	contradict := func(firmware, registry string) {
		out.Contradictions = append(out.Contradictions, &posturev1.Contradiction{
			Subject: "secure_boot.enabled", SourceA: "firmware variable SecureBoot", SaysA: firmware,
			SourceB: `registry SecureBoot\State`, SaysB: registry,
		})
	}
	if errors.Is(errEnabled, ErrNotApplicable) {
		if set && noted == 1 {
			contradict("started by a legacy BIOS", "on")
			return errors.New("firmware and registry disagree about how this machine was started")
		}
		return fmt.Errorf("started by a legacy BIOS, not by UEFI: %w", ErrNotApplicable)
	}
	out.SetupMode, errSetup = firmwareSwitch(w.Firmware, "SetupMode")
	if set && errEnabled == nil && ternary(noted == 1) != out.Enabled {
		contradict(onOff(out.Enabled == yes), onOff(noted == 1))
	}
	return errors.Join(errEnabled, errSetup, errNoted)
}

// firmwareSwitch reads a variable that is on or off: one byte, 0 or 1.
func firmwareSwitch(f Firmware, name string) (posturev1.Ternary, error) {
	value, err := f.Variable(name, "{"+efiGlobalGUID+"}")
	switch {
	case errors.Is(err, ErrNotFound): // UEFI without what it switches
		return no, nil
	case err != nil:
		return unknown, fmt.Errorf("firmware variable %s: %w", name, err)
	case len(value) != 1 || value[0] > 1:
		return unknown, fmt.Errorf("firmware variable %s: % x is not one byte, 0 or 1", name, value[:min(len(value), 8)])
	}
	return ternary(value[0] == 1), nil
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
