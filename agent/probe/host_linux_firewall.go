//go:build linux

package probe

import (
	"context"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// kernelFirewall reads nftables, which holds the rules of iptables-nft,
// firewalld and ufw too. Rules of iptables-legacy are not in it.
type kernelFirewall struct{}

func (kernelFirewall) InputChains(context.Context) ([]FilterChain, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("listing chains: %w", err)
	}
	var found []FilterChain
	for _, c := range chains {
		family, ok := familyName(c.Table.Family)
		if !ok || c.Type != nftables.ChainTypeFilter || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookInput {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, fmt.Errorf("listing rules: %w", err)
		}
		found = append(found, FilterChain{
			Family:  family,
			Table:   c.Table.Name,
			Name:    c.Name,
			Drop:    c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop,
			Rules:   len(rules),
			Rejects: len(rules) > 0 && refusesAll(rules[len(rules)-1].Exprs),
		})
	}
	return found, nil
}

// familyName is false for families whose input hook sees no routed traffic.
func familyName(f nftables.TableFamily) (string, bool) {
	switch f {
	case nftables.TableFamilyINet:
		return "inet", true
	case nftables.TableFamilyIPv4:
		return "ip", true
	case nftables.TableFamilyIPv6:
		return "ip6", true
	}
	return "", false
}

// refusesAll is true for a rule that drops or rejects and asks for nothing
// first.
func refusesAll(exprs []expr.Any) bool {
	refuses := false
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			refuses = true
		case *expr.Verdict:
			refuses = e.Kind == expr.VerdictDrop
		default:
			return false
		}
	}
	return refuses
}
