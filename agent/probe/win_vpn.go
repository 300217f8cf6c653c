package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	ifTypePPP     = 23
	ifTypeVirtual = 53
	ifTypeTunnel  = 131

	// dialupConnected is RASCS_Connected.
	dialupConnected = 0x2000
)

// noWord is said where nothing on Windows tells whether the other end is
// there: that a service runs and an adapter works proves nothing.
const noWord = "nothing on this machine tells whether its session is alive"

// windowsVPN is what is read once for all clients on Windows.
type windowsVPN struct {
	*vpnView
	probe      *vpn
	dialups    []Dialup
	dialupsErr error
}

// windowsClient is one client whose services are there.
type windowsClient struct {
	vpnProduct
	services []Service
	links    []Link
}

// collectWindows reads the five facts where services, adapters, the route
// look-up and the Remote Access Service tell them. v.mu is held.
func (v *vpn) collectWindows(ctx context.Context, h Host, out *posturev1.Vpn) error {
	out.Reading.Source = "service control manager, interface table, Remote Access Service"
	if h.Network == nil || h.Windows.Services == nil {
		return errors.New("this machine's links or services are not readable")
	}
	catalogue, err := loadCatalogue(nil, v.catalogue)
	if err != nil {
		return err
	}
	catalogue = slices.DeleteFunc(catalogue, func(p vpnProduct) bool { return p.Windows == nil })
	links, err := lookAtLinks(ctx, h, catalogue)
	if err != nil {
		return err
	}
	links.linkSource = "interface table"
	view := &windowsVPN{vpnView: links, probe: v}
	view.askDialups(ctx)
	view.tunnel = view.isTunnel
	services, err := allServices(ctx, h.Windows.Services, catalogue)
	if err == nil {
		for _, c := range view.present(services) {
			if client := view.client(ctx, c); client != nil {
				out.Clients = append(out.Clients, client)
			}
		}
		if client := view.unlisted(); client != nil {
			out.Clients = append(out.Clients, client)
		}
	}
	view.overall(out)
	return err
}

// askDialups asks the Remote Access Service. From a service it may not see the
// connections that a person made.
func (v *windowsVPN) askDialups(ctx context.Context) {
	if v.host.Windows.Dialups == nil {
		v.dialupsErr = errors.New("the Remote Access Service is not readable on this machine")
		return
	}
	v.dialups, v.dialupsErr = v.host.Windows.Dialups.Connections(ctx)
	if errors.Is(v.dialupsErr, ErrNotFound) {
		v.dialupsErr = nil
	}
	if v.dialupsErr != nil {
		v.dialupsErr = fmt.Errorf("asking the Remote Access Service: %w", v.dialupsErr)
	}
	vpns, others := v.dialled()
	if v.routingErr == nil && vpns > 0 && others > 0 {
		v.routingErr = errors.New("a VPN and another dial-up connection have interfaces of one kind: which is which cannot be told")
	}
}

// dialled counts the live connections of the Remote Access Service: VPNs, and
// others such as modems and PPPoE.
func (v *windowsVPN) dialled() (vpns, others int) {
	for _, d := range v.dialups {
		switch {
		case d.State != dialupConnected:
		case strings.EqualFold(d.DeviceType, "vpn"):
			vpns++
		default:
			others++
		}
	}
	return vpns, others
}

// isTunnel says whether a link hides what goes through it. PPP is a VPN unless
// the Remote Access Service knows that it is a modem or PPPoE; Teredo and its
// kind only wrap packets up.
func (v *windowsVPN) isTunnel(l Link) bool {
	for _, plain := range []string{"Teredo", "Microsoft Teredo", "Microsoft ISATAP", "Microsoft 6to4"} {
		if strings.HasPrefix(l.Description, plain) {
			return false
		}
	}
	switch l.Type {
	case ifTypePPP:
		vpns, others := v.dialled()
		return vpns > 0 || others == 0
	case ifTypeVirtual, ifTypeTunnel:
		return true
	}
	return slices.ContainsFunc(v.catalogue, func(p vpnProduct) bool { return p.Windows.adapterMatch(l) > 0 })
}

// allServices asks for the services of all products at once.
func allServices(ctx context.Context, services Services, catalogue []vpnProduct) ([]Service, error) {
	var names []string
	for _, p := range catalogue {
		names = append(names, p.Windows.Services...)
	}
	slices.Sort(names)
	found, err := services.Matching(ctx, slices.Compact(names)...)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("services: %w", err)
	}
	return found, nil
}

// present lists the clients whose services are there, with the links that each
// made.
func (v *windowsVPN) present(services []Service) []*windowsClient {
	var clients []*windowsClient
	for _, p := range v.catalogue {
		own := slices.DeleteFunc(slices.Clone(services), func(s Service) bool { return !v.owns(p, s) })
		if len(own) > 0 {
			clients = append(clients, &windowsClient{vpnProduct: p, services: own})
		}
	}
	for _, l := range v.links {
		best := 0
		for _, c := range clients {
			best = max(best, c.Windows.adapterMatch(l))
		}
		for _, c := range clients {
			byType := best == 0 && v.isTunnel(l) && slices.Contains(c.Windows.Types, l.Type)
			if best > 0 && c.Windows.adapterMatch(l) == best || byType {
				c.links = append(c.links, l)
				v.claimed = append(v.claimed, l.Index)
			}
		}
	}
	return clients
}

// owns says whether a service is the product's. One whose program lies where
// only one product has it, is of no other.
func (v *windowsVPN) owns(p vpnProduct, s Service) bool {
	if !serviceNamed(s.Name, p.Windows.Services) {
		return false
	}
	if len(p.Windows.Paths) > 0 {
		return p.Windows.liesWithin(s)
	}
	return !slices.ContainsFunc(v.catalogue, func(other vpnProduct) bool {
		return other.Windows.liesWithin(s) && serviceNamed(s.Name, other.Windows.Services)
	})
}

// liesWithin says whether the service's program lies in one of the paths.
func (w *windowsFootprint) liesWithin(s Service) bool {
	return slices.ContainsFunc(w.Paths, func(path string) bool {
		return strings.Contains(strings.ToLower(s.Program), strings.ToLower(path))
	})
}

// adapterMatch is how much of a link's description tells that it is the
// product's; zero: nothing does.
func (w *windowsFootprint) adapterMatch(l Link) int {
	longest := 0
	for _, prefix := range w.Adapters {
		if strings.HasPrefix(l.Description, prefix) {
			longest = max(longest, len(prefix))
		}
	}
	return longest
}

// client reads the five facts of one client; nil when it is not there, or part
// of Windows and not in use.
func (v *windowsVPN) client(ctx context.Context, w *windowsClient) *posturev1.VpnClient {
	c := &posturev1.VpnClient{Product: w.Product}
	c.ServiceRunning = ternary(slices.ContainsFunc(w.services, func(s Service) bool { return s.State == serviceRunning }))
	c.InterfaceOperational = ternary(slices.ContainsFunc(w.links, operational))
	var errs []error
	c.Installed = yes
	if !w.Windows.RemoteAccess {
		var err error
		c.Installed, err = v.identify(ctx, w, c)
		errs = append(errs, err)
	}
	session, reason, err := v.sessionOf(w, c)
	c.SessionAlive = session
	errs = append(errs, err, v.routingErr)
	if v.routingErr == nil {
		c.ScopeV4, c.ScopeV6 = v.routing.scopes(w.links, false)
	}
	switch {
	case w.Windows.RemoteAccess && c.InterfaceOperational == no && session == no:
		return nil
	case w.Windows.RemoteAccess && session == unknown:
		c.Installed = unknown
	case c.Installed == no && c.ServiceRunning == no && c.InterfaceOperational == no:
		return nil
	}
	c.Contradictions = append(c.Contradictions, v.usageContradictions(c)...)
	c.Reading = partReading("service control manager, signatures, interface table, Remote Access Service", v.host.Now(), errors.Join(errs...))
	if c.Reading.Reason == "" {
		c.Reading.Reason = reason
	}
	return c
}

// sessionOf says whether the other end is known to be there, or why that is
// not known.
func (v *windowsVPN) sessionOf(w *windowsClient, c *posturev1.VpnClient) (session posturev1.Ternary, reason string, err error) {
	switch {
	case w.Windows.RemoteAccess:
		return v.dialledSession(c)
	case c.InterfaceOperational == no:
		return no, "", nil
	case w.WireGuard && v.wireguardErr != nil, w.WireGuard && len(v.wireguard) > 0:
		session, err = v.handshaken(w.links)
		return session, "", err
	default:
		return unknown, noWord, nil
	}
}

// dialledSession asks what the Remote Access Service said. Where it shows no
// connection, a PPP interface that works is one all the same: a person's own
// connections do not always show to a service.
func (v *windowsVPN) dialledSession(c *posturev1.VpnClient) (posturev1.Ternary, string, error) {
	vpns, _ := v.dialled()
	switch {
	case vpns > 0:
		return yes, "", nil
	case c.InterfaceOperational == yes:
		return yes, "a PPP interface works; the Remote Access Service shows no connection to it", nil
	case v.dialupsErr != nil:
		return unknown, "", v.dialupsErr
	default:
		return no, "", nil
	}
}

// usageContradictions lists what of service, interface and session does not
// fit together. That an adapter is idle while the service runs, does.
func (v *windowsVPN) usageContradictions(c *posturev1.VpnClient) []*posturev1.Contradiction {
	var list []*posturev1.Contradiction
	add := func(fact, sourceA, saysA, saysB string) {
		list = append(list, clientContradiction(c, fact, sourceA, saysA, v.linkSource, saysB))
	}
	if c.ServiceRunning == no && c.InterfaceOperational == yes {
		add("service_running", "service control manager", "none of its services runs", "its interface works")
	}
	if c.SessionAlive == yes && c.InterfaceOperational == no {
		add("session_alive", "Remote Access Service or handshake", "a session is alive", "no interface of it works")
	}
	return list
}

func clientContradiction(c *posturev1.VpnClient, fact, sourceA, saysA, sourceB, saysB string) *posturev1.Contradiction {
	return &posturev1.Contradiction{
		Subject: "vpn.clients[" + c.Product + "]." + fact,
		SourceA: sourceA, SaysA: saysA, SourceB: sourceB, SaysB: saysB,
	}
}
