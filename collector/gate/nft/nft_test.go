//go:build linux

package nft_test

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pfoertner/collector/gate/nft"
	"pfoertner/collector/gate/session"
	"pfoertner/internal/e2e"
)

// site is a gateway with two tunnels and a network behind it. The tunnels are
// cables named like tunnel interfaces: the filter sees no difference.
type site struct {
	notebook, other, gateway, lan *e2e.Namespace
	options                       nft.Options
}

const soon = 5 * time.Second

func newSite(t *testing.T) *site {
	e2e.Require(t, "nft", "conntrack", "sysctl")
	s := &site{
		notebook: e2e.NewNamespace(t, "notebook"), other: e2e.NewNamespace(t, "other"),
		gateway: e2e.NewNamespace(t, "gateway"), lan: e2e.NewNamespace(t, "lan"),
	}
	e2e.Cable(t, e2e.End{In: s.notebook, Device: "tun0", Addresses: []string{"10.8.0.2/24", "fd00:8::2/64"}},
		e2e.End{In: s.gateway, Device: "tun0", Addresses: []string{"10.8.0.1/24", "fd00:8::1/64"}})
	e2e.Cable(t, e2e.End{In: s.other, Device: "tun0", Addresses: []string{"10.8.1.2/24", "fd00:8:1::2/64"}},
		e2e.End{In: s.gateway, Device: "tun1", Addresses: []string{"10.8.1.1/24", "fd00:8:1::1/64"}})
	e2e.Cable(t, e2e.End{In: s.lan, Device: "eth0", Addresses: []string{"10.9.0.2/16", "10.9.0.3/16", "fd00:9::2/64", "fd00:9::3/64"}},
		e2e.End{In: s.gateway, Device: "lan0", Addresses: []string{"10.9.0.1/16", "fd00:9::1/64"}})
	s.neighbours(t, s.notebook, "tun0", "10.8.0.2", "fd00:8::2", "10.8.0.1", "fd00:8::1")
	s.neighbours(t, s.other, "tun1", "10.8.1.2", "fd00:8:1::2", "10.8.1.1", "fd00:8:1::1")
	for ns, via := range map[*e2e.Namespace][2]string{
		s.notebook: {"10.8.0.1", "fd00:8::1"}, s.other: {"10.8.1.1", "fd00:8:1::1"}, s.lan: {"10.9.0.1", "fd00:9::1"},
	} {
		ns.IP(t, "route", "add", "default", "via", via[0])
		ns.IP(t, "-6", "route", "add", "default", "via", via[1])
	}
	s.gateway.Forward(t)
	file, err := os.Open("/run/netns/" + s.gateway.Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	s.options = nft.Options{
		Devices:   []string{"tun0", "tun1"},
		Remedies:  []netip.Prefix{netip.MustParsePrefix("10.9.0.3/32"), netip.MustParsePrefix("fd00:9::3/128")},
		UDP:       []uint16{53},
		Namespace: int(file.Fd()),
	}
	return s
}

// neighbours tells both ends of a tunnel who is there: a tunnel has no
// neighbour discovery, and the filter would drop it.
func (s *site) neighbours(t *testing.T, client *e2e.Namespace, device, client4, client6, gateway4, gateway6 string) {
	t.Helper()
	mac := func(ns *e2e.Namespace, device string) string {
		return strings.Fields(ns.IP(t, "-o", "-br", "link", "show", device))[2]
	}
	clientMAC, gatewayMAC := mac(client, "tun0"), mac(s.gateway, device)
	for _, a := range []string{client4, client6} {
		s.gateway.IP(t, "neigh", "replace", a, "lladdr", clientMAC, "dev", device, "nud", "permanent")
	}
	for _, a := range []string{gateway4, gateway6} {
		client.IP(t, "neigh", "replace", a, "lladdr", gatewayMAC, "dev", "tun0", "nud", "permanent")
	}
}

func (s *site) open(t *testing.T) *nft.Filter {
	t.Helper()
	f, err := nft.Open(s.options)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// family is one of the two families in which everything has to hold.
type family struct {
	name                                                  string
	notebook, other, network, remedy, gateway, gatewayDNS string
}

var families = []family{
	{"IPv4", "10.8.0.2", "10.8.1.2", "10.9.0.2:7", "10.9.0.3:7", "10.9.0.1:7", "10.8.0.1:53"},
	{"IPv6", "fd00:8::2", "fd00:8:1::2", "[fd00:9::2]:7", "[fd00:9::3]:7", "[fd00:9::1]:7", "[fd00:8::1]:53"},
}

func apply(t *testing.T, f *nft.Filter, changes ...session.Access) {
	t.Helper()
	if err := f.Apply(changes); err != nil {
		t.Fatal(err)
	}
}

func admit(address string, d time.Duration) session.Access {
	return session.Access{Address: netip.MustParseAddr(address), Admit: d, Quarantine: d}
}

func quarantine(address string, d time.Duration) session.Access {
	return session.Access{Address: netip.MustParseAddr(address), Quarantine: d}
}

func nothing(address string) session.Access {
	return session.Access{Address: netip.MustParseAddr(address)}
}

// reach starts probers to destinations, by name.
func reach(t *testing.T, from, to *e2e.Namespace, addresses ...string) []*e2e.Prober {
	t.Helper()
	out := make([]*e2e.Prober, len(addresses))
	for i, a := range addresses {
		out[i] = e2e.StartProber(t, from, e2e.StartEcho(t, to, netip.MustParseAddrPort(a)))
	}
	return out
}

// quiet fails when anything gets through within a while.
func quiet(t *testing.T, what string, p *e2e.Prober) {
	t.Helper()
	before, _ := p.Arrived()
	if e2e.Eventually(t, 200*time.Millisecond, func() bool { now, _ := p.Arrived(); return now != before }) {
		t.Errorf("%s: packets get through", what)
	}
}

func TestWhatIsInNoSetGetsNowhere(t *testing.T) {
	s := newSite(t)
	s.open(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			behind := reach(t, s.notebook, s.lan, f.network, f.remedy)
			gateway := reach(t, s.notebook, s.gateway, f.gateway, f.gatewayDNS)
			back := reach(t, s.lan, s.notebook, netip.AddrPortFrom(netip.MustParseAddr(f.notebook), 9).String())
			for _, p := range slices.Concat(behind, gateway, back) {
				quiet(t, "unknown address", p)
			}
		})
	}
}

func TestAdmittedReachesTheNetworkAndIsCutInMilliseconds(t *testing.T) {
	s := newSite(t)
	filter := s.open(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			p := reach(t, s.notebook, s.lan, f.network)[0]
			apply(t, filter, admit(f.notebook, time.Minute))
			p.AwaitFlow(t, soon)
			cut := time.Now()
			apply(t, filter, nothing(f.notebook))
			done := time.Now()
			last := p.AwaitSilence(t, 300*time.Millisecond, soon)
			t.Logf("applied in %s, last packet after %s", done.Sub(cut), max(0, last.Sub(cut)))
			if late := last.Sub(done); late > 20*time.Millisecond {
				t.Errorf("a packet got through %s after the address was taken out", late)
			}
		})
	}
}

func TestQuarantineReachesOnlyTheRemedies(t *testing.T) {
	s := newSite(t)
	filter := s.open(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			apply(t, filter, quarantine(f.notebook, time.Minute))
			behind := reach(t, s.notebook, s.lan, f.network, f.remedy)
			gateway := reach(t, s.notebook, s.gateway, f.gateway, f.gatewayDNS)
			behind[1].AwaitFlow(t, soon)
			gateway[1].AwaitFlow(t, soon)
			quiet(t, "quarantine to the network", behind[0])
			quiet(t, "quarantine to the gateway", gateway[0])
			quiet(t, "network to quarantine", reach(t, s.lan, s.notebook, netip.AddrPortFrom(netip.MustParseAddr(f.notebook), 9).String())[0])
		})
	}
}

func TestFallToQuarantineCutsFlowsThatWereOpen(t *testing.T) {
	s := newSite(t)
	filter := s.open(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			apply(t, filter, admit(f.notebook, time.Minute))
			p := reach(t, s.notebook, s.lan, f.network, f.remedy)
			p[0].AwaitFlow(t, soon)
			p[1].AwaitFlow(t, soon)
			apply(t, filter, quarantine(f.notebook, time.Minute))
			p[0].AwaitSilence(t, 200*time.Millisecond, soon)
			p[1].AwaitFlow(t, soon)
		})
	}
}

func TestTunnelsNeverReachOneAnother(t *testing.T) {
	s := newSite(t)
	filter := s.open(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			apply(t, filter, admit(f.notebook, time.Minute), admit(f.other, time.Minute))
			reach(t, s.other, s.lan, f.network)[0].AwaitFlow(t, soon)
			quiet(t, "tunnel to tunnel", reach(t, s.notebook, s.other, netip.AddrPortFrom(netip.MustParseAddr(f.other), 9).String())[0])
		})
	}
}

func TestLeaseEndsByTheKernelsClock(t *testing.T) {
	s := newSite(t)
	filter := s.open(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			p := reach(t, s.notebook, s.lan, f.network, f.remedy)
			apply(t, filter, admit(f.notebook, time.Minute))
			p[0].AwaitFlow(t, soon) // neighbours have found one another
			const lease = time.Second
			begin := time.Now()
			apply(t, filter, session.Access{Address: netip.MustParseAddr(f.notebook), Admit: lease, Quarantine: time.Minute})
			p[0].AwaitFlow(t, soon)
			last := p[0].AwaitSilence(t, 300*time.Millisecond, soon)
			if held := last.Sub(begin); held < lease-50*time.Millisecond || held > lease+100*time.Millisecond {
				t.Errorf("a lease of %s held %s", lease, held)
			}
			p[1].AwaitFlow(t, soon) // and what is left is quarantine
		})
	}
}

// A lease that is renewed every few milliseconds never leaves a gap: not one
// packet is lost.
func TestRenewalLosesNoPacket(t *testing.T) {
	s := newSite(t)
	filter := s.open(t)
	apply(t, filter, admit("10.8.0.2", time.Second))
	p := reach(t, s.notebook, s.lan, "10.9.0.2:7")[0]
	p.AwaitFlow(t, soon)
	end := time.Now().Add(2 * time.Second)
	dropped := func() string { return s.gateway.Run(t, "nft", "list", "chain", "inet", "pfoertner", "from_tunnel") }
	before := dropped()
	renewals := 0
	for ; time.Now().Before(end); renewals++ {
		apply(t, filter, admit("10.8.0.2", 500*time.Millisecond))
	}
	p.AwaitFlow(t, soon)
	if after := dropped(); after != before {
		t.Errorf("%d renewals dropped packets:\nbefore %s\nafter %s", renewals, before, after)
	}
	if renewals < 20 {
		t.Errorf("only %d renewals: too few to say anything", renewals)
	}
}

// A renewal may meet the very moment in which the old element runs out.
func TestRenewalAtTheMomentOfExpiry(t *testing.T) {
	s := newSite(t)
	filter := s.open(t)
	for i := range 100 {
		d := time.Duration(i%10+1) * time.Millisecond
		apply(t, filter, admit("10.8.0.2", d), admit("fd00:8::2", d))
	}
	apply(t, filter, admit("10.8.0.2", time.Minute))
	reach(t, s.notebook, s.lan, "10.9.0.2:7")[0].AwaitFlow(t, soon)
}

func TestRemovingWhatIsNotThereIsFine(t *testing.T) {
	s := newSite(t)
	filter := s.open(t)
	apply(t, filter, nothing("10.8.0.77"), admit("10.8.0.2", time.Minute), nothing("fd00:8::77"))
	got, err := filter.Addresses()
	if want := []netip.Addr{netip.MustParseAddr("10.8.0.2")}; err != nil || !slices.Equal(got, want) {
		t.Errorf("addresses %v, %v, want %v", got, err, want)
	}
}

func TestAThousandLeasesInOneTransaction(t *testing.T) {
	s := newSite(t)
	filter := s.open(t)
	var all []session.Access
	for i := range 5000 {
		all = append(all, session.Access{Address: netip.AddrFrom4([4]byte{10, 8, byte(i >> 8), byte(i)}), Admit: time.Minute, Quarantine: time.Hour})
	}
	for _, what := range []string{"first", "renewed"} {
		begin := time.Now()
		apply(t, filter, all...)
		t.Logf("%s: %d leases in %s", what, len(all), time.Since(begin))
	}
	if got, err := filter.Addresses(); err != nil || len(got) != len(all) {
		t.Errorf("%d addresses, %v, want %d", len(got), err, len(all))
	}
}

// A gate that starts again takes over what the last one left: traffic flows on
// and ends when the lease does.
func TestRestartKeepsLeases(t *testing.T) {
	s := newSite(t)
	apply(t, s.open(t), admit("10.8.0.2", 2*time.Second))
	begin := time.Now()
	p := reach(t, s.notebook, s.lan, "10.9.0.2:7")[0]
	p.AwaitFlow(t, soon)
	s.options.Remedies = []netip.Prefix{netip.MustParsePrefix("10.9.0.2/32"), netip.MustParsePrefix("10.9.0.0/30")}
	filter := s.open(t)
	p.AwaitFlow(t, soon)
	last := p.AwaitSilence(t, 300*time.Millisecond, soon)
	if held := last.Sub(begin); held > 2200*time.Millisecond {
		t.Errorf("a lease of 2s held %s across a restart", held)
	}
	apply(t, filter, quarantine("10.8.0.2", time.Minute))
	p.AwaitFlow(t, soon) // by the new configuration it is a remedy
}

func TestTableOfAnotherShapeIsMadeAnew(t *testing.T) {
	s := newSite(t)
	s.gateway.Run(t, "nft", "add table inet pfoertner; add set inet pfoertner admit4 { type inet_service; }")
	filter := s.open(t)
	apply(t, filter, admit("10.8.0.2", time.Minute))
	reach(t, s.notebook, s.lan, "10.9.0.2:7")[0].AwaitFlow(t, soon)
}

func TestForeignTablesStayAndKeepTheirSay(t *testing.T) {
	s := newSite(t)
	s.gateway.Run(t, "nft", `add table inet firewall
add chain inet firewall forward { type filter hook forward priority 0; policy accept; }
add rule inet firewall forward ct state established accept
add rule inet firewall forward ip daddr 10.9.0.3 drop`)
	before := s.gateway.Run(t, "nft", "list", "table", "inet", "firewall")
	filter := s.open(t)
	apply(t, filter, admit("10.8.0.2", time.Minute))
	p := reach(t, s.notebook, s.lan, "10.9.0.2:7", "10.9.0.3:7")
	p[0].AwaitFlow(t, soon)
	quiet(t, "what the firewall drops", p[1])
	if after := s.gateway.Run(t, "nft", "list", "table", "inet", "firewall"); after != before {
		t.Errorf("the foreign table changed:\n%s\n%s", before, after)
	}
}

// Address translation lives on in connection tracking: after Forget the
// gateway knows nothing of the notebook's connections.
func TestForgetEndsTrackedConnections(t *testing.T) {
	s := newSite(t)
	s.gateway.Run(t, "nft", `add table inet translate
add chain inet translate out { type nat hook postrouting priority 100; }
add rule inet translate out oifname "lan0" masquerade`)
	filter := s.open(t)
	tracked := func() string {
		return s.gateway.Run(t, "conntrack", "-L", "-f", "ipv4") + s.gateway.Run(t, "conntrack", "-L", "-f", "ipv6")
	}
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			apply(t, filter, admit(f.notebook, time.Minute), admit(f.other, time.Minute))
			p := reach(t, s.notebook, s.lan, f.network)[0]
			p.AwaitFlow(t, soon)
			reach(t, s.other, s.lan, f.remedy)[0].AwaitFlow(t, soon)
			apply(t, filter, nothing(f.notebook))
			p.AwaitSilence(t, 100*time.Millisecond, soon)
			if err := filter.Forget([]netip.Addr{netip.MustParseAddr(f.notebook)}); err != nil {
				t.Fatal(err)
			}
			if left := tracked(); strings.Contains(left, "src="+f.notebook+" ") || !strings.Contains(left, "src="+f.other+" ") {
				t.Errorf("after forgetting %s and not %s:\n%s", f.notebook, f.other, left)
			}
		})
	}
}

func TestRulesReadAsDocumented(t *testing.T) {
	s := newSite(t)
	s.open(t)
	got := s.gateway.Run(t, "nft", "--stateless", "list", "table", "inet", "pfoertner")
	want, err := os.ReadFile("testdata/table.nft")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(string(want)), " ") {
		t.Errorf("the table differs from testdata/table.nft:\n%s", got)
	}
}

func TestOptionsThatGuardNothingAreRefused(t *testing.T) {
	for _, devices := range [][]string{nil, {""}, {"tunnel-with-a-long-name"}} {
		if _, err := nft.Open(nft.Options{Devices: devices}); err == nil {
			t.Errorf("devices %q were taken", devices)
		}
	}
}

func BenchmarkRenewThousand(b *testing.B) {
	e2e.Require(b, "nft")
	ns := e2e.NewNamespace(b, "bench")
	file, err := os.Open("/run/netns/" + ns.Name)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	f, err := nft.Open(nft.Options{Devices: []string{"tun0"}, Namespace: int(file.Fd())})
	if err != nil {
		b.Fatal(err)
	}
	all := make([]session.Access, 1000)
	for i := range all {
		all[i] = session.Access{Address: netip.AddrFrom4([4]byte{10, 8, byte(i >> 8), byte(i)}), Admit: time.Minute, Quarantine: time.Hour}
	}
	for b.Loop() {
		if err := f.Apply(all); err != nil {
			b.Fatal(err)
		}
	}
}
