//go:build windows

package probe

import (
	"context"
	"fmt"

	"github.com/go-ole/go-ole"
	"github.com/go-ole/go-ole/oleutil"
)

// readFirewall runs in a process of its own. It asks NetFwPolicy2, which
// answers from all stores, group policy included (netfw.h).
func readFirewall(context.Context) (answer FirewallAnswer, err error) {
	err = withCOM(func() error {
		policy, err := newDispatch(ole.NewGUID("{E2B3C97F-6AE1-41AC-817A-F6F92166D7DD}"))
		if err != nil {
			return comFailed("opening the firewall's policy", err)
		}
		defer policy.Release()
		current, err := comNumber(policy, "CurrentProfileTypes")
		if err != nil {
			return comFailed("asking which profiles are in force", err)
		}
		answer.Current = uint32(current)
		for _, profile := range []uint32{1, 2, 4} {
			answer.Profiles = append(answer.Profiles, firewallProfile(policy, profile))
		}
		return nil
	})
	return answer, err
}

func firewallProfile(policy *ole.IDispatch, profile uint32) FirewallProfile {
	enabled, errEnabled := comTruth(policy, "FirewallEnabled", int32(profile))
	inbound, errInbound := comNumber(policy, "DefaultInboundAction", int32(profile))
	// Without an answer the profile is taken as one that lets some in.
	blockAll, errBlock := comTruth(policy, "BlockAllInboundTraffic", int32(profile))
	return FirewallProfile{
		Profile:       profile,
		EnabledResult: hresult(errEnabled), Enabled: enabled,
		InboundResult: hresult(errInbound), Inbound: uint32(inbound),
		BlockAll: errBlock == nil && blockAll,
	}
}

// comNumber reads a property that is a whole number, and comTruth one that is a
// VARIANT_BOOL.
func comNumber(object *ole.IDispatch, property string, arguments ...any) (int64, error) {
	v, err := oleutil.GetProperty(object, property, arguments...)
	if err != nil {
		return 0, err
	}
	defer v.Clear()
	switch n := v.Value().(type) {
	case int32:
		return int64(n), nil
	case uint32:
		return int64(n), nil
	case int16:
		return int64(n), nil
	}
	return 0, fmt.Errorf("%s is no number but of type %d", property, v.VT)
}

func comTruth(object *ole.IDispatch, property string, arguments ...any) (bool, error) {
	v, err := oleutil.GetProperty(object, property, arguments...)
	if err != nil {
		return false, err
	}
	defer v.Clear()
	if is, ok := v.Value().(bool); ok {
		return is, nil
	}
	return false, fmt.Errorf("%s is no truth value but of type %d", property, v.VT)
}
