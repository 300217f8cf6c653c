package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// installed says whether any of the product's programs is there.
func (v *vpnView) installed(product vpnProduct) (posturev1.Ternary, error) {
	for _, program := range product.Programs {
		_, err := fs.Stat(v.host.Files, program)
		if err == nil {
			return yes, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return unknown, err
		}
	}
	return no, nil
}

// version is that of the first of the product's packages that is installed.
func (v *vpnView) version(product vpnProduct) string {
	for _, name := range product.Packages {
		if p, ok := v.packages.installed[v.packages.id(name, "all")]; ok {
			return p.version
		}
	}
	return ""
}

// processes says whether one of the product's programs runs.
func (v *vpnView) processes(ctx context.Context, product vpnProduct) (posturev1.Ternary, error) {
	if len(product.Processes) == 0 {
		return unknown, nil
	}
	if v.host.Processes == nil {
		return unknown, errors.New("processes: not readable on this machine")
	}
	running, err := v.host.Processes.Running(ctx, product.Processes...)
	if err != nil {
		return unknown, fmt.Errorf("processes: %w", err)
	}
	return ternary(len(running) > 0), nil
}

// unit says whether systemd holds one of the product's units for active. It
// only supplements the processes: without systemd it is unknown, and that is
// no failure.
func (v *vpnView) unit(ctx context.Context, product vpnProduct) posturev1.Ternary {
	if v.host.Bus == nil {
		return unknown
	}
	state := unknown
	for _, unit := range product.Units {
		active, err := v.host.Bus.UnitActive(ctx, unit)
		switch {
		case err != nil:
			continue
		case active:
			return yes
		}
		state = no
	}
	return state
}

// clientContradictions lists what does not fit together in one client.
func clientContradictions(c *posturev1.VpnClient, product vpnProduct, links []Link, processes, unit posturev1.Ternary) []*posturev1.Contradiction {
	subject := "vpn.clients[" + c.Product + "]."
	var list []*posturev1.Contradiction
	add := func(fact, sourceA, saysA, sourceB, saysB string) {
		list = append(list, &posturev1.Contradiction{
			Subject: subject + fact, SourceA: sourceA, SaysA: saysA, SourceB: sourceB, SaysB: saysB,
		})
	}
	if unit == yes && processes == no {
		add("service_running", "systemd", "active", "processes", "none of "+strings.Join(product.Processes, ", ")+" runs")
	}
	if product.kernelServes() && unit == yes && len(links) == 0 {
		add("service_running", "systemd", "active", "netlink", "no interface of it is there")
	}
	up := false
	for _, l := range links {
		up = up || l.Up
	}
	if processes == no && up {
		add("service_running", "processes", "none of "+strings.Join(product.Processes, ", ")+" runs", "netlink", "its interface is up")
	}
	if len(links) > 0 && c.InterfaceOperational == no && (processes == yes || unit == yes) {
		add("interface_operational", "processes", "the service runs", "netlink", "its interface is down or has no carrier")
	}
	if c.SessionAlive == yes && c.InterfaceOperational == no {
		add("session_alive", "NetworkManager or handshake", "a session is alive", "netlink", "no interface of it works")
	}
	return list
}

// routingContradictions lists what does not fit the routes.
func (v *vpnView) routingContradictions(out *posturev1.Vpn, tunnels []Link) []*posturev1.Contradiction {
	var list []*posturev1.Contradiction
	add := func(fact, sourceA, saysA, sourceB, saysB string) {
		list = append(list, &posturev1.Contradiction{
			Subject: "vpn." + fact, SourceA: sourceA, SaysA: saysA, SourceB: sourceB, SaysB: saysB,
		})
	}
	default4, default6 := false, false
	for _, c := range v.connections {
		default4 = default4 || c.Activated && c.Default4
		default6 = default6 || c.Activated && c.Default6
	}
	for _, family := range []struct {
		fact    string
		ways    []way
		scope   posturev1.RoutingScope
		managed bool
	}{
		{"scope_v4", v.routing.v4, out.ScopeV4, default4},
		{"scope_v6", v.routing.v6, out.ScopeV6, default6},
	} {
		if dead(family.ways, tunnels) {
			add(family.fact, "route look-up", "traffic goes into a tunnel", v.linkSource, "the tunnel's interface is down or has no carrier")
		}
		if family.managed && family.scope != posturev1.RoutingScope_ROUTING_SCOPE_FULL {
			add(family.fact, "NetworkManager", "the default route is a VPN", "route look-up", "not all traffic goes into a tunnel")
		}
	}
	return list
}

// dead says whether a canary goes into a tunnel that does not work.
func dead(ways []way, tunnels []Link) bool {
	for _, w := range ways {
		for _, l := range tunnels {
			if w.reachable && w.link == l.Index && !operational(l) {
				return true
			}
		}
	}
	return false
}
