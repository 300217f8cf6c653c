package probe

import (
	"context"
	"errors"
	"net/netip"
	"slices"
)

// Addresses are this machine's own, loopback and link-local apart.
type Addresses struct {
	All []netip.Addr
	// Tunnels are those that a VPN has given it, by interface.
	Tunnels []TunnelAddresses
}

// TunnelAddresses are those of one tunnel.
type TunnelAddresses struct {
	// Link is the interface that has them.
	Link      string
	Addresses []netip.Addr
}

// ReadAddresses asks which addresses this machine has now. What counts as a
// tunnel is what the VPN section counts as one; an address that the kernel puts
// into an IPsec tunnel lies on another interface and counts too.
func ReadAddresses(ctx context.Context, h Host, c *VPNCatalogue) (Addresses, error) {
	if h.Network == nil {
		return Addresses{}, errors.New("this machine's links are not readable")
	}
	links, err := h.Network.Links(ctx)
	if err != nil {
		return Addresses{}, err
	}
	tunnel, err := tunnels(ctx, h, c)
	if err != nil {
		return Addresses{}, err
	}
	policies, _ := h.Network.IPsecPolicies(ctx) // without them there are none to see
	var out Addresses
	for _, l := range links {
		t := TunnelAddresses{Link: l.Name}
		for _, p := range l.Addresses {
			a := p.Addr().Unmap().WithZone("")
			if l.Loopback || !l.Up || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
				continue
			}
			out.All = append(out.All, a)
			if tunnel(l) || slices.ContainsFunc(policies, func(p IPsecPolicy) bool { return p.gives(a) }) {
				t.Addresses = append(t.Addresses, a)
			}
		}
		if len(t.Addresses) > 0 {
			out.Tunnels = append(out.Tunnels, t)
		}
	}
	return out, nil
}

// gives says whether the policy is a tunnel's for this one address.
func (p IPsecPolicy) gives(a netip.Addr) bool {
	return p.Tunnel && p.Direction == "out" && p.Source.IsSingleIP() && p.Source.Addr() == a
}

// tunnels says which links are.
func tunnels(ctx context.Context, h Host, c *VPNCatalogue) (func(Link) bool, error) {
	if h.Windows == nil {
		return tunnelKind, nil
	}
	catalogue, err := loadCatalogue(nil, c)
	if err != nil {
		return nil, err
	}
	catalogue = slices.DeleteFunc(catalogue, func(p vpnProduct) bool { return p.Windows == nil })
	view := &windowsVPN{vpnView: &vpnView{host: h, catalogue: catalogue}}
	view.askDialups(ctx)
	return view.isTunnel, nil
}
