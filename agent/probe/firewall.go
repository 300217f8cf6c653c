package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// firewallProbe reads the packet filter: what is loaded in the kernel, and the
// services that should have loaded it. That a service is active does not mean
// that rules are loaded, nor the other way round.
func firewallProbe() Probe {
	return Probe{Section: "firewall", Timeout: asideTimeout, Collect: collectFirewall}
}

func collectFirewall(ctx context.Context, h Host, ev *posturev1.Evidence) error {
	out := &posturev1.Firewall{Reading: &posturev1.Reading{Source: "nftables, systemd"}}
	ev.Firewall = out
	if h.Windows != nil {
		return windowsFirewall(ctx, h.Windows, out)
	}
	if h.Files == nil || h.Firewall == nil {
		return errors.New("this machine's files or packet filter are not readable")
	}
	chains, err := h.Firewall.InputChains(ctx)
	if err != nil {
		err = fmt.Errorf("loaded rules: %w", err)
	}
	for _, engine := range []struct {
		name, program, unit string
		// own says whether a chain is this engine's.
		own func(FilterChain) bool
	}{
		{"nftables", "", "nftables.service", func(FilterChain) bool { return true }},
		{"firewalld", "usr/sbin/firewalld", "firewalld.service", func(c FilterChain) bool { return c.Table == "firewalld" }},
		// ufw speaks iptables, whose chains are these.
		{"ufw", "usr/sbin/ufw", "ufw.service", func(c FilterChain) bool { return c.Table == "filter" && c.Name == "INPUT" }},
	} {
		if engine.program != "" {
			if _, err := fs.Stat(h.Files, engine.program); errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		e := &posturev1.FirewallEngine{Engine: engine.name, ServiceActive: unitActive(ctx, h.Bus, engine.unit)}
		if err == nil {
			own := slices.DeleteFunc(slices.Clone(chains), func(c FilterChain) bool { return !engine.own(c) })
			e.RulesLoaded = ternary(filters(own))
			e.InboundDefaultDrop = ternary(dropsInbound(own))
		}
		out.Engines = append(out.Engines, e)
		out.Contradictions = append(out.Contradictions, engineContradictions(e, h.Files)...)
	}
	return err
}

func unitActive(ctx context.Context, bus Bus, unit string) posturev1.Ternary {
	if bus == nil {
		return unknown
	}
	active, err := bus.UnitActive(ctx, unit)
	switch {
	case errors.Is(err, ErrNotFound):
		return no
	case err != nil:
		return unknown
	default:
		return ternary(active)
	}
}

// filters says whether any chain does something: an empty one that lets
// everything pass is as good as none.
func filters(chains []FilterChain) bool {
	for _, c := range chains {
		if c.Drop || c.Rules > 0 {
			return true
		}
	}
	return false
}

// dropsInbound says whether, for IPv4 and for IPv6, a chain drops what no rule
// names. A filter for only one of them leaves the other open.
func dropsInbound(chains []FilterChain) bool {
	v4, v6 := false, false
	for _, c := range chains {
		drops := c.Drop || c.Rejects
		v4 = v4 || drops && (c.Family == "inet" || c.Family == "ip")
		v6 = v6 || drops && (c.Family == "inet" || c.Family == "ip6")
	}
	return v4 && v6
}

func engineContradictions(e *posturev1.FirewallEngine, files fs.FS) []*posturev1.Contradiction {
	var list []*posturev1.Contradiction
	add := func(sourceA, saysA, sourceB, saysB string) {
		list = append(list, &posturev1.Contradiction{
			Subject: "firewall.engines[" + e.Engine + "]", SourceA: sourceA, SaysA: saysA, SourceB: sourceB, SaysB: saysB,
		})
	}
	active, loaded := e.ServiceActive, e.RulesLoaded
	if active == yes && loaded == no {
		add("systemd", "the service is active", "nftables", "no rules of it are loaded")
	}
	// Rules in nftables may come from anyone; those of firewalld only from it.
	if e.Engine == "firewalld" && active == no && loaded == yes {
		add("systemd", "the service is not active", "nftables", "its rules are loaded")
	}
	if e.Engine == "ufw" {
		enabled, err := ufwEnabled(files)
		if err == nil && !enabled && active == yes {
			add("systemd", "the service is active", "/etc/ufw/ufw.conf", "ENABLED is not yes")
		}
	}
	return list
}

// ufwEnabled reads whether ufw loads its rules at all; its service is active
// either way.
func ufwEnabled(files fs.FS) (bool, error) {
	content, err := fs.ReadFile(files, "etc/ufw/ufw.conf")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(content)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && name == "ENABLED" {
			return strings.EqualFold(unquote(strings.TrimSpace(value)), "yes"), nil
		}
	}
	return false, nil
}
