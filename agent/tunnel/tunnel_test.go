package tunnel

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"pfoertner/agent/identity"
	"pfoertner/agent/probe"
	"pfoertner/agent/testcollector"
	"pfoertner/agent/uplink"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

const within = 20 * time.Second

// attempt is one call that reached the collector: where it came from, and what
// was proven.
type attempt struct {
	from      string
	addresses []string
	device    *x509.Certificate
	err       error // of the signature
}

// collector is the other end, on TCP with TLS: it answers as the test says.
type collector struct {
	agentv1.UnimplementedTunnelServiceServer
	t        testing.TB
	address  string
	attempts chan attempt

	mu sync.Mutex
	// answer is what a hello from an address gets; nil: a challenge, and a
	// result.
	answer func(from string) error
	short  bool // its nonce is too short
	state  *identity.State
	house  *testcollector.Collector
}

// start listens at address.
func start(t testing.TB) *collector {
	t.Helper()
	house := testcollector.New(t)
	c := &collector{t: t, attempts: make(chan attempt, 64), state: house.Enrolled(t, time.Hour), house: house}
	own := house.Servers.Issue(t, testcollector.Subject{URI: house.ServerURI, Server: true})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.address = listener.Addr().String()
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(mtls.ServerConfig(mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return own, nil },
		Clients:     house.Devices.Pool(), Role: mtls.RoleDevice,
	}))))
	agentv1.RegisterTunnelServiceServer(server, c)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	return c
}

func (c *collector) answers(f func(from string) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = f
}

// Prove implements agent.v1 TunnelService.
func (c *collector) Prove(stream agentv1.TunnelService_ProveServer) error {
	caller, _ := peer.FromContext(stream.Context())
	a := attempt{from: caller.Addr.(*net.TCPAddr).IP.String()}
	defer func() { c.attempts <- a }()
	m, err := stream.Recv()
	if err != nil || m.GetHello().GetAgentVersion() != "test" {
		c.t.Errorf("hello: %v, %v", m, err)
	}
	c.mu.Lock()
	answer, short := c.answer, c.short
	c.mu.Unlock()
	if answer != nil {
		if err := answer(a.from); err != nil {
			return err
		}
	}
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce)
	if short {
		nonce = nonce[:31]
	}
	_ = stream.Send(&agentv1.ProveResponse{Message: &agentv1.ProveResponse_Challenge{Challenge: &agentv1.TunnelChallenge{
		Nonce: nonce, Gateway: "vpn1", SessionId: "ovpn/7/x",
	}}})
	if m, err = stream.Recv(); err != nil {
		return err
	}
	var s agentv1.TunnelStatement
	if err := proto.Unmarshal(m.GetProof().GetStatement(), &s); err != nil || s.GetGateway() != "vpn1" || s.GetSessionId() != "ovpn/7/x" {
		c.t.Errorf("statement %v, %v", &s, err)
	}
	a.addresses = s.GetAddresses()
	exporter, err := mtls.Exporter(stream.Context())
	if err != nil {
		return err
	}
	_, cert, err := mtls.Peer(stream.Context(), mtls.RoleDevice)
	if err != nil {
		return err
	}
	a.device = cert
	a.err = attest.Verify(cert.PublicKey, attest.TunnelDigest(nonce, exporter, m.GetProof().GetStatement()), m.GetProof().GetSignature())
	return stream.Send(&agentv1.ProveResponse{Message: &agentv1.ProveResponse_Result{Result: &agentv1.TunnelResult{}}})
}

// next is the next attempt.
func (c *collector) next() attempt {
	c.t.Helper()
	select {
	case a := <-c.attempts:
		if a.err != nil {
			c.t.Errorf("the proof does not verify: %v", a.err)
		}
		return a
	case <-time.After(within):
		c.t.Fatal("nothing was proven")
	}
	return attempt{}
}

// quiet fails the test if anything is tried soon.
func (c *collector) quiet() {
	c.t.Helper()
	select {
	case a := <-c.attempts:
		c.t.Errorf("tried once more: %v", a)
	case <-time.After(150 * time.Millisecond):
	}
}

// machine has addresses that change.
type machine struct {
	mu  sync.Mutex
	now probe.Addresses
	err error
}

func (m *machine) look(context.Context) (probe.Addresses, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now, m.err
}

// has sets the machine's tunnels, each "link address…", beside its own address.
func (m *machine) has(tunnels ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = probe.Addresses{All: []netip.Addr{netip.MustParseAddr("192.0.2.20")}}
	for _, text := range tunnels {
		fields := strings.Fields(text)
		t := probe.TunnelAddresses{Link: fields[0]}
		for _, a := range fields[1:] {
			t.Addresses = append(t.Addresses, netip.MustParseAddr(a))
		}
		m.now.All = append(m.now.All, t.Addresses...)
		m.now.Tunnels = append(m.now.Tunnels, t)
	}
}

// idle is a prover that does not run.
func idle(c *collector, m *machine) *Prover {
	return New(Options{
		Target: uplink.Target{Address: c.address, Version: "test"}, State: c.state, Look: m.look,
		Log: slog.New(slog.DiscardHandler),
	})
}

// begin runs a prover on a machine until the test ends.
func begin(t testing.TB, c *collector, m *machine, change ...func(*Prover)) *Prover {
	t.Helper()
	p := idle(c, m)
	p.limiter = rate.NewLimiter(rate.Inf, 1)
	p.retry = func() *uplink.Backoff { return &uplink.Backoff{Floor: 5 * time.Millisecond} }
	for _, f := range change {
		f(p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { p.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return p
}

func TestANewTunnelIsProvenFromItsAddressOnce(t *testing.T) {
	c, m := start(t), &machine{}
	m.has()
	p := begin(t, c, m)
	c.quiet()
	m.has("lo 127.8.0.2")
	p.Changed()
	if a := c.next(); a.from != "127.8.0.2" || !slices.Equal(a.addresses, []string{"192.0.2.20", "127.8.0.2"}) {
		t.Errorf("proven: %v", a)
	}
	p.Changed() // another interface, a route
	c.quiet()
}

func TestWhatMakesATunnelBeProvenAgain(t *testing.T) {
	for name, happens := range map[string]func(m *machine, p *Prover) (from string){
		"the collector asks, or the stream begins anew": func(_ *machine, p *Prover) string {
			p.Wanted()
			return "127.8.0.2"
		},
		"its address changes": func(m *machine, p *Prover) string {
			m.has("lo 127.8.0.3")
			p.Changed()
			return "127.8.0.3"
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, m := start(t), &machine{}
			m.has("lo 127.8.0.2")
			p := begin(t, c, m)
			c.next()
			want := happens(m, p)
			if a := c.next(); a.from != want {
				t.Errorf("proven from %s, want %s", a.from, want)
			}
			c.quiet()
		})
	}
}

func TestATunnelThatCameBackIsNew(t *testing.T) {
	c, m := start(t), &machine{}
	p := idle(c, m)
	for range 2 {
		m.has("lo 127.8.0.2")
		p.look(t.Context())
		p.try(t.Context())
		c.next()
		m.has()
		p.look(t.Context())
		p.try(t.Context())
	}
	c.quiet()
}

func TestAProofIsTriedUntilTheGatewayHasReportedTheSession(t *testing.T) {
	c, m := start(t), &machine{}
	m.has("lo 127.8.0.2")
	left := 4
	c.answers(func(string) error {
		if left--; left > 0 {
			return status.Error(codes.NotFound, "not yet")
		}
		return nil
	})
	begin(t, c, m)
	for range 4 {
		c.next()
	}
	c.quiet()
}

func TestItGivesUpWhenNobodyKnowsTheSession(t *testing.T) {
	c, m := start(t), &machine{}
	m.has("lo 127.8.0.2")
	c.answers(func(string) error { return status.Error(codes.NotFound, "no") })
	p := idle(c, m)
	p.look(t.Context())
	p.try(t.Context())
	c.next()
	if at, ok := p.next(); !ok || time.Until(at) > 3*time.Second {
		t.Errorf("tried next at %v, %v", at, ok)
	}
	p.tunnels[0].due, p.tunnels[0].until = time.Now(), time.Now().Add(-time.Second)
	p.try(t.Context())
	c.next()
	if at, ok := p.next(); ok {
		t.Errorf("tried on at %v", at)
	}
}

func TestARefusalIsFinal(t *testing.T) {
	for _, code := range []codes.Code{codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument, codes.Unimplemented} {
		c, m := start(t), &machine{}
		m.has("lo 127.8.0.2")
		c.answers(func(string) error { return status.Error(code, "no") })
		p := begin(t, c, m)
		c.next()
		c.quiet()
		c.answers(nil)
		p.Wanted()
		if a := c.next(); len(a.addresses) == 0 {
			t.Errorf("%s: not proven when it is wanted again", code)
		}
	}
}

func TestTheNewestTunnelCounts(t *testing.T) {
	c, m := start(t), &machine{}
	m.has("lo 127.8.0.2")
	p := begin(t, c, m)
	c.next()
	m.has("lo 127.8.0.2", "lo 127.9.0.2")
	p.Changed()
	if a := c.next(); a.from != "127.9.0.2" {
		t.Errorf("proven from %s", a.from)
	}
	p.Wanted()
	if a := c.next(); a.from != "127.9.0.2" {
		t.Errorf("proven again from %s", a.from)
	}
	c.quiet() // not the older one: that would end the newer's proof
	c.answers(func(from string) error {
		if from == "127.9.0.2" {
			return status.Error(codes.NotFound, "somebody else's tunnel")
		}
		return nil
	})
	p.Wanted()
	for a := c.next(); a.from != "127.8.0.2"; {
		a = c.next()
	}
}

func TestOneOfATunnelsAddressesIsEnough(t *testing.T) {
	c, m := start(t), &machine{}
	m.has("lo fd00:8::2 127.8.0.2") // the collector has no IPv6
	begin(t, c, m)
	if a := c.next(); a.from != "127.8.0.2" {
		t.Errorf("proven from %s", a.from)
	}
	c.quiet()
}

func TestNothingIsSignedForWhatIsNotThere(t *testing.T) {
	c, m := start(t), &machine{}
	m.has("lo 127.8.0.2")
	c.answers(func(string) error {
		m.has() // the tunnel is gone before the challenge
		return nil
	})
	begin(t, c, m)
	if a := c.next(); a.addresses != nil {
		t.Errorf("signed: %v", a)
	}
}

func TestAChallengeThatIsNoneIsNotSigned(t *testing.T) {
	c, m := start(t), &machine{}
	c.short = true
	m.has("lo 127.8.0.2")
	begin(t, c, m)
	if a := c.next(); a.addresses != nil {
		t.Errorf("signed: %v", a)
	}
}

func TestAttemptsAreFew(t *testing.T) {
	c, m := start(t), &machine{}
	m.has("lo 127.8.0.2")
	c.answers(func(string) error { return status.Error(codes.Unavailable, "busy") })
	limiter := rate.NewLimiter(rate.Every(time.Hour), 3)
	p := begin(t, c, m, func(p *Prover) { p.limiter = limiter })
	for range 3 {
		c.next()
	}
	for range 10 {
		p.Wanted()
		p.Changed()
	}
	c.quiet()
}

// The session renews a software key while the way through the tunnel is slow. To
// the collector the key of before would look like a copy.
func TestKeyThatWasRenewedMeanwhileIsNotShown(t *testing.T) {
	c, m := start(t), &machine{}
	m.has("lo 127.8.0.2")
	renewed, err := c.house.Enrolled(t, time.Hour).Load()
	if err != nil {
		t.Fatal(err)
	}
	begin(t, c, m, func(p *Prover) { p.State = &renewing{State: c.state, renewed: renewed} })
	if a := c.next(); !a.device.Equal(renewed.Chain[0]) {
		t.Error("it comes with the certificate of before")
	}
}

// renewing is a state that is renewed after it was loaded once.
type renewing struct {
	*identity.State
	renewed *identity.Identity
	loaded  atomic.Bool
}

func (r *renewing) Load() (*identity.Identity, error) {
	if !r.loaded.Swap(true) {
		return r.State.Load()
	}
	return r.renewed, nil
}

func TestWithoutAnIdentityNothingIsTried(t *testing.T) {
	c, m := start(t), &machine{}
	m.has("lo 127.8.0.2")
	begin(t, c, m, func(p *Prover) { p.State = nobody{} })
	c.quiet()
}

type nobody struct{}

func (nobody) Load() (*identity.Identity, error) { return nil, identity.ErrNotEnrolled }

func TestAMachineThatCannotBeReadIsLookedAtAgain(t *testing.T) {
	c, m := start(t), &machine{err: fs.ErrPermission}
	p := begin(t, c, m)
	c.quiet()
	m.has("lo 127.8.0.2")
	m.mu.Lock()
	m.err = nil
	m.mu.Unlock()
	p.Changed()
	c.next()
	m.mu.Lock()
	m.err = errors.New("for a moment")
	m.mu.Unlock()
	p.Changed() // the tunnel is not taken for a new one afterwards
	c.quiet()
	m.mu.Lock()
	m.err = nil
	m.mu.Unlock()
	p.Changed()
	c.quiet()
}

// told is a watcher of the machine that says what it is told to.
type told [][]string

func (w told) Watch(_ context.Context, notify func(...string)) error {
	for _, sections := range w {
		notify(sections...)
	}
	return nil
}

func TestItHearsOfChangedLinksBesideTheSession(t *testing.T) {
	c, m := start(t), &machine{}
	p := idle(c, m)
	for name, happened := range map[string]struct {
		sections []string
		hears    bool
	}{
		"links": {[]string{"volumes", "vpn"}, true}, "everything": {nil, true}, "a disk": {[]string{"volumes"}, false},
	} {
		var passed [][]string
		if err := p.Following(told{happened.sections}).Watch(t.Context(), func(s ...string) { passed = append(passed, s) }); err != nil {
			t.Fatal(err)
		}
		heard := false
		select {
		case <-p.changed:
			heard = true
		default:
		}
		if heard != happened.hears || len(passed) != 1 || !slices.Equal(passed[0], happened.sections) {
			t.Errorf("%s: heard %v, passed on %q", name, heard, passed)
		}
	}
}
