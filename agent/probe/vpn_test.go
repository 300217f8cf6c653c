package probe

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	fullScope  = posturev1.RoutingScope_ROUTING_SCOPE_FULL
	splitScope = posturev1.RoutingScope_ROUTING_SCOPE_SPLIT
	noScope    = posturev1.RoutingScope_ROUTING_SCOPE_NONE
	noFamily   = posturev1.RoutingScope_ROUTING_SCOPE_NO_CONNECTIVITY
	noAnswer   = posturev1.RoutingScope_ROUTING_SCOPE_UNSPECIFIED
)

// Links of the notebook in these tests.
var (
	ethernet = Link{Index: 2, Name: "eth0", Up: true, Running: true, Addresses: prefixes("192.168.178.20/24", "2001:db8::20/64")}
	tunnel   = Link{Index: 9, Name: "tun0", Kind: "tun", Up: true, Running: true, Addresses: prefixes("10.8.0.6/24", "fe80::1/64")}
	wgTunnel = Link{Index: 8, Name: "wg0", Kind: "wireguard", Up: true, Running: true, Addresses: prefixes("10.9.0.2/32")}
	// orphan is what is left of a persistent tun whose process ended.
	orphan = Link{Index: 9, Name: "tun0", Kind: "tun", Up: true, OperState: "down", Addresses: prefixes("10.8.0.6/24")}
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// office is a network without a tunnel, IPv4 and IPv6.
func office() map[string]Route {
	return map[string]Route{
		"0.0.0.0/0": {LinkIndex: 2, Source: netip.MustParseAddr("192.168.178.20")},
		"::/0":      {LinkIndex: 2, Source: netip.MustParseAddr("2001:db8::20")},
	}
}

// through adds routes into a link.
func through(link int, routes map[string]Route, destinations ...string) map[string]Route {
	for _, d := range destinations {
		routes[d] = Route{LinkIndex: link}
	}
	return routes
}

// openvpnFiles is a notebook with OpenVPN, captured version.
var openvpnFiles = fstest.MapFS{
	"usr/sbin/openvpn": {},
	dpkgStatusFile: file("Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.21.22\n\n" +
		"Package: openvpn\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.6.14-0+deb12u2\n"),
}

func clientOf(t testing.TB, v *posturev1.Vpn, product string) *posturev1.VpnClient {
	t.Helper()
	i := slices.IndexFunc(v.Clients, func(c *posturev1.VpnClient) bool { return c.Product == product })
	if i < 0 {
		t.Fatalf("no client %s in %v", product, v.Clients)
	}
	return v.Clients[i]
}

// facts writes the five facts of a client as
// "installed/service/interface/session v4 v6".
func facts(c *posturev1.VpnClient) string {
	word := map[posturev1.Ternary]string{yes: "yes", no: "no", unknown: "?"}
	return fmt.Sprintf("%s/%s/%s/%s %s %s", word[c.Installed], word[c.ServiceRunning], word[c.InterfaceOperational], word[c.SessionAlive],
		strings.TrimPrefix(c.ScopeV4.String(), "ROUTING_SCOPE_"), strings.TrimPrefix(c.ScopeV6.String(), "ROUTING_SCOPE_"))
}

func TestVPN(t *testing.T) {
	strongswan := fstest.MapFS{"usr/lib/ipsec/charon": {}}
	virtual := netip.MustParseAddr("10.10.0.5")
	table220 := map[string]Route{"0.0.0.0/0": {LinkIndex: 2, Table: 220, Source: virtual}, "::/0": {LinkIndex: 2, Source: netip.MustParseAddr("2001:db8::20")}}
	full := []IPsecPolicy{{Direction: "out", Source: prefixes("10.10.0.5/32")[0], Destination: prefixes("0.0.0.0/0")[0], Tunnel: true}}
	network := []IPsecPolicy{{Direction: "out", Source: prefixes("10.10.0.5/32")[0], Destination: prefixes("10.0.0.0/8")[0], Tunnel: true}}
	fresh := []WireGuardLink{{LinkIndex: 8, Peers: 1, LastHandshake: testNow.Add(-time.Minute)}}
	stale := []WireGuardLink{{LinkIndex: 8, Peers: 1, LastHandshake: testNow.Add(-time.Hour)}}
	managed := BusConnection{Type: "vpn", Service: "org.freedesktop.NetworkManager.openvpn", Activated: true, Default4: true}
	nmFiles := with(openvpnFiles, fstest.MapFS{"usr/sbin/NetworkManager": {}})

	for _, c := range []struct {
		name           string
		files          fstest.MapFS
		network        fakeNetwork
		running        fakeProcesses
		bus            fakeBus
		product        string
		want           string
		v4, v6         posturev1.RoutingScope
		contradictions []string
	}{
		{name: "OpenVPN installed and idle", files: openvpnFiles, network: fakeNetwork{links: []Link{ethernet}, routes: office()},
			product: "openvpn", want: "yes/no/no/no NONE NONE", v4: noScope, v6: noScope},
		{name: "OpenVPN def1: all of IPv4, IPv6 leaks", files: openvpnFiles, running: fakeProcesses{"openvpn"},
			network: fakeNetwork{links: []Link{ethernet, tunnel}, routes: through(9, office(), "0.0.0.0/1", "128.0.0.0/1")},
			product: "openvpn", want: "yes/yes/yes/? FULL NONE", v4: fullScope, v6: noScope},
		{name: "OpenVPN takes IPv6 as well", files: openvpnFiles, running: fakeProcesses{"openvpn"},
			network: fakeNetwork{links: []Link{ethernet, tunnel}, routes: through(9, office(), "0.0.0.0/1", "128.0.0.0/1", "2000::/4", "3000::/4")},
			product: "openvpn", want: "yes/yes/yes/? FULL FULL", v4: fullScope, v6: fullScope},
		{name: "OpenVPN takes one half only", files: openvpnFiles, running: fakeProcesses{"openvpn"},
			network: fakeNetwork{links: []Link{ethernet, tunnel}, routes: through(9, office(), "128.0.0.0/1")},
			product: "openvpn", want: "yes/yes/yes/? SPLIT NONE", v4: splitScope, v6: noScope},
		{name: "OpenVPN split tunnel", files: openvpnFiles, running: fakeProcesses{"openvpn"},
			network: fakeNetwork{links: []Link{ethernet, tunnel}, routes: through(9, office(), "10.0.0.0/8")},
			product: "openvpn", want: "yes/yes/yes/? SPLIT NONE", v4: splitScope, v6: noScope},
		{name: "no IPv6 here", files: openvpnFiles, running: fakeProcesses{"openvpn"},
			network: fakeNetwork{links: []Link{ethernet, tunnel}, routes: through(9, map[string]Route{}, "0.0.0.0/0")},
			product: "openvpn", want: "yes/yes/yes/? FULL NO_CONNECTIVITY", v4: fullScope, v6: noFamily},
		{name: "nothing is connected", files: openvpnFiles, network: fakeNetwork{},
			product: "openvpn", want: "yes/no/no/no NO_CONNECTIVITY NO_CONNECTIVITY", v4: noFamily, v6: noFamily},
		{name: "a tun that is up without a process still attracts routes", files: openvpnFiles,
			network: fakeNetwork{links: []Link{ethernet, orphan}, routes: through(9, office(), "0.0.0.0/0")},
			product: "openvpn", want: "yes/no/no/no FULL NONE", v4: fullScope, v6: noScope,
			contradictions: []string{"vpn.clients[openvpn].service_running", "vpn.scope_v4"}},
		{name: "the service runs and its interface has no carrier", files: openvpnFiles, running: fakeProcesses{"openvpn"},
			network: fakeNetwork{links: []Link{ethernet, orphan}, routes: office()},
			product: "openvpn", want: "yes/yes/no/no NONE NONE", v4: noScope, v6: noScope,
			contradictions: []string{"vpn.clients[openvpn].interface_operational"}},
		{name: "the address of a disconnected adapter counts for nothing", files: openvpnFiles, running: fakeProcesses{"openvpn"},
			network: fakeNetwork{links: []Link{ethernet, {Index: 9, Name: "tun0", Kind: "tun", Addresses: prefixes("10.8.0.6/24", "2001:db8:9::6/64")}}, routes: office()},
			product: "openvpn", want: "yes/yes/no/no NONE NONE", v4: noScope, v6: noScope,
			contradictions: []string{"vpn.clients[openvpn].interface_operational"}},
		{name: "systemd says active, no process is there", files: openvpnFiles, bus: fakeBus{units: map[string]bool{"openvpn-client@*.service": true}},
			network: fakeNetwork{links: []Link{ethernet}, routes: office()},
			product: "openvpn", want: "yes/no/no/no NONE NONE", v4: noScope, v6: noScope,
			contradictions: []string{"vpn.clients[openvpn].service_running"}},
		{name: "wg-quick, table 51820: all of IPv4, IPv6 leaks", files: fstest.MapFS{"usr/bin/wg": {}},
			network: fakeNetwork{links: []Link{ethernet, wgTunnel}, wireguard: fresh,
				routes: map[string]Route{"0.0.0.0/0": {LinkIndex: 8, Table: 51820}, "::/0": {LinkIndex: 2}}},
			product: "wireguard", want: "yes/yes/yes/yes FULL NONE", v4: fullScope, v6: noScope},
		{name: "WireGuard without a handshake is up and not alive", files: fstest.MapFS{"usr/bin/wg": {}},
			network: fakeNetwork{links: []Link{ethernet, wgTunnel}, wireguard: stale, routes: office()},
			product: "wireguard", want: "yes/yes/yes/no SPLIT NONE", v4: splitScope, v6: noScope},
		{name: "WireGuard of the kernel alone, no tools", files: fstest.MapFS{},
			network: fakeNetwork{links: []Link{ethernet, wgTunnel}, wireguard: fresh, routes: office()},
			product: "wireguard", want: "no/yes/yes/yes SPLIT NONE", v4: splitScope, v6: noScope},
		{name: "WireGuard in a process of its own", files: fstest.MapFS{},
			network: fakeNetwork{links: []Link{ethernet, {Index: 8, Name: "utun4", Kind: "tun", Up: true, Running: true}}, wireguard: fresh, routes: office()},
			product: "wireguard", want: "no/yes/yes/yes NONE NONE", v4: noScope, v6: noScope},
		{name: "strongSwan, table 220 and its policy", files: strongswan, running: fakeProcesses{"charon"},
			network: fakeNetwork{links: []Link{ethernet}, routes: table220, policies: full},
			product: "strongswan", want: "yes/yes/yes/? FULL NONE", v4: fullScope, v6: noScope},
		{name: "strongSwan, table 220 without a policy is no tunnel", files: strongswan, running: fakeProcesses{"charon"},
			network: fakeNetwork{links: []Link{ethernet}, routes: table220},
			product: "strongswan", want: "yes/yes/no/no NONE NONE", v4: noScope, v6: noScope},
		{name: "strongSwan's policy, but packets leave from another address", files: strongswan, running: fakeProcesses{"charon"},
			network: fakeNetwork{links: []Link{ethernet}, routes: office(), policies: full},
			product: "strongswan", want: "yes/yes/yes/? SPLIT NONE", v4: splitScope, v6: noScope},
		{name: "strongSwan to one network", files: strongswan, running: fakeProcesses{"charon"},
			network: fakeNetwork{links: []Link{ethernet}, routes: table220, policies: network},
			product: "strongswan", want: "yes/yes/yes/? SPLIT NONE", v4: splitScope, v6: noScope},
		{name: "a narrower policy lets traffic by", files: strongswan, running: fakeProcesses{"charon"},
			network: fakeNetwork{links: []Link{ethernet}, routes: table220, policies: append(full,
				IPsecPolicy{Direction: "out", Source: prefixes("10.10.0.5/32")[0], Destination: prefixes("9.0.0.0/8")[0]})},
			product: "strongswan", want: "yes/yes/yes/? SPLIT NONE", v4: splitScope, v6: noScope},
		{name: "NetworkManager runs OpenVPN", files: nmFiles, running: fakeProcesses{"NetworkManager", "openvpn"},
			bus:     fakeBus{connections: []BusConnection{managed}},
			network: fakeNetwork{links: []Link{ethernet, tunnel}, routes: through(9, office(), "0.0.0.0/0")},
			product: "networkmanager", want: "yes/yes/yes/yes FULL NONE", v4: fullScope, v6: noScope},
		{name: "what NetworkManager knows of OpenVPN", files: nmFiles, running: fakeProcesses{"NetworkManager", "openvpn"},
			bus:     fakeBus{connections: []BusConnection{managed}},
			network: fakeNetwork{links: []Link{ethernet, tunnel}, routes: through(9, office(), "0.0.0.0/0")},
			product: "openvpn", want: "yes/yes/yes/yes FULL NONE", v4: fullScope, v6: noScope},
		{name: "NetworkManager is still connecting", files: nmFiles, running: fakeProcesses{"NetworkManager", "openvpn"},
			bus:     fakeBus{connections: []BusConnection{{Type: "vpn", Service: managed.Service}}},
			network: fakeNetwork{links: []Link{ethernet}, routes: office()},
			product: "networkmanager", want: "yes/yes/no/no NONE NONE", v4: noScope, v6: noScope},
		{name: "NetworkManager says active, interface and route say no", files: nmFiles, running: fakeProcesses{"NetworkManager", "openvpn"},
			bus:     fakeBus{connections: []BusConnection{managed}},
			network: fakeNetwork{links: []Link{ethernet, orphan}, routes: office()},
			product: "networkmanager", want: "yes/yes/no/yes NONE NONE", v4: noScope, v6: noScope,
			contradictions: []string{"vpn.clients[networkmanager].interface_operational", "vpn.clients[networkmanager].session_alive",
				"vpn.clients[openvpn].interface_operational", "vpn.clients[openvpn].session_alive", "vpn.scope_v4"}},
		{name: "a tunnel of a client that is not in the catalogue", files: fstest.MapFS{},
			network: fakeNetwork{links: []Link{ethernet, {Index: 9, Name: "nordlynx", Kind: "tun", Up: true, Running: true, Addresses: prefixes("10.5.0.2/32")}},
				routes: through(9, office(), "0.0.0.0/0")},
			product: "unlisted", want: "?/?/yes/? FULL NONE", v4: fullScope, v6: noScope},
		{name: "a tun0 where OpenVPN is not installed is not OpenVPN's", files: fstest.MapFS{},
			network: fakeNetwork{links: []Link{ethernet, tunnel}, routes: office()},
			product: "unlisted", want: "?/?/yes/? SPLIT NONE", v4: splitScope, v6: noScope},
		{name: "IPv4 over an IPv6-only mobile network is no VPN", files: openvpnFiles,
			network: fakeNetwork{links: []Link{ethernet, {Index: 9, Name: "clat4", Kind: "tun", Up: true, Running: true, Addresses: prefixes("192.0.0.1/32")}},
				routes: through(9, office(), "0.0.0.0/0")},
			product: "openvpn", want: "yes/no/no/no NONE NONE", v4: noScope, v6: noScope},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := Host{Files: c.files, Network: c.network, Processes: c.running, Bus: c.bus}
			got := observe(t, h, vpnProbe(nil)).Vpn
			wantState(t, got.Reading, observed)
			wantState(t, got.RoutingReading, observed)
			client := clientOf(t, got, c.product)
			wantState(t, client.Reading, observed)
			if facts(client) != c.want {
				t.Errorf("%s is %s\nwant %s", c.product, facts(client), c.want)
			}
			if got.ScopeV4 != c.v4 || got.ScopeV6 != c.v6 {
				t.Errorf("all tunnels: %s, %s", got.ScopeV4, got.ScopeV6)
			}
			var subjects []string
			for _, client := range got.Clients {
				for _, contradiction := range client.Contradictions {
					subjects = append(subjects, contradiction.Subject)
				}
			}
			for _, contradiction := range got.Contradictions {
				subjects = append(subjects, contradiction.Subject)
			}
			slices.Sort(subjects)
			if !slices.Equal(subjects, c.contradictions) {
				t.Errorf("contradictions %q\nwant %q", subjects, c.contradictions)
			}
		})
	}
}

func TestVPNVersionAndAbsentClients(t *testing.T) {
	h := Host{Files: openvpnFiles, Network: fakeNetwork{links: []Link{ethernet}, routes: office()}, Processes: fakeProcesses{}, Bus: fakeBus{}}
	got := observe(t, h, vpnProbe(nil)).Vpn
	if len(got.Clients) != 1 || got.Clients[0].Version != "2.6.14-0+deb12u2" {
		t.Errorf("clients %v: want OpenVPN alone, with its version", got.Clients)
	}
}

func TestVPNWithoutRightsIsUnknown(t *testing.T) {
	t.Run("IPsec policies", func(t *testing.T) {
		h := Host{Files: fstest.MapFS{"usr/lib/ipsec/charon": {}}, Processes: fakeProcesses{"charon"}, Bus: fakeBus{},
			Network: fakeNetwork{links: []Link{ethernet}, routes: office(), policiesErr: errNoRights}}
		got := observe(t, h, vpnProbe(nil)).Vpn
		wantState(t, got.Reading, observed)
		wantState(t, got.RoutingReading, failed)
		client := clientOf(t, got, "strongswan")
		wantState(t, client.Reading, failed)
		if facts(client) != "yes/yes/?/? UNSPECIFIED UNSPECIFIED" || got.ScopeV4 != noAnswer || got.ScopeV6 != noAnswer {
			t.Errorf("strongSwan is %s, all tunnels %s, %s", facts(client), got.ScopeV4, got.ScopeV6)
		}
	})
	t.Run("WireGuard", func(t *testing.T) {
		h := Host{Files: fstest.MapFS{"usr/bin/wg": {}}, Processes: fakeProcesses{}, Bus: fakeBus{},
			Network: fakeNetwork{links: []Link{ethernet, wgTunnel}, routes: office(), wireguardErr: errNoRights}}
		client := clientOf(t, observe(t, h, vpnProbe(nil)).Vpn, "wireguard")
		wantState(t, client.Reading, failed)
		if facts(client) != "yes/yes/yes/? SPLIT NONE" || !strings.Contains(client.Reading.Reason, "not permitted") {
			t.Errorf("WireGuard is %s: %s", facts(client), client.Reading.Reason)
		}
	})
	t.Run("nothing at all", func(t *testing.T) {
		wantState(t, observe(t, Host{}, vpnProbe(nil)).Vpn.Reading, failed)
	})
}

func TestAdministratorExtendsTheCatalogue(t *testing.T) {
	files := with(openvpnFiles, fstest.MapFS{
		"opt/example/vpnd": {},
		catalogueFile:      file(`[{"product": "example", "programs": ["opt/example/vpnd"], "processes": ["vpnd"], "links": [{"kind": "tun", "prefix": "exa"}]}]`),
	})
	link := Link{Index: 9, Name: "exa0", Kind: "tun", Up: true, Running: true, Addresses: prefixes("10.1.0.2/24")}
	h := Host{Files: files, Processes: fakeProcesses{"vpnd"}, Bus: fakeBus{},
		Network: fakeNetwork{links: []Link{ethernet, link}, routes: through(9, office(), "0.0.0.0/0")}}
	if got := facts(clientOf(t, observe(t, h, vpnProbe(nil)).Vpn, "example")); got != "yes/yes/yes/? FULL NONE" {
		t.Errorf("example is %s", got)
	}
	for _, nonsense := range []string{"", "{}", `[{}]`, `[{"product": "a", "programms": []}]`, `[{"product": "a", "programs": ["/usr/bin/a"]}]`} {
		h.Files = with(openvpnFiles, fstest.MapFS{catalogueFile: file(nonsense)})
		got := observe(t, h, vpnProbe(nil)).Vpn
		wantState(t, got.Reading, failed)
	}
}

func TestCanariesLieInEveryQuarter(t *testing.T) {
	v4, v6 := canaries()
	quarters := map[byte]bool{}
	for _, a := range v4 {
		quarters[a.As4()[0]>>6] = true
	}
	if len(quarters) != 4 || slices.ContainsFunc(v4, netip.Addr.IsPrivate) {
		t.Errorf("IPv4 canaries %v", v4)
	}
	for _, a := range v6 {
		if !netip.MustParsePrefix("2000::/3").Contains(a) {
			t.Errorf("IPv6 canary %s is not a public address", a)
		}
	}
}

func FuzzVPNCatalogue(f *testing.F) {
	f.Add(shippedCatalogue)
	f.Add([]byte(`[{"product":"a","programs":["../x"]}]`))
	f.Fuzz(func(t *testing.T, content []byte) {
		products, err := parseCatalogue(content)
		for _, p := range products {
			if err == nil && p.Product == "" {
				t.Error("took a product without a name")
			}
		}
	})
}
