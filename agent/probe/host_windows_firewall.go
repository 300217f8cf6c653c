//go:build windows

package probe

import (
	"context"
	"fmt"
)

// readFirewall runs in a process of its own. It asks NetFwPolicy2, which
// answers from all stores, group policy included (netfw.h).
func readFirewall(context.Context) (FirewallAnswer, error) {
	return inCOM(func() (answer FirewallAnswer, err error) {
		policy, err := newObject("HNetCfg.FwPolicy2")
		if err != nil {
			return answer, err
		}
		current, err := policy.number("CurrentProfileTypes")
		if err != nil {
			return answer, fmt.Errorf("asking which profiles are in force: %w", err)
		}
		answer.Current = uint32(current)
		for _, profile := range []int32{1, 2, 4} {
			answer.Profiles = append(answer.Profiles, firewallProfile(policy, profile))
		}
		return answer, nil
	})
}

func firewallProfile(policy object, profile int32) FirewallProfile {
	enabled, errEnabled := policy.flag("FirewallEnabled", profile)
	inbound, errInbound := policy.number("DefaultInboundAction", profile)
	// Without an answer the profile is taken as one that lets some in.
	blockAll, errBlock := policy.flag("BlockAllInboundTraffic", profile)
	return FirewallProfile{
		Profile:       uint32(profile),
		EnabledResult: resultOf(errEnabled), Enabled: enabled,
		InboundResult: resultOf(errInbound), Inbound: uint32(inbound),
		BlockAll: errBlock == nil && blockAll,
	}
}
