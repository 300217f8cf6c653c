package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// canaries are addresses whose route shows where traffic goes. Nothing is sent
// to them: only the kernel is asked. For IPv4 there is one in each quarter,
// since a tunnel may take everything by halves or quarters and leave the
// default route alone; for IPv6 there are three in blocks that are in use.
func canaries() (v4, v6 []netip.Addr) {
	v4 = []netip.Addr{
		netip.AddrFrom4([4]byte{9, 9, 9, 9}),
		netip.AddrFrom4([4]byte{93, 184, 215, 14}),
		netip.AddrFrom4([4]byte{151, 101, 1, 1}),
		netip.AddrFrom4([4]byte{193, 0, 14, 129}),
	}
	v6 = []netip.Addr{
		netip.AddrFrom16([16]byte{0x20, 0x01, 0x07, 0xfd, 15: 1}),
		netip.AddrFrom16([16]byte{0x26, 0x20, 0x00, 0xfe, 15: 0xfe}),
		netip.AddrFrom16([16]byte{0x2a, 0x00, 0x14, 0x50, 15: 1}),
	}
	return v4, v6
}

// way is where one canary goes.
type way struct {
	// reachable is false when the kernel has no route: such traffic leaks
	// nowhere.
	reachable bool
	link      int
	ipsec     bool
}

// routing is where the canaries go, and what decides it.
type routing struct {
	v4, v6   []way
	policies []IPsecPolicy
	// policiesErr: IPsec policies could not be read, so that a route that
	// looks direct may not be.
	policiesErr error
}

func readRouting(ctx context.Context, n Network) (routing, error) {
	var r routing
	r.policies, r.policiesErr = n.IPsecPolicies(ctx)
	v4, v6 := canaries()
	var err4, err6 error
	r.v4, err4 = lookUp(ctx, n, v4, r.policies)
	r.v6, err6 = lookUp(ctx, n, v6, r.policies)
	return r, errors.Join(err4, err6)
}

func lookUp(ctx context.Context, n Network, addresses []netip.Addr, policies []IPsecPolicy) ([]way, error) {
	ways := make([]way, 0, len(addresses))
	for _, address := range addresses {
		route, err := n.Route(ctx, address)
		if errors.Is(err, ErrNoRoute) {
			ways = append(ways, way{})
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("route look-up: %w", err)
		}
		ways = append(ways, way{true, route.LinkIndex, inTunnel(policies, route.Source, address)})
	}
	return ways, nil
}

// inTunnel says whether the kernel puts a packet into an IPsec tunnel: the
// route does not show it. Of several policies the narrowest decides, as IKE
// daemons set priorities.
func inTunnel(policies []IPsecPolicy, source, destination netip.Addr) bool {
	width, tunnel := -1, false
	for _, p := range policies {
		if p.Direction != "out" || !p.Destination.Contains(destination) || !p.Source.Contains(source) {
			continue
		}
		if bits := p.Destination.Bits() + p.Source.Bits(); bits > width {
			width, tunnel = bits, p.Tunnel
		}
	}
	return tunnel
}

// scope tells how much goes through a tunnel. carries: the tunnel works and
// has addresses of this family, so something goes through it even when no
// canary does.
func scope(ways []way, through func(way) bool, carries bool) posturev1.RoutingScope {
	reachable, inside := 0, 0
	for _, w := range ways {
		if !w.reachable {
			continue
		}
		reachable++
		if through(w) {
			inside++
		}
	}
	switch {
	case inside > 0 && inside == reachable:
		return posturev1.RoutingScope_ROUTING_SCOPE_FULL
	case inside > 0, carries:
		return posturev1.RoutingScope_ROUTING_SCOPE_SPLIT
	case reachable == 0:
		return posturev1.RoutingScope_ROUTING_SCOPE_NO_CONNECTIVITY
	default:
		return posturev1.RoutingScope_ROUTING_SCOPE_NONE
	}
}

// scopes tells the scope of the tunnels given by their links, and of IPsec
// policies when ipsec is set.
func (r routing) scopes(links []Link, ipsec bool) (v4, v6 posturev1.RoutingScope) {
	through := func(w way) bool {
		return ipsec && w.ipsec || slices.ContainsFunc(links, func(l Link) bool { return l.Index == w.link })
	}
	v4 = scope(r.v4, through, r.carries(links, ipsec, netip.Addr.Is4))
	v6 = scope(r.v6, through, r.carries(links, ipsec, netip.Addr.Is6))
	if ipsec && r.policiesErr != nil {
		v4, v6 = onlyFull(v4), onlyFull(v6)
	}
	return v4, v6
}

// onlyFull is for scopes that were read without the IPsec policies: more may
// be inside than is known.
func onlyFull(s posturev1.RoutingScope) posturev1.RoutingScope {
	if s == posturev1.RoutingScope_ROUTING_SCOPE_FULL {
		return s
	}
	return posturev1.RoutingScope_ROUTING_SCOPE_UNSPECIFIED
}

// carries says whether a working link has an address of the family, or a
// tunnel policy is about it. Addresses of a link that is down count for
// nothing, nor do those that every link has by itself.
func (r routing) carries(links []Link, ipsec bool, family func(netip.Addr) bool) bool {
	for _, l := range links {
		if operational(l) && slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool {
			return family(p.Addr()) && !p.Addr().IsLinkLocalUnicast()
		}) {
			return true
		}
	}
	return ipsec && slices.ContainsFunc(r.policies, func(p IPsecPolicy) bool {
		return p.Direction == "out" && p.Tunnel && family(p.Destination.Addr())
	})
}

// operational is IFF_UP and IFF_RUNNING. A tun device that lost its process is
// still up, and still gets routes. On Windows adapters of idle clients stay
// listed, and some say that they run while their state says otherwise.
func operational(l Link) bool {
	return l.Up && l.Running && (l.OperState == "" || l.OperState == "up" || l.OperState == "unknown")
}
