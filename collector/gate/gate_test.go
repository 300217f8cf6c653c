//go:build linux

package main_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"pfoertner/internal/e2e"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

const (
	soon = 10 * time.Second
	// still is how long nothing must get through to count as silence.
	still = 300 * time.Millisecond
)

// site is a notebook, a gateway with a real OpenVPN server and the gate under
// test, and behind it a network with the collector in it.
type site struct {
	notebook, gateway, lan *e2e.Namespace
	vpn                    *e2e.VPN
	collector              *fakeCollector
	device                 *e2e.Identity
	dir, config            string
	server                 *e2e.Program
	gate                   *e2e.Program

	// Traffic of the notebook: to the network, to what quarantine leaves open,
	// and to the gateway itself; IPv6 to the network.
	network, remedy, own, network6 *e2e.Prober
}

func serves(id *e2e.Identity) func() (*tls.Certificate, error) {
	return func() (*tls.Certificate, error) { return id.TLS(), nil }
}

// gateBinary is the released gate, built once for all tests.
var gateBinary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "pfg-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		gateBinary = filepath.Join(dir, "pfoertner-gate")
		if out, err := exec.Command("go", "build", "-o", gateBinary, ".").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building the gate: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// newSite starts everything but the gate and the client.
func newSite(t *testing.T, vpnLines ...string) *site {
	t.Helper()
	return newSiteAt(t, "203.0.113.1", vpnLines...)
}

// newSiteAt is newSite with another outer address of the gateway.
func newSiteAt(t *testing.T, outer string, vpnLines ...string) *site {
	t.Helper()
	e2e.Require(t, "openvpn", "nft", "sysctl")
	s := &site{
		notebook: e2e.NewNamespace(t, "notebook"), gateway: e2e.NewNamespace(t, "gateway"), lan: e2e.NewNamespace(t, "lan"),
		dir: t.TempDir(),
	}
	e2e.Cable(t, e2e.End{In: s.notebook, Device: "eth0", Addresses: []string{"203.0.113.2/24", "2001:db8::2/64"}},
		e2e.End{In: s.gateway, Device: "wan0", Addresses: []string{"203.0.113.1/24", "2001:db8::1/64"}})
	e2e.Cable(t, e2e.End{In: s.lan, Device: "eth0", Addresses: []string{"10.9.0.2/16", "10.9.0.3/16", "fd00:9::2/32"}},
		e2e.End{In: s.gateway, Device: "lan0", Addresses: []string{"10.9.0.1/16", "fd00:9::1/32"}})
	s.lan.IP(t, "route", "add", "default", "via", "10.9.0.1")
	s.lan.IP(t, "-6", "route", "add", "default", "via", "fd00:9::1")
	s.gateway.Forward(t)

	s.vpn = e2e.NewVPN(t, netip.MustParseAddr(outer))
	s.vpn.WriteServer(t, vpnLines...)
	s.device = s.vpn.Authority.Issue(t, e2e.Subject{CommonName: "notebook-4711", Client: true})
	s.server = s.vpn.StartServer(t, s.gateway)

	servers, gates := e2e.NewAuthority(t, "servers"), e2e.NewAuthority(t, "gates")
	s.collector = newFakeCollector(t, s.lan, netip.MustParseAddrPort("10.9.0.3:7602"), servers, gates)
	pki := filepath.Join(s.dir, "pki")
	if err := os.Mkdir(pki, 0o700); err != nil {
		t.Fatal(err)
	}
	servers.Write(t, pki, "server-ca")
	gates.Issue(t, e2e.Subject{CommonName: "g1", URI: "urn:pfoertner:gate:g1", Client: true}).Write(t, pki, "gate")
	s.configure(t, "degraded: deny\n")

	for _, p := range []struct {
		into    **e2e.Prober
		at      *e2e.Namespace
		address string
	}{
		{&s.network, s.lan, "10.9.0.2:7"}, {&s.remedy, s.lan, "10.9.0.3:7"},
		{&s.own, s.gateway, "10.8.0.1:7"}, {&s.network6, s.lan, "[fd00:9::2]:7"},
	} {
		*p.into = e2e.StartProber(t, s.notebook, e2e.StartEcho(t, p.at, netip.MustParseAddrPort(p.address)))
	}
	return s
}

func (s *site) configure(t *testing.T, lines string) {
	t.Helper()
	s.config = filepath.Join(s.dir, "gate.yaml")
	text := fmt.Sprintf(`collectors: ["10.9.0.3:7602"]
pki: %s
state: %s
openvpn:
  - config: %s
    management: %s
quarantine:
  destinations: [10.9.0.3]
  stay: 1m
health: ""
log: {level: debug}
`, filepath.Join(s.dir, "pki"), filepath.Join(s.dir, "state"), s.vpn.ServerConfig(), s.vpn.Management())
	if err := os.WriteFile(s.config, []byte(text+lines), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *site) startGate(t *testing.T) {
	t.Helper()
	s.gate = e2e.Start(t, "gate", s.gateway.Command(context.Background(), gateBinary, "run", "--config", s.config))
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	s.gate.Await(t, ctx, "collector found")
	s.gate.Await(t, ctx, "vpn server attached")
}

// connect starts a client and waits until traffic flows to the network.
func (s *site) connect(t *testing.T, lines ...string) *e2e.Program {
	t.Helper()
	client := s.vpn.StartClient(t, s.notebook, s.device, lines...)
	s.network.AwaitFlow(t, soon)
	return client
}

// closed fails when anything of the notebook's gets through within a while.
func (s *site) closed(t *testing.T, probers ...*e2e.Prober) {
	t.Helper()
	for _, p := range probers {
		before, _ := p.Arrived()
		if e2e.Eventually(t, still, func() bool { now, _ := p.Arrived(); return now != before }) {
			t.Error("packets get through")
		}
	}
}

func says(t *testing.T, p *e2e.Program, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	p.Await(t, ctx, text)
}

func TestAdmittedDeviceReachesTheNetwork(t *testing.T) {
	s := newSite(t)
	s.collector.set(s.device, admit)
	s.startGate(t)
	client := s.connect(t, "explicit-exit-notify 1")
	s.network6.AwaitFlow(t, soon)
	s.own.AwaitFlow(t, soon)
	// Leases are renewed: traffic flows on after the first has ended.
	time.Sleep(2 * s.collector.ttl)
	s.network.AwaitFlow(t, time.Second)
	client.Stop(syscall.SIGTERM)
	s.collector.reported(t, "the end of the session", func(e *gatev1.SessionEvent) bool { return e.GetDown() != nil })
}

func TestUnknownCertificateIsRefusedAndNeverSendsAPacket(t *testing.T) {
	s := newSite(t)
	s.startGate(t)
	client := s.vpn.StartClient(t, s.notebook, s.device)
	says(t, client, "AUTH_FAILED,Kein Zugang: Übergangsfrist abgelaufen. Vorgangsnummer: 7K4-QX2")
	for _, p := range []*e2e.Prober{s.network, s.remedy, s.own, s.network6} {
		if n, _ := p.Arrived(); n != 0 {
			t.Errorf("%d packets got through", n)
		}
	}
}

func TestQuarantineReachesOnlyWhatItMay(t *testing.T) {
	s := newSite(t)
	s.collector.set(s.device, quarantine)
	s.startGate(t)
	s.vpn.StartClient(t, s.notebook, s.device)
	s.remedy.AwaitFlow(t, soon)
	s.closed(t, s.network, s.network6, s.own)

	// It rises and falls without a new session.
	s.collector.set(s.device, admit)
	s.network.AwaitFlow(t, soon)
	s.network6.AwaitFlow(t, soon)
	told := s.collector.set(s.device, quarantine)
	last := s.network.AwaitSilence(t, still, soon)
	t.Logf("quarantined %s after the collector's word", last.Sub(told))
	s.remedy.AwaitFlow(t, soon)
	s.closed(t, s.network, s.network6, s.own)
	confirmed := s.collector.reported(t, "the cut", cutConfirmed(quarantine)).GetCutConfirmed()
	if d := confirmed.GetPacketsCutAfter().AsDuration(); d <= 0 || d > time.Second || confirmed.GetSequence() == 0 {
		t.Errorf("confirmed %v", confirmed)
	}
}

func TestLiveSessionIsCut(t *testing.T) {
	for _, c := range []struct {
		name, outer string
		hostile     bool
	}{
		{"client that does as it is told", "203.0.113.1", false},
		{"hostile client", "203.0.113.1", true},
		// OpenVPN's kill does not know IPv6: the session is named otherwise.
		{"hostile client that comes by IPv6", "2001:db8::1", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSiteAt(t, c.outer)
			s.collector.set(s.device, admit)
			s.startGate(t)
			client := s.connect(t)
			s.network6.AwaitFlow(t, soon)
			if c.hostile {
				e2e.Hostile(t, s.notebook, s.vpn.Port)
			}
			told := s.collector.set(s.device, deny)
			last := s.network.AwaitSilence(t, still, soon)
			s.network6.AwaitSilence(t, still, soon)
			t.Logf("last packet %s after the collector's word", last.Sub(told))
			if late := last.Sub(told); late > 500*time.Millisecond {
				t.Errorf("the last packet came %s after the collector's word", late)
			}
			s.closed(t, s.network, s.remedy, s.own, s.network6)
			confirmed := s.collector.reported(t, "the cut", cutConfirmed(deny)).GetCutConfirmed()
			t.Logf("packets cut after %s, session gone after %s",
				confirmed.GetPacketsCutAfter().AsDuration(), confirmed.GetSessionGoneAfter().AsDuration())
			if d := confirmed.GetSessionGoneAfter().AsDuration(); d > 2*time.Second {
				t.Errorf("the session was gone after %s", d)
			}
			if !c.hostile {
				says(t, client, "Vorgangsnummer: 7K4-QX2")
			}
		})
	}
}

// auth-gen-token lets a client back in without asking: the gate does not start
// beside it, and cuts such a session all the same.
func TestTokenReconnectDoesNotPass(t *testing.T) {
	t.Run("refused at start", func(t *testing.T) {
		s := newSite(t, "auth-gen-token 3600")
		out, err := s.gateway.Command(t.Context(), gateBinary, "run", "--config", s.config).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "external-auth") || !strings.Contains(string(out), "server.conf:") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("cut when it happens", func(t *testing.T) {
		s := newSite(t, "auth-gen-token 3600")
		s.hideFromReview(t, "auth-gen-token")
		s.collector.set(s.device, admit)
		s.startGate(t)
		password := filepath.Join(s.dir, "password")
		if err := os.WriteFile(password, []byte("user\nword\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		client := s.connect(t, "auth-user-pass "+password, "auth-nocache")
		s.collector.set(s.device, admit)
		if err := syscall.Kill(client.PID(), syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		s.collector.reported(t, "the session that nobody admitted", alarm("unadmitted_session"))
		s.collector.reported(t, "the cut", cutConfirmed(deny))
	})
}

// hideFromReview gives the gate a configuration to review that lacks a line
// which the running server has.
func (s *site) hideFromReview(t *testing.T, line string) {
	t.Helper()
	text, err := os.ReadFile(s.vpn.ServerConfig())
	if err != nil {
		t.Fatal(err)
	}
	var rest []string
	for l := range strings.Lines(string(text)) {
		if !strings.HasPrefix(l, line) {
			rest = append(rest, l)
		}
	}
	if err := os.WriteFile(s.vpn.ServerConfig(), []byte(strings.Join(rest, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestKilledGateClosesByItselfAndMatchesAfterwards(t *testing.T) {
	s := newSite(t)
	s.collector.set(s.device, admit)
	s.startGate(t)
	s.connect(t)
	killed := time.Now()
	s.gate.Kill()
	last := s.network.AwaitSilence(t, still, soon)
	t.Logf("closed %s after the gate was killed", last.Sub(killed))
	if held := last.Sub(killed); held > s.collector.ttl+200*time.Millisecond {
		t.Errorf("open for %s with a lease of %s", held, s.collector.ttl)
	}
	s.remedy.AwaitFlow(t, soon)
	s.startGate(t)
	s.network.AwaitFlow(t, soon)
	if strings.Contains(s.gate.Output(), "unadmitted") {
		t.Error("the session was not recognised")
	}
}

// A gate that is restarted within a lease is not noticed: the packet filter
// drops nothing meanwhile, and nothing is cut.
func TestQuickRestartIsNotNoticed(t *testing.T) {
	s := newSite(t)
	s.collector.ttl = 10 * time.Second
	s.collector.set(s.device, admit)
	s.startGate(t)
	s.connect(t)
	s.network6.AwaitFlow(t, soon)
	told := time.Now()
	dropped := func() string {
		list := s.gateway.Run(t, "nft", "list", "table", "inet", "pfoertner")
		return strings.Join(regexp.MustCompile(`counter packets \d+`).FindAllString(list, -1), ", ")
	}
	counted := dropped()
	s.gate.Stop(syscall.SIGTERM)
	s.network.AwaitFlow(t, time.Second)
	between := dropped()
	s.startGate(t)
	s.collector.reported(t, "the session again", func(e *gatev1.SessionEvent) bool {
		return e.GetUp() != nil && e.GetAt().AsTime().After(told)
	})
	s.network.AwaitFlow(t, time.Second)
	if between != counted {
		t.Errorf("dropped before %s, without a gate %s", counted, between)
	}
	// Installing the table begins its counters anew.
	if after := dropped(); strings.ContainsAny(after, "123456789") {
		t.Errorf("dropped by the next gate: %s", after)
	}
	for _, e := range s.collector.allEvents() {
		if e.GetCutConfirmed() != nil || e.GetAlarm() != nil || e.GetDown() != nil {
			t.Errorf("reported %v", e)
		}
	}
}

// A journal that is torn is none: what is up is not recognised, and cut.
func TestTornJournalCutsLiveSessions(t *testing.T) {
	s := newSite(t)
	s.collector.set(s.device, admit)
	s.startGate(t)
	s.connect(t, "connect-retry 60")
	s.gate.Kill()
	if err := os.WriteFile(filepath.Join(s.dir, "state", "sessions.json"), []byte(`{"version": 1, "sess`), 0o600); err != nil {
		t.Fatal(err)
	}
	s.startGate(t)
	s.network.AwaitSilence(t, still, soon)
	s.collector.reported(t, "the session", alarm("unadmitted_session"))
	s.collector.reported(t, "the cut", cutConfirmed(deny))
	s.closed(t, s.network, s.remedy)
}

func TestDeadCollector(t *testing.T) {
	s := newSite(t)
	s.collector.set(s.device, admit)
	s.startGate(t)
	client := s.connect(t)
	died := time.Now()
	s.collector.stop()
	last := s.network.AwaitSilence(t, still, soon)
	t.Logf("quarantined %s after the collector died", last.Sub(died))
	if held := last.Sub(died); held < s.collector.ttl/3 || held > s.collector.ttl+200*time.Millisecond {
		t.Errorf("held %s with a lease of %s", held, s.collector.ttl)
	}
	s.remedy.AwaitFlow(t, soon)
	s.closed(t, s.network, s.own)

	// A new session is refused.
	client.Stop(syscall.SIGTERM)
	refused := s.vpn.StartClient(t, s.notebook, s.device)
	says(t, refused, "AUTH_FAILED,Kein Zugang: Die Zugangsprüfung ist zurzeit nicht erreichbar.")

	// When the collector is back nothing else has to be started again.
	s.collector.start(t)
	s.connect(t)
}

func TestDeadCollectorAndBackInTime(t *testing.T) {
	s := newSite(t)
	s.collector.set(s.device, admit)
	s.startGate(t)
	s.connect(t)
	s.collector.stop()
	s.network.AwaitSilence(t, still, soon)
	s.collector.start(t)
	s.network.AwaitFlow(t, soon) // the same session rises again
}

func TestKnownDevicesGetQuarantineWithoutACollector(t *testing.T) {
	s := newSite(t)
	s.configure(t, "degraded: quarantine_known\n")
	s.collector.set(s.device, admit)
	stranger := s.vpn.Authority.Issue(t, e2e.Subject{CommonName: "private", Client: true})
	s.startGate(t)
	s.collector.stop()
	client := s.vpn.StartClient(t, s.notebook, s.device)
	s.remedy.AwaitFlow(t, soon)
	s.closed(t, s.network, s.own)
	client.Stop(syscall.SIGTERM)
	says(t, s.vpn.StartClient(t, s.notebook, stranger), "AUTH_FAILED,Kein Zugang")
	s.closed(t, s.remedy)
}

// At the renegotiation of keys the gate asks again.
func TestRenegotiationAsksAgain(t *testing.T) {
	// OpenVPN waits for an answer half as long, in whole seconds.
	s := newSite(t, "reneg-sec 6")
	s.collector.set(s.device, admit)
	s.startGate(t)
	s.connect(t)
	says(t, s.server, "VERIFY OK")
	if !e2e.Eventually(t, soon, func() bool { s.collector.mu.Lock(); defer s.collector.mu.Unlock(); return s.collector.asked >= 2 }) {
		t.Fatal("the collector was not asked again")
	}
	s.network.AwaitFlow(t, soon)
}

func TestRestartedVPNServer(t *testing.T) {
	s := newSite(t)
	s.collector.set(s.device, admit)
	s.startGate(t)
	s.connect(t, "ping 1", "ping-restart 2").Kill()
	s.server.Kill()
	says(t, s.gate, "vpn server lost")
	s.collector.reported(t, "anything", func(e *gatev1.SessionEvent) bool { return e.GetUp() != nil })
	s.server = s.vpn.StartServer(t, s.gateway)
	s.connect(t)
}

func TestAskAndCheck(t *testing.T) {
	s := newSite(t)
	s.collector.set(s.device, quarantine)
	certificate, _ := s.device.Write(t, s.dir, "asked")
	out, err := s.gateway.Command(t.Context(), gateBinary, "ask", "--config", s.config, "--certificate", certificate).CombinedOutput()
	exit, ok := err.(*exec.ExitError)
	if !ok || exit.ExitCode() != 3 || !strings.Contains(string(out), "verdict      quarantine") || !strings.Contains(string(out), "7K4-QX2") {
		t.Errorf("ask: %v\n%s", err, out)
	}
	out, err = s.gateway.Command(t.Context(), gateBinary, "check", "--config", s.config).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "server.conf guards tun0") {
		t.Errorf("check: %v\n%s", err, out)
	}
	s.vpn.WriteServer(t, "duplicate-cn")
	out, err = s.gateway.Command(t.Context(), gateBinary, "check", "--config", s.config).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "UNSAFE") {
		t.Errorf("check: %v\n%s", err, out)
	}
}
