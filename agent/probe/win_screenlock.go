package probe

import (
	"fmt"
	"math"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	machinePolicyKey = `SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System`
	idleLimitValue   = "InactivityTimeoutSecs"
)

// windowsScreenLock reads the policy "Interactive logon: Machine inactivity
// limit". It holds for everyone who signs in; zero, or no value, is no limit.
// A person's own screen saver is not read.
func windowsScreenLock(w *Windows, out *posturev1.ScreenLock) error {
	out.Reading.Source = `registry Policies\System ` + idleLimitValue
	limit, set, err := registryNumber(w.Registry, machinePolicyKey, idleLimitValue)
	if err != nil {
		return err
	}
	if limit > math.MaxUint32 {
		return fmt.Errorf("%s is %d, which is no time", idleLimitValue, limit)
	}
	out.Enforced = ternary(set && limit > 0)
	out.IdleSeconds = uint32(limit)
	return nil
}
