//go:build linux

package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pfoertner/internal/e2e"
)

const (
	// soon is how long anything may take that happens at once: a busy machine
	// must not fail a test.
	soon = 45 * time.Second
	// still is how long nothing must get through to count as silence.
	still = time.Second
	// pace is the interval of the traffic that tests watch, patience of questions
	// to the collector.
	pace     = 5 * time.Millisecond
	patience = 100 * time.Millisecond
)

// The addresses of the test network. Notebooks reach the gateway and the
// collector's listener for agents over the internet; administration, patch
// server and the collector's other side lie behind the gateway.
const (
	gatewayOutside   = "203.0.113.1"
	collectorOutside = "192.0.2.1"
	administration   = "10.9.2.2"
	administration6  = "fd00:9:2::2"
	collectorInside  = "10.9.3.2"
	patchServer      = "10.9.4.2"
	gatewayTunnel    = "10.8.0.1"
)

// programs is the directory of the programs under test: the collector and the
// gate, as they are released, and the test agent. They are built once for all
// tests; TestMain removes them.
var (
	programs string
	built    sync.Once
)

func buildPrograms(t testing.TB) {
	t.Helper()
	built.Do(func() {
		e2e.BuildProgram(t, filepath.Join(programs, "pfoertner-collector"), "pfoertner/collector")
		e2e.BuildProgram(t, filepath.Join(programs, "pfoertner-gate"), "pfoertner/collector/gate")
		e2e.BuildProgram(t, filepath.Join(programs, "testagent"), "pfoertner/agent/testagent")
	})
}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "pfoertner-e2e-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(programs)
		return m.Run()
	}())
}

// site is the test network: a notebook, a gateway with a real OpenVPN server
// and the gate, a collector, and the network that they guard.
type site struct {
	dir string

	notebook, gateway, inside *e2e.Namespace // inside is the collector's machine
	vpn                       *e2e.VPN
	// device is the notebook's VPN certificate, tree what its agent reads.
	device                 *e2e.Identity
	tree                   string
	collector, gate, agent *e2e.Program
	// office answers in the administration, collectorEcho on the collector's
	// machine.
	office, collectorEcho *e2e.Echo
	// What the notebook tries to reach all the time.
	administration, administration6, collectorSide, patches, gatewaySide *e2e.Prober
}

// quarantined is what quarantine leaves open, guarded what it closes.
func (s *site) quarantined() []*e2e.Prober { return []*e2e.Prober{s.collectorSide, s.patches} }
func (s *site) guarded() []*e2e.Prober {
	return []*e2e.Prober{s.administration, s.administration6, s.gatewaySide}
}
func (s *site) all() []*e2e.Prober { return append(s.quarantined(), s.guarded()...) }

// setting is what a test sets up otherwise.
type setting struct {
	// lease is the collector's; empty: its default.
	lease string
	// server has lines to add to the OpenVPN server's configuration.
	server []string
}

// newSite starts collector, OpenVPN and gate, and traffic that does not get
// through yet. The notebook is in the inventory; its agent does not run.
func newSite(t testing.TB, o setting) *site {
	t.Helper()
	s := newNetwork(t)
	s.initCollector(t, o)
	s.startCollector(t)
	s.vpn = e2e.NewVPN(t, netip.MustParseAddr(gatewayOutside))
	s.configureGateway(t, o.server...)
	s.vpn.StartServer(t, s.gateway)
	s.startTraffic(t)
	s.register(t)
	s.startGate(t)
	return s
}

// newNetwork lays the cables.
func newNetwork(t testing.TB) *site {
	t.Helper()
	e2e.Require(t, "openvpn", "nft", "sysctl", "ping", "go")
	buildPrograms(t)
	s := &site{
		dir:      t.TempDir(),
		notebook: e2e.NewNamespace(t, "notebook"), gateway: e2e.NewNamespace(t, "gateway"), inside: e2e.NewNamespace(t, "collector"),
	}
	e2e.Cable(t, e2e.End{In: s.notebook, Device: "eth0", Addresses: []string{"203.0.113.2/24"}},
		e2e.End{In: s.gateway, Device: "wan0", Addresses: []string{gatewayOutside + "/24"}})
	e2e.Cable(t, e2e.End{In: s.notebook, Device: "eth1", Addresses: []string{"192.0.2.2/24"}},
		e2e.End{In: s.inside, Device: "internet0", Addresses: []string{collectorOutside + "/24"}})
	s.gateway.Forward(t)
	s.behindGateway(t, s.inside, 3)
	return s
}

// behindGateway gives a machine its own wire to the gateway: 10.9.N.2 and
// fd00:9:N::2.
func (s *site) behindGateway(t testing.TB, machine *e2e.Namespace, n int) {
	t.Helper()
	e2e.Cable(t,
		e2e.End{In: machine, Device: "lan0", Addresses: []string{fmt.Sprintf("10.9.%d.2/24", n), fmt.Sprintf("fd00:9:%d::2/64", n)}},
		e2e.End{In: s.gateway, Device: fmt.Sprintf("lan%d", n), Addresses: []string{fmt.Sprintf("10.9.%d.1/24", n), fmt.Sprintf("fd00:9:%d::1/64", n)}})
	machine.IP(t, "route", "add", "10.0.0.0/8", "via", fmt.Sprintf("10.9.%d.1", n))
	machine.IP(t, "-6", "route", "add", "fd00::/16", "via", fmt.Sprintf("fd00:9:%d::1", n))
}

// startTraffic puts servers behind the gateway and lets the notebook try to
// reach them.
func (s *site) startTraffic(t testing.TB) {
	t.Helper()
	office, patches := e2e.NewNamespace(t, "office"), e2e.NewNamespace(t, "patches")
	s.behindGateway(t, office, 2)
	s.behindGateway(t, patches, 4)
	echo := func(in *e2e.Namespace, address string) *e2e.Echo {
		return e2e.StartEcho(t, in, netip.AddrPortFrom(netip.MustParseAddr(address), 7))
	}
	to := func(e *e2e.Echo) *e2e.Prober { return e2e.StartProberEvery(t, pace, s.notebook, e) }
	s.office = echo(office, administration)
	s.administration = to(s.office)
	s.administration6 = to(echo(office, administration6))
	s.collectorEcho = echo(s.inside, collectorInside)
	s.collectorSide = to(s.collectorEcho)
	s.patches = to(echo(patches, patchServer))
	s.gatewaySide = to(echo(s.gateway, gatewayTunnel))
}

// path is a file of this test.
func (s *site) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

func (s *site) write(t testing.TB, name, text string) string {
	t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return s.path(name)
}

// run runs one of the programs to its end and returns what it printed.
func (s *site) run(t testing.TB, in *e2e.Namespace, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	out, err := in.Command(ctx, filepath.Join(programs, program), args...).Output()
	if err != nil {
		said := ""
		if e, ok := err.(*exec.ExitError); ok {
			said = string(e.Stderr)
		}
		t.Fatalf("%s %v: %v\n%s%s", program, args, err, out, said)
	}
	return string(out)
}

// operator runs an operator's command on the collector's machine.
func (s *site) operator(t testing.TB, args ...string) string {
	t.Helper()
	return s.run(t, s.inside, "pfoertner-collector", append([]string{"--operator", s.path("operator"), "--lang", "de"}, args...)...)
}

// secondOperator runs it as another one.
func (s *site) secondOperator(t testing.TB, args ...string) string {
	t.Helper()
	return s.run(t, s.inside, "pfoertner-collector", append([]string{"--operator", s.path("second"), "--lang", "de"}, args...)...)
}

func (s *site) initCollector(t testing.TB, o setting) {
	t.Helper()
	config := fmt.Sprintf("state: %q\nlisten: {agents: ':7601', gates: '%s:7602', operators: '127.0.0.1:7603', health: '127.0.0.1:7604'}\nenrolments_per_minute: 1000\n",
		s.path("collector"), collectorInside)
	if o.lease != "" {
		config += "lease: " + o.lease + "\n"
	}
	file := s.write(t, "collector.yaml", config)
	s.run(t, s.inside, "pfoertner-collector", "init", "--config", file,
		"--name", collectorOutside+","+collectorInside+",127.0.0.1", "--operator-out", s.path("operator"))
	s.run(t, s.inside, "pfoertner-collector", "bundle", "gate", "vpn1", "--config", file, "--out", s.path("gate"))
	s.run(t, s.inside, "pfoertner-collector", "bundle", "operator", "second", "--config", file, "--out", s.path("second"))
}

// startCollector starts the collector and waits until it listens.
func (s *site) startCollector(t testing.TB) {
	t.Helper()
	s.collector = e2e.Start(t, "collector", s.inside.Command(context.Background(),
		filepath.Join(programs, "pfoertner-collector"), "serve", "--config", s.path("collector.yaml")))
	if !e2e.Eventually(t, soon, func() bool {
		conn, err := dial(s.inside, "127.0.0.1:7603")
		if err == nil {
			conn.Close()
		}
		return err == nil || s.collector.Ended()
	}) || s.collector.Ended() {
		t.Fatalf("the collector does not listen:\n%s", s.collector.Output())
	}
}

// dial opens a connection inside a namespace.
func dial(in *e2e.Namespace, address string) (conn net.Conn, err error) {
	err = in.Do(func() (err error) {
		conn, err = net.Dial("tcp", address)
		return err
	})
	return conn, err
}

// configureGateway sets the gateway up as docs/gateway.md says, file by file,
// with lines added to OpenVPN's.
func (s *site) configureGateway(t testing.TB, server ...string) {
	t.Helper()
	guide, err := os.ReadFile(filepath.Join("..", "..", "docs", "gateway.md"))
	if err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer(
		"/run/openvpn-server/pfoertner.sock", s.vpn.Management(),
		"/etc/openvpn/server/pfoertner.conf", s.vpn.ServerConfig(),
		"/etc/openvpn/server", s.vpn.Dir,
		"/etc/pfoertner-gate", s.path("gate"),
		"/var/lib/pfoertner-gate", s.path("gate-state"),
	)
	file := func(name string) string {
		block := regexp.MustCompile("(?s)```\\w*\n# " + regexp.QuoteMeta(name) + "\n(.*?)```").FindSubmatch(guide)
		if block == nil {
			t.Fatalf("docs/gateway.md has no %s", name)
		}
		return here.Replace(string(block[1]))
	}
	lines := file("/etc/openvpn/server/pfoertner.conf") + strings.Join(server, "\n") + "\n"
	if err := os.WriteFile(s.vpn.ServerConfig(), []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	s.write(t, "gate.yaml", file("/etc/pfoertner-gate/gate.yaml"))
	s.gateway.Run(t, "nft", "-f", s.write(t, "nftables.conf", file("/etc/nftables.conf")))
}

// startGate starts the gate and waits until it speaks with both sides.
func (s *site) startGate(t testing.TB) {
	t.Helper()
	s.gate = e2e.Start(t, "gate", s.gateway.Command(context.Background(),
		filepath.Join(programs, "pfoertner-gate"), "run", "--config", s.path("gate.yaml")))
	says(t, s.gate, "collector found")
	says(t, s.gate, "vpn server attached")
}

// says waits until a program has printed text.
func says(t testing.TB, p *e2e.Program, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	p.Await(t, ctx, text)
}

// closed fails when anything gets through within a while.
func closed(t testing.TB, probers ...*e2e.Prober) {
	t.Helper()
	before := make([]int64, len(probers))
	for i, p := range probers {
		before[i], _ = p.Arrived()
	}
	open := func() (to []string) {
		for i, p := range probers {
			if now, _ := p.Arrived(); now != before[i] {
				to = append(to, p.String())
			}
		}
		return to
	}
	if e2e.Eventually(t, still, func() bool { return len(open()) > 0 }) {
		t.Errorf("packets get through: %v", open())
	}
}

// never fails when anything has ever got through.
func never(t testing.TB, probers ...*e2e.Prober) {
	t.Helper()
	closed(t, probers...)
	for _, p := range probers {
		if n, _ := p.Arrived(); n != 0 {
			t.Errorf("packets got through: %s", p)
		}
	}
}

func flows(t testing.TB, probers ...*e2e.Prober) {
	t.Helper()
	for _, p := range probers {
		p.AwaitFlow(t, soon)
	}
}

// leave ends a client and waits until its traffic has.
func (s *site) leave(t testing.TB, client *e2e.Program) {
	t.Helper()
	client.Stop(syscall.SIGTERM)
	for _, p := range s.all() {
		p.AwaitSilence(t, still, soon)
	}
}
