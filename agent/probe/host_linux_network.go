//go:build linux

package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelNetwork asks the kernel over netlink. Each call opens its own socket,
// in the network namespace of the program, and closes it.
type kernelNetwork struct{}

func (kernelNetwork) Links(ctx context.Context) ([]Link, error) {
	h, err := openNetlink(ctx, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	found := make([]Link, 0, len(links))
	for _, link := range links {
		addresses, err := h.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("listing addresses: %w", err)
		}
		found = append(found, toLink(link, addresses))
	}
	return found, nil
}

func toLink(link netlink.Link, addresses []netlink.Addr) Link {
	a := link.Attrs()
	l := Link{
		Index:     a.Index,
		Name:      a.Name,
		Kind:      link.Type(),
		Up:        a.RawFlags&unix.IFF_UP != 0,
		Running:   a.RawFlags&unix.IFF_RUNNING != 0,
		OperState: a.OperState.String(),
		Loopback:  a.RawFlags&unix.IFF_LOOPBACK != 0,
	}
	switch l.Kind { // the library's own words for two of them
	case "device":
		l.Kind = ""
	case "tuntap":
		l.Kind = "tun"
	}
	for _, address := range addresses {
		if p, ok := toPrefix(address.IPNet); ok {
			l.Addresses = append(l.Addresses, p)
		}
	}
	return l
}

// Route asks for the table by which the kernel decided. A route that drops
// packets is no route.
func (kernelNetwork) Route(ctx context.Context, addr netip.Addr) (Route, error) {
	h, err := openNetlink(ctx, unix.NETLINK_ROUTE)
	if err != nil {
		return Route{}, err
	}
	defer h.Close()
	routes, err := h.RouteGet(addr.AsSlice())
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), // none, or "unreachable"
		errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL), // "prohibit", "blackhole"
		errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP): // IPv6 is switched off
		return Route{}, fmt.Errorf("%w: %w", ErrNoRoute, err)
	case err != nil:
		return Route{}, fmt.Errorf("looking up a route: %w", err)
	case len(routes) == 0:
		return Route{}, ErrNoRoute
	}
	r := routes[0]
	if slices.Contains([]int{unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW}, r.Type) {
		return Route{}, ErrNoRoute
	}
	return Route{LinkIndex: r.LinkIndex, Table: r.Table, Gateway: toAddr(r.Gw), Source: toAddr(r.Src)}, nil
}

// IPsecPolicies leaves out policies that are bound to an xfrm or vti
// interface: there the route shows what they take.
func (kernelNetwork) IPsecPolicies(ctx context.Context) ([]IPsecPolicy, error) {
	h, err := openNetlink(ctx, unix.NETLINK_XFRM)
	if errors.Is(err, unix.EPROTONOSUPPORT) { // a kernel without IPsec
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer h.Close()
	policies, err := h.XfrmPolicyList(netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing IPsec policies: %w", err)
	}
	var found []IPsecPolicy
	for _, p := range policies {
		if p.Ifid != 0 || p.Mark != nil && p.Mark.Mask != 0 {
			continue
		}
		destination, okD := toPrefix(p.Dst)
		source, okS := toPrefix(p.Src)
		if !okD || !okS {
			return nil, errors.New("an IPsec policy has no addresses")
		}
		found = append(found, IPsecPolicy{
			Direction:   direction(p.Dir),
			Destination: destination,
			Source:      source,
			Tunnel: p.Action == netlink.XFRM_POLICY_ALLOW && slices.ContainsFunc(p.Tmpls, func(t netlink.XfrmPolicyTmpl) bool {
				return t.Mode == netlink.XFRM_MODE_TUNNEL
			}),
		})
	}
	return found, nil
}

func direction(d netlink.Dir) string {
	switch d {
	case netlink.XFRM_DIR_IN:
		return "in"
	case netlink.XFRM_DIR_OUT:
		return "out"
	case netlink.XFRM_DIR_FWD:
		return "fwd"
	}
	return "other"
}

func (kernelNetwork) WireGuard(context.Context) ([]WireGuardLink, error) {
	return wireGuardLinks()
}

// openNetlink gives each request on the socket the time that ctx has left.
func openNetlink(ctx context.Context, family int) (*netlink.Handle, error) {
	h, err := netlink.NewHandle(family)
	if err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := h.SetSocketTimeout(max(time.Until(deadline), time.Millisecond)); err != nil {
			h.Close()
			return nil, fmt.Errorf("limiting netlink: %w", err)
		}
	}
	return h, nil
}
