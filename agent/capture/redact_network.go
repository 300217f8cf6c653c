package capture

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"pfoertner/agent/probe"
)

func (r *redactor) links(links []probe.Link) []probe.Link {
	kept := append([]probe.Link{}, links...)
	for i := range kept {
		l := &kept[i]
		l.Name = fmt.Sprint("link-", i)
		l.Kind = word(l.Kind, "tun|tap|wireguard|ppp|xfrm|vti6?|ovpn(-dco)?")
		l.Description = adapter(l.Description)
		l.OperState = word(l.OperState, "up|down|unknown|dormant|testing|notpresent|lowerlayerdown")
		l.Addresses = r.addresses.prefixes(l.Addresses)
	}
	return kept
}

// adapter keeps what VPN clients and Windows call their adapters; hardware is
// of no concern.
func adapter(description string) string {
	const makers = `(TAP-|OpenVPN|Wintun|WireGuard|Cisco|Fortinet|PANGP|NCP|Sophos|Juniper|Pulse|Ivanti|Check Point|F5|SonicWall|Zscaler|Netskope|genua|WAN Miniport|Hyper-V|Microsoft)`
	if regexp.MustCompile(`^` + makers + `[A-Za-z0-9 ._()#/-]{0,80}$`).MatchString(description) {
		return description
	}
	if description == "" {
		return ""
	}
	return "adapter"
}

func (r *redactor) route(route probe.Route) probe.Route {
	route.Gateway = netip.Addr{} // no judgement needs it
	route.Source = r.addresses.address(route.Source)
	return route
}

func (r *redactor) policies(policies []probe.IPsecPolicy) []probe.IPsecPolicy {
	kept := append([]probe.IPsecPolicy{}, policies...)
	for i := range kept {
		p := &kept[i]
		p.Direction = word(p.Direction, "in|out|fwd")
		p.Source, p.Destination = r.addresses.prefix(p.Source), r.addresses.prefix(p.Destination)
	}
	return kept
}

func (r *redactor) wireGuard(links []probe.WireGuardLink) []probe.WireGuardLink {
	kept := append([]probe.WireGuardLink{}, links...)
	for i := range kept {
		kept[i].AllowedIPs = r.addresses.prefixes(kept[i].AllowedIPs)
	}
	return kept
}

// addresses moves networks into the ranges that are kept for documentation
// (RFC 5737, RFC 3849, and RFC 2544 when there are many) so that what lies in
// one network still does. What says nothing about a network stays: loopback,
// link-local, and prefixes so wide that they only tell how much of the
// internet goes somewhere.
type addresses struct {
	// canaries are the addresses that routes were looked up for: fixed ones of
	// this program.
	canaries []netip.Addr
	// networks are the recorded networks, by which addresses stay together.
	networks []netip.Prefix
	// moved numbers the networks of a family, in the order of their use.
	moved4, moved6 []netip.Prefix
}

const (
	wide4, network4 = 8, 24
	wide6, network6 = 16, 64
)

// learn takes the networks and canaries of an answer into account.
func (a *addresses) learn(q question, value any) {
	if q.method() == askRoute {
		if canary, err := netip.ParseAddr(q.argument()); err == nil {
			a.canaries = append(a.canaries, canary)
		}
	}
	switch v := value.(type) {
	case []probe.Link:
		for _, l := range v {
			a.networks = append(a.networks, l.Addresses...)
		}
	case []probe.IPsecPolicy:
		for _, p := range v {
			a.networks = append(a.networks, p.Source, p.Destination)
		}
	case []probe.WireGuardLink:
		for _, w := range v {
			a.networks = append(a.networks, w.AllowedIPs...)
		}
	}
}

func limits(addr netip.Addr) (wide, network int) {
	if addr.Is4() {
		return wide4, network4
	}
	return wide6, network6
}

// telling says whether an address tells where somebody is.
func telling(addr netip.Addr) bool {
	return addr.IsValid() && !addr.IsUnspecified() && !addr.IsLoopback() && !addr.IsMulticast() &&
		!(addr.IsLinkLocalUnicast() && addr.Is4())
}

// address moves one address. A link-local one of IPv6 is made of the adapter's
// own, so only that it is one is kept.
func (a *addresses) address(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	switch {
	case !telling(addr):
		return addr
	case addr.IsLinkLocalUnicast():
		return netip.AddrFrom16([16]byte{0xfe, 0x80, 15: 1})
	}
	return a.host(a.home(addr), addr)
}

// home is the widest recorded network around an address that is no wide one,
// or the usual one.
func (a *addresses) home(addr netip.Addr) netip.Prefix {
	wide, bits := limits(addr)
	for _, n := range a.networks {
		if n = n.Masked(); n.Contains(addr) && n.Bits() > wide && n.Bits() < bits {
			bits = n.Bits()
		}
	}
	return netip.PrefixFrom(addr, bits).Masked()
}

// host is an address in the documentation network that stands for home.
func (a *addresses) host(home netip.Prefix, addr netip.Addr) netip.Addr {
	if addr.Is4() {
		n := place(&a.moved4, home)
		last := addr.As4()[3]
		switch n {
		case 0:
			return netip.AddrFrom4([4]byte{192, 0, 2, last})
		case 1:
			return netip.AddrFrom4([4]byte{198, 51, 100, last})
		case 2:
			return netip.AddrFrom4([4]byte{203, 0, 113, last})
		}
		return netip.AddrFrom4([4]byte{198, 18, byte(n), last})
	}
	n := place(&a.moved6, home)
	moved := [16]byte{0x20, 0x01, 0x0d, 0xb8, 6: byte(n >> 8), 7: byte(n)}
	if addr != home.Addr() {
		moved[15] = 1
	}
	return netip.AddrFrom16(moved)
}

func place(moved *[]netip.Prefix, home netip.Prefix) int {
	n := slices.Index(*moved, home)
	if n < 0 {
		n = len(*moved)
		*moved = append(*moved, home)
	}
	return n
}

// prefix moves one network, or an address with its network.
func (a *addresses) prefix(p netip.Prefix) netip.Prefix {
	if !p.IsValid() {
		return netip.Prefix{}
	}
	wide, network := limits(p.Addr())
	canary := slices.ContainsFunc(a.canaries, func(c netip.Addr) bool { return p.Masked().Contains(c) })
	if p == p.Masked() && (p.Bits() <= wide || canary) {
		return p
	}
	bits := p.Bits()
	switch {
	case !telling(p.Addr()) || p.Addr().IsLinkLocalUnicast():
	case bits < network:
		bits = network
	case p.Addr().Is6() && bits > network:
		bits = 128
	}
	return netip.PrefixFrom(a.address(p.Addr()), bits)
}

func (a *addresses) prefixes(list []netip.Prefix) []netip.Prefix {
	var moved []netip.Prefix
	for _, p := range list {
		moved = append(moved, a.prefix(p))
	}
	return moved
}
