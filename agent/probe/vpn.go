package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// handshakeLife is how long a WireGuard session lives without a new handshake
// (Reject-After-Time of the protocol).
const handshakeLife = 180 * time.Second

const (
	// asideTimeout is for probes that ask Windows in another process: longer
	// than that process may take, so that its own word on why is heard.
	asideTimeout = 30 * time.Second
	// vpnTimeout is for several such questions, one after the other: the
	// Remote Access Service, and the signature of each client's program.
	vpnTimeout = time.Minute
)

// The answers of evidence, short.
const (
	yes     = posturev1.Ternary_TERNARY_YES
	no      = posturev1.Ternary_TERNARY_NO
	unknown = posturev1.Ternary_TERNARY_UNSPECIFIED
)

// vpnProbe reads the VPN clients and where traffic goes: per client whether it
// is installed, its service runs, its interface works, a session is alive, and
// how much traffic goes through it. No fact is concluded from another; those
// that do not fit together are reported as contradictions.
func vpnProbe(catalogue *VPNCatalogue) Probe {
	p := &vpn{catalogue: catalogue}
	return Probe{Section: "vpn", Timeout: vpnTimeout, Collect: p.collect}
}

type vpn struct {
	catalogue *VPNCatalogue

	mu       sync.Mutex
	packages fileCache[packageDatabase]
	programs map[string]identifiedProgram
}

func (v *vpn) collect(ctx context.Context, h Host, ev *posturev1.Evidence) error {
	v.mu.Lock()
	defer v.mu.Unlock()

	out := &posturev1.Vpn{Reading: &posturev1.Reading{Source: "netlink, processes, D-Bus"}}
	ev.Vpn = out
	if h.Windows != nil {
		return v.collectWindows(ctx, h, out)
	}
	if h.Files == nil || h.Network == nil {
		return errors.New("this machine's files or links are not readable")
	}
	catalogue, err := loadCatalogue(h.Files, v.catalogue)
	if err != nil {
		return err
	}
	view, err := v.look(ctx, h, catalogue)
	if err != nil {
		return err
	}
	for _, product := range catalogue {
		if client := view.client(ctx, product); client != nil {
			out.Clients = append(out.Clients, client)
		}
	}
	if client := view.unlisted(); client != nil {
		out.Clients = append(out.Clients, client)
	}
	view.overall(out)
	return nil
}

// vpnView is what is read once for all clients.
type vpnView struct {
	host      Host
	catalogue []vpnProduct
	links     []Link
	// routing, and why it could not be read.
	routing    routing
	routingErr error
	packages   packageDatabase

	wireguard    []WireGuardLink
	wireguardErr error
	connections  []BusConnection
	busErr       error

	// tunnel says whether a link hides what goes through it, whoever made it.
	tunnel func(Link) bool
	// linkSource is who tells of links.
	linkSource string
	// claimed are the indexes of links that a client of the catalogue made.
	claimed []int
}

func (v *vpn) look(ctx context.Context, h Host, catalogue []vpnProduct) (*vpnView, error) {
	view, err := lookAtLinks(ctx, h, catalogue)
	if err != nil {
		return nil, err
	}
	view.tunnel, view.linkSource = tunnelKind, "netlink"
	view.busErr = errors.New("the system bus is not readable")
	if h.Bus != nil {
		view.connections, view.busErr = h.Bus.VPNConnections(ctx)
	}
	if errors.Is(view.busErr, ErrNotFound) {
		view.busErr = nil
	}
	// Without dpkg versions stay empty.
	view.packages, _ = v.packages.get(h.Files, dpkgStatusFile, parseDpkgStatus)
	return view, nil
}

// lookAtLinks reads what every system has.
func lookAtLinks(ctx context.Context, h Host, catalogue []vpnProduct) (*vpnView, error) {
	view := &vpnView{host: h, catalogue: catalogue}
	var err error
	if view.links, err = h.Network.Links(ctx); err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	view.routing, view.routingErr = readRouting(ctx, h.Network)
	view.wireguard, view.wireguardErr = h.Network.WireGuard(ctx)
	if errors.Is(view.wireguardErr, ErrNotFound) {
		view.wireguardErr = nil
	}
	return view, nil
}

// client reads the five facts of one client; nil when it is neither installed
// nor seen.
func (v *vpnView) client(ctx context.Context, product vpnProduct) *posturev1.VpnClient {
	c := &posturev1.VpnClient{Product: product.Product, Version: v.version(product)}
	var errs []error
	fact := func(value posturev1.Ternary, err error) posturev1.Ternary {
		errs = append(errs, err)
		return value
	}
	c.Installed = fact(v.installed(product))
	processes := fact(v.processes(ctx, product))
	unit := v.unit(ctx, product)

	links := v.linksOf(product, c.Installed == yes || processes == yes)
	c.ServiceRunning = processes
	switch {
	case product.kernelServes():
		c.ServiceRunning = ternary(len(links) > 0)
	case processes == unknown:
		c.ServiceRunning = unit
	}
	c.InterfaceOperational = fact(v.interfaceOperational(product, links))
	c.SessionAlive = fact(v.session(product, links, c))
	c.ScopeV4, c.ScopeV6 = v.routing.scopes(links, product.IPsec)
	errs = append(errs, v.routingErr)
	if product.IPsec {
		errs = append(errs, v.routing.policiesErr)
	}
	if v.routingErr != nil {
		c.ScopeV4, c.ScopeV6 = posturev1.RoutingScope_ROUTING_SCOPE_UNSPECIFIED, posturev1.RoutingScope_ROUTING_SCOPE_UNSPECIFIED
	}
	if c.Installed == no && c.ServiceRunning != yes && len(links) == 0 && c.SessionAlive != yes {
		return nil
	}
	c.Contradictions = clientContradictions(c, product, links, processes, unit)
	c.Reading = partReading("files, processes, netlink, D-Bus", v.host.Now(), errors.Join(errs...))
	return c
}

// kernelServes: no process of its own has to run for its tunnels.
func (p vpnProduct) kernelServes() bool { return len(p.Processes) == 0 }

// linksOf lists the links that the product made. A link whose name is the only
// hint counts only for a client that is there: many programs make a "tun0".
func (v *vpnView) linksOf(product vpnProduct, there bool) []Link {
	var links []Link
	for _, l := range v.links {
		matches := slices.ContainsFunc(product.Links, func(p linkPattern) bool {
			return p.matches(l) && (there || p.Prefix == "")
		})
		userspace := product.WireGuard && slices.ContainsFunc(v.wireguard, func(w WireGuardLink) bool { return w.LinkIndex == l.Index })
		if matches || userspace {
			links = append(links, l)
			v.claimed = append(v.claimed, l.Index)
		}
	}
	if product.NetworkManager != "*" {
		return links
	}
	// The links of NetworkManager are those of its plugins.
	for _, plugin := range v.catalogue {
		if plugin.NetworkManager != "*" && v.activated(plugin) {
			links = append(links, v.linksOf(plugin, true)...)
		}
	}
	return links
}

// interfaceOperational: an interface that is up but without carrier works for
// nobody. Where IPsec has no interface, its policies stand for it.
func (v *vpnView) interfaceOperational(product vpnProduct, links []Link) (posturev1.Ternary, error) {
	switch {
	case slices.ContainsFunc(links, operational):
		return yes, nil
	case !product.IPsec || len(links) > 0:
		return no, nil
	case v.routing.policiesErr != nil:
		return unknown, nil // reported with the routing
	default:
		return ternary(v.ipsecTunnel()), nil
	}
}

func (v *vpnView) ipsecTunnel() bool {
	return slices.ContainsFunc(v.routing.policies, func(p IPsecPolicy) bool { return p.Direction == "out" && p.Tunnel })
}

// session says whether the other end is known to be there. For OpenVPN and
// strongSwan only NetworkManager knows; that a process and an interface are up
// proves nothing. Without one of both there is certainly no session.
func (v *vpnView) session(product vpnProduct, links []Link, c *posturev1.VpnClient) (posturev1.Ternary, error) {
	switch {
	case product.WireGuard:
		return v.handshaken(links)
	case v.activated(product):
		return yes, nil
	case c.ServiceRunning == no || c.InterfaceOperational == no && product.NetworkManager != "*":
		return no, nil
	case product.NetworkManager == "*" && v.busErr == nil:
		return no, nil
	case product.NetworkManager == "*":
		return unknown, fmt.Errorf("NetworkManager: %w", v.busErr)
	default:
		return unknown, nil
	}
}

// handshaken: a WireGuard session is as old as its last handshake.
func (v *vpnView) handshaken(links []Link) (posturev1.Ternary, error) {
	if len(links) == 0 {
		return no, nil
	}
	if v.wireguardErr != nil {
		return unknown, fmt.Errorf("WireGuard: %w", v.wireguardErr)
	}
	now := v.host.Now()
	return ternary(slices.ContainsFunc(v.wireguard, func(w WireGuardLink) bool {
		return !w.LastHandshake.IsZero() && now.Sub(w.LastHandshake) < handshakeLife
	})), nil
}

// activated says whether NetworkManager has an active connection of the
// product's plugin, of any VPN for NetworkManager itself.
func (v *vpnView) activated(product vpnProduct) bool {
	return slices.ContainsFunc(v.connections, func(c BusConnection) bool {
		return c.Activated && product.NetworkManager != "" &&
			slices.Contains([]string{"*", c.Type, c.Service}, product.NetworkManager)
	})
}

// unlisted reports tunnels that no client of the catalogue made, when traffic
// goes through them or they work; nil when there are none.
func (v *vpnView) unlisted() *posturev1.VpnClient {
	var links []Link
	for _, l := range v.links {
		attracts := slices.ContainsFunc(slices.Concat(v.routing.v4, v.routing.v6), func(w way) bool {
			return w.reachable && w.link == l.Index
		})
		if v.tunnel(l) && !slices.Contains(v.claimed, l.Index) && (attracts || operational(l) && len(l.Addresses) > 0) {
			links = append(links, l)
		}
	}
	if len(links) == 0 {
		return nil
	}
	c := &posturev1.VpnClient{
		Product: "unlisted", InterfaceOperational: ternary(slices.ContainsFunc(links, operational)),
		Reading: partReading(v.linkSource, v.host.Now(), v.routingErr),
	}
	if v.routingErr == nil {
		c.ScopeV4, c.ScopeV6 = v.routing.scopes(links, false)
	}
	c.Contradictions = clientContradictions(c, vpnProduct{}, links, unknown, unknown)
	return c
}

// overall fills in the scope of all tunnels together.
func (v *vpnView) overall(out *posturev1.Vpn) {
	err := v.routingErr
	if err == nil {
		var tunnels []Link
		for _, l := range v.links {
			if v.tunnel(l) || slices.Contains(v.claimed, l.Index) {
				tunnels = append(tunnels, l)
			}
		}
		out.ScopeV4, out.ScopeV6 = v.routing.scopes(tunnels, true)
		if out.ScopeV4 == posturev1.RoutingScope_ROUTING_SCOPE_UNSPECIFIED || out.ScopeV6 == posturev1.RoutingScope_ROUTING_SCOPE_UNSPECIFIED {
			err = fmt.Errorf("IPsec policies: %w", v.routing.policiesErr)
		}
		out.Contradictions = v.routingContradictions(out, tunnels)
	}
	out.RoutingReading = partReading(v.linkSource+" route look-ups, IPsec policies", v.host.Now(), err)
}
