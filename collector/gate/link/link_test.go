package link_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/collector/gate/link"
	"pfoertner/collector/gate/session"
	"pfoertner/internal/e2e"
	"pfoertner/internal/lease"
	"pfoertner/internal/mtls"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const soon = 10 * time.Second

// house is what gates and collectors share: the authorities.
type house struct {
	servers, gates *e2e.Authority
	gate           *e2e.Identity
}

func newHouse(t *testing.T) *house {
	h := &house{servers: e2e.NewAuthority(t, "servers"), gates: e2e.NewAuthority(t, "gates")}
	h.gate = h.gates.Issue(t, e2e.Subject{URI: "urn:pfoertner:gate:g1", Client: true})
	return h
}

// collector says what the test puts into watch, signed with a key of its own.
type collector struct {
	gatev1.UnimplementedGateServiceServer
	key     ed25519.PrivateKey
	signer  *lease.Signer
	chain   [][]byte
	address string
	server  *grpc.Server

	watch func(*gatev1.WatchRequest, grpc.ServerStreamingServer[gatev1.WatchResponse]) error
	admit func(*gatev1.AdmitRequest) (*gatev1.AdmitResponse, error)

	mu      sync.Mutex
	reports []*gatev1.ReportRequest
	refuse  bool
	watches []*gatev1.WatchRequest
}

func (h *house) collector(t *testing.T) *collector {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := h.servers.Issue(t, e2e.Subject{URI: "urn:pfoertner:lease-signer:s1", Key: key})
	c := &collector{key: key, signer: lease.NewSigner(key), chain: [][]byte{cert.Certificate.Raw}}
	own := h.servers.Issue(t, e2e.Subject{URI: "urn:pfoertner:collector:c1", Server: true, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.address = listener.Addr().String()
	c.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(mtls.ServerConfig(mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return own.TLS(), nil }, Clients: h.gates.Pool(), Role: mtls.RoleGate,
	}))))
	gatev1.RegisterGateServiceServer(c.server, c)
	c.watch = func(_ *gatev1.WatchRequest, s grpc.ServerStreamingServer[gatev1.WatchResponse]) error {
		c.begin(t, s, 1)
		return c.beat(s, 1)
	}
	var serving sync.WaitGroup
	serving.Go(func() { c.server.Serve(listener) })
	t.Cleanup(func() { c.server.Stop(); serving.Wait() })
	return c
}

func (c *collector) Watch(req *gatev1.WatchRequest, s grpc.ServerStreamingServer[gatev1.WatchResponse]) error {
	c.mu.Lock()
	c.watches = append(c.watches, req)
	c.mu.Unlock()
	return c.watch(req, s)
}

func (c *collector) Admit(_ context.Context, req *gatev1.AdmitRequest) (*gatev1.AdmitResponse, error) {
	return c.admit(req)
}

func (c *collector) Report(_ context.Context, req *gatev1.ReportRequest) (*gatev1.ReportResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse {
		return nil, status.Error(codes.Unavailable, "not now")
	}
	c.reports = append(c.reports, req)
	return &gatev1.ReportResponse{}, nil
}

func (c *collector) begin(t *testing.T, s grpc.ServerStreamingServer[gatev1.WatchResponse], epoch uint64) {
	start := &gatev1.Start{Epoch: epoch, Sequence: 1, SignerChain: c.chain, HeartbeatInterval: durationpb.New(50 * time.Millisecond)}
	if err := s.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Start{Start: start}}); err != nil {
		t.Logf("start not sent: %v", err)
	}
}

func (c *collector) beat(s grpc.ServerStreamingServer[gatev1.WatchResponse], epoch uint64) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-s.Context().Done():
			return nil
		case <-tick.C:
			if err := s.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Heartbeat{
				Heartbeat: &gatev1.WatchHeartbeat{Epoch: epoch, Sequence: 5}}}); err != nil {
				return err
			}
		}
	}
}

func (c *collector) standings(t *testing.T, at uint64, gateway string, n int, last bool) *gatev1.SignedStandings {
	s := &gatev1.Standings{Gateway: gateway, Epoch: 1, Sequence: at, Last: last}
	for range n {
		s.Standings = append(s.Standings, &gatev1.Standing{CertificateSha256: make([]byte, 32)})
	}
	signed, err := c.signer.SignStandings(s)
	if err != nil {
		t.Error(err)
	}
	return signed
}

func (c *collector) lease(t *testing.T, id string) *gatev1.AdmitResponse {
	signed, err := c.signer.Sign(t.Context(), &gatev1.Lease{Gateway: "g1", SessionId: id, Verdict: posturev1.Verdict_VERDICT_ADMIT, Epoch: 1, Sequence: 9})
	if err != nil {
		t.Error(err)
	}
	return &gatev1.AdmitResponse{Lease: signed}
}

// keeper writes down what it is told.
type keeper struct {
	mu   sync.Mutex
	news []session.News
	at   lease.Position
	ups  []*gatev1.SessionEvent
}

func (k *keeper) Tell(n session.News) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.news = append(k.news, n)
}

func (k *keeper) Holds(context.Context) (lease.Position, []*gatev1.SessionEvent, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.at, k.ups, nil
}

func (k *keeper) heard(is func(session.News) bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.news, is)
}

func (h *house) options(addresses ...string) link.Options {
	return link.Options{
		Addresses: addresses,
		TLS:       mtls.ClientOptions{Certificate: func() (*tls.Certificate, error) { return h.gate.TLS(), nil }, Servers: h.servers.Pool()},
		Gateway:   "g1",
		Servers:   h.servers.Pool(),
		Log:       slog.New(slog.DiscardHandler),
	}
}

func (h *house) dial(t *testing.T, k link.Keeper, addresses ...string) *link.Links {
	t.Helper()
	ls, err := link.Dial(h.options(addresses...))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { ls.Run(ctx, k) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return ls
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if !e2e.Eventually(t, soon, ok) {
		t.Fatalf("never: %s", what)
	}
}

func TestSignedNewsReachTheKeeper(t *testing.T) {
	h := newHouse(t)
	c := h.collector(t)
	c.watch = func(_ *gatev1.WatchRequest, s grpc.ServerStreamingServer[gatev1.WatchResponse]) error {
		c.begin(t, s, 1)
		renewal, err := c.signer.SignBatch([]*gatev1.Lease{{Gateway: "g1", SessionId: "s1"}})
		if err != nil {
			t.Error(err)
		}
		for _, m := range []*gatev1.WatchResponse{
			{Message: &gatev1.WatchResponse_Snapshot{Snapshot: c.standings(t, 1, "g1", 2, false)}},
			{Message: &gatev1.WatchResponse_Snapshot{Snapshot: c.standings(t, 1, "g1", 1, true)}},
			{Message: &gatev1.WatchResponse_Change{Change: c.standings(t, 2, "g1", 1, false)}},
			{Message: &gatev1.WatchResponse_Renewal{Renewal: renewal}},
		} {
			if err := s.Send(m); err != nil {
				return err
			}
		}
		return c.beat(s, 1)
	}
	k := &keeper{}
	ls := h.dial(t, k, c.address)
	await(t, "the heartbeat", func() bool { return k.heard(func(n session.News) bool { return n.At.Sequence == 5 }) })
	if k.news[0].Snapshot != true || len(k.news[0].Standings) != 3 || k.news[0].At != (lease.Position{Epoch: 1, Sequence: 1}) {
		t.Errorf("snapshot %+v", k.news[0])
	}
	if k.news[1].Snapshot || len(k.news[1].Standings) != 1 || len(k.news[2].Leases) != 1 || k.news[2].Received.IsZero() {
		t.Errorf("change %+v, renewal %+v", k.news[1], k.news[2])
	}
	if ls.Up() != 1 {
		t.Error("the collector does not count as reachable")
	}
}

func TestWhatIsNotSignedForUsEndsTheStream(t *testing.T) {
	h := newHouse(t)
	other := h.collector(t)
	stranger := newHouse(t).collector(t)
	for name, say := range map[string]func(*collector) *gatev1.WatchResponse{
		"another key": func(*collector) *gatev1.WatchResponse {
			return &gatev1.WatchResponse{Message: &gatev1.WatchResponse_Snapshot{Snapshot: other.standings(t, 1, "g1", 1, true)}}
		},
		"another gateway": func(c *collector) *gatev1.WatchResponse {
			return &gatev1.WatchResponse{Message: &gatev1.WatchResponse_Snapshot{Snapshot: c.standings(t, 1, "g2", 1, true)}}
		},
		"renewal of another key": func(*collector) *gatev1.WatchResponse {
			r, _ := other.signer.SignBatch([]*gatev1.Lease{{Gateway: "g1"}})
			return &gatev1.WatchResponse{Message: &gatev1.WatchResponse_Renewal{Renewal: r}}
		},
		"changed on its way": func(c *collector) *gatev1.WatchResponse {
			s := c.standings(t, 1, "g1", 1, true)
			s.Standings = append(s.Standings, 0x10, 1)
			return &gatev1.WatchResponse{Message: &gatev1.WatchResponse_Change{Change: s}}
		},
		"nothing": func(*collector) *gatev1.WatchResponse { return &gatev1.WatchResponse{} },
		"mixed chunks": func(c *collector) *gatev1.WatchResponse {
			return &gatev1.WatchResponse{Message: &gatev1.WatchResponse_Snapshot{Snapshot: c.standings(t, 2, "g1", 1, true)}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := h.collector(t)
			c.watch = func(_ *gatev1.WatchRequest, s grpc.ServerStreamingServer[gatev1.WatchResponse]) error {
				c.begin(t, s, 1)
				if name == "mixed chunks" {
					s.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Snapshot{Snapshot: c.standings(t, 1, "g1", 1, false)}})
				}
				s.Send(say(c))
				return c.beat(s, 1)
			}
			k := &keeper{}
			h.dial(t, k, c.address)
			await(t, "a second try", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.watches) >= 2 })
			if len(k.news) != 0 {
				t.Errorf("the keeper was told %+v", k.news)
			}
		})
	}
	t.Run("a signer of another house", func(t *testing.T) {
		c := h.collector(t)
		c.chain = stranger.chain
		ls := h.dial(t, &keeper{}, c.address)
		await(t, "a second try", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.watches) >= 2 })
		if ls.Up() != 0 {
			t.Error("the collector counts as reachable")
		}
	})
	t.Run("a server of another house", func(t *testing.T) {
		ls := h.dial(t, &keeper{}, stranger.address)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := ls.Admit(ctx, &gatev1.SessionFacts{SessionId: "s1"}); err == nil || ls.Up() != 0 {
			t.Errorf("%v, %d up", err, ls.Up())
		}
	})
}

// A collector that is connected and silent is gone after three heartbeats.
func TestSilentCollectorIsGone(t *testing.T) {
	h := newHouse(t)
	c := h.collector(t)
	c.watch = func(_ *gatev1.WatchRequest, s grpc.ServerStreamingServer[gatev1.WatchResponse]) error {
		c.begin(t, s, 1)
		<-s.Context().Done()
		return nil
	}
	ls := h.dial(t, &keeper{}, c.address)
	await(t, "up", func() bool { return ls.Up() == 1 })
	begin := time.Now()
	await(t, "down", func() bool { return ls.Up() == 0 })
	if took := time.Since(begin); took > time.Second {
		t.Errorf("noticed after %s", took)
	}
}

func TestWatchResumesFromWhatTheKeeperHolds(t *testing.T) {
	h := newHouse(t)
	c := h.collector(t)
	h.dial(t, &keeper{at: lease.Position{Epoch: 3, Sequence: 14}}, c.address)
	await(t, "a watch", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.watches) > 0 })
	if w := c.watches[0]; w.GetEpoch() != 3 || w.GetSequence() != 14 {
		t.Errorf("%v", w)
	}
}

func TestAdmitTakesOnlyLeasesOfTheCollectorItAsked(t *testing.T) {
	h := newHouse(t)
	c, other := h.collector(t), h.collector(t)
	ls := h.dial(t, &keeper{}, c.address)
	c.admit = func(r *gatev1.AdmitRequest) (*gatev1.AdmitResponse, error) {
		return c.lease(t, r.GetSession().GetSessionId()), nil
	}
	// It waits for the link to come up.
	answer, err := ls.Admit(t.Context(), &gatev1.SessionFacts{SessionId: "s1"})
	if err != nil || answer.Lease.GetSessionId() != "s1" {
		t.Fatalf("%v, %v", answer, err)
	}
	c.admit = func(r *gatev1.AdmitRequest) (*gatev1.AdmitResponse, error) {
		return other.lease(t, r.GetSession().GetSessionId()), nil
	}
	if _, err := ls.Admit(t.Context(), &gatev1.SessionFacts{SessionId: "s1"}); !errors.Is(err, lease.ErrSignature) {
		t.Errorf("%v", err)
	}
	c.admit = func(*gatev1.AdmitRequest) (*gatev1.AdmitResponse, error) {
		return nil, status.Error(codes.InvalidArgument, "no")
	}
	if _, err := ls.Admit(t.Context(), &gatev1.SessionFacts{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v", err)
	}
	c.admit = func(*gatev1.AdmitRequest) (*gatev1.AdmitResponse, error) {
		return nil, status.Error(codes.Unavailable, "not ready")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := ls.Admit(ctx, &gatev1.SessionFacts{}); err == nil {
		t.Error("admitted by nobody")
	}
}

func TestTheCollectorThatIsFurthestIsAskedFirst(t *testing.T) {
	h := newHouse(t)
	first, second := h.collector(t), h.collector(t)
	second.watch = func(_ *gatev1.WatchRequest, s grpc.ServerStreamingServer[gatev1.WatchResponse]) error {
		second.begin(t, s, 2)
		return second.beat(s, 2)
	}
	ls := h.dial(t, &keeper{}, first.address, second.address)
	await(t, "both up", func() bool { return ls.Up() == 2 })
	var asked []string
	first.admit = func(*gatev1.AdmitRequest) (*gatev1.AdmitResponse, error) {
		asked = append(asked, "first")
		return first.lease(t, "s1"), nil
	}
	second.admit = func(*gatev1.AdmitRequest) (*gatev1.AdmitResponse, error) {
		asked = append(asked, "second")
		return nil, status.Error(codes.Unavailable, "not ready")
	}
	if _, err := ls.Admit(t.Context(), &gatev1.SessionFacts{}); err != nil || !slices.Equal(asked, []string{"second", "first"}) {
		t.Errorf("asked %q, %v", asked, err)
	}
}

func cut(id string) *gatev1.SessionEvent {
	return &gatev1.SessionEvent{Event: &gatev1.SessionEvent_CutConfirmed{CutConfirmed: &gatev1.CutConfirmed{SessionId: id}}}
}

func up(id string) *gatev1.SessionEvent {
	return &gatev1.SessionEvent{Event: &gatev1.SessionEvent_Up{Up: &gatev1.SessionUp{Session: &gatev1.SessionFacts{SessionId: id}}}}
}

func down(id string) *gatev1.SessionEvent {
	return &gatev1.SessionEvent{Event: &gatev1.SessionEvent_Down{Down: &gatev1.SessionDown{SessionId: id}}}
}

// story is a report in short: "full: cut s1, up s2".
func story(r *gatev1.ReportRequest) string {
	var words []string
	for _, e := range r.GetEvents() {
		switch {
		case e.GetUp() != nil:
			words = append(words, "up "+e.GetUp().GetSession().GetSessionId())
		case e.GetDown() != nil:
			words = append(words, "down "+e.GetDown().GetSessionId())
		case e.GetCutConfirmed() != nil:
			words = append(words, "cut "+e.GetCutConfirmed().GetSessionId())
		}
	}
	text := strings.Join(words, ", ")
	if r.GetFull() {
		return "full: " + text
	}
	return text
}

func (c *collector) stories() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.reports {
		out = append(out, story(r))
	}
	return out
}

func TestReportsBeginWithHowThingsStand(t *testing.T) {
	h := newHouse(t)
	c := h.collector(t)
	k := &keeper{ups: []*gatev1.SessionEvent{up("s2")}}
	ls, err := link.Dial(h.options(c.address))
	if err != nil {
		t.Fatal(err)
	}
	// What happened before there was a collector: only what how things stand
	// does not say is told.
	ls.Report(up("s1"), cut("s1"), down("s1"), up("s2"))
	c.mu.Lock()
	c.refuse = true // and the first attempts fail
	c.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { ls.Run(ctx, k) })
	t.Cleanup(func() { cancel(); running.Wait() })
	await(t, "up", func() bool { return ls.Up() == 1 })
	time.Sleep(200 * time.Millisecond)
	c.mu.Lock()
	c.refuse = false
	c.mu.Unlock()
	await(t, "the full report", func() bool { return len(c.stories()) == 1 })
	ls.Report(down("s2"))
	await(t, "the next report", func() bool { return len(c.stories()) == 2 })
	if got := c.stories(); !slices.Equal(got, []string{"full: cut s1, up s2", "down s2"}) {
		t.Errorf("%q", got)
	}
}

func TestManyReportsComeInParts(t *testing.T) {
	h := newHouse(t)
	c := h.collector(t)
	ls := h.dial(t, &keeper{}, c.address)
	await(t, "the full report", func() bool { return len(c.stories()) == 1 })
	var all []*gatev1.SessionEvent
	for range 2500 {
		all = append(all, down("s"))
	}
	ls.Report(all...)
	await(t, "all parts", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		n := 0
		for _, r := range c.reports {
			n += len(r.GetEvents())
			if len(r.GetEvents()) > 1000 {
				t.Errorf("%d events at once", len(r.GetEvents()))
			}
		}
		return n == len(all)
	})
}

func TestAskDoesNotOpenAWatch(t *testing.T) {
	h := newHouse(t)
	c := h.collector(t)
	c.admit = func(r *gatev1.AdmitRequest) (*gatev1.AdmitResponse, error) {
		return c.lease(t, r.GetSession().GetSessionId()), nil
	}
	answer, from, err := link.Ask(t.Context(), h.options("127.0.0.1:1", c.address), &gatev1.SessionFacts{SessionId: "ask/1"})
	if err != nil || from != c.address || answer.Lease.GetSessionId() != "ask/1" || len(c.watches) != 0 {
		t.Errorf("%v %q %v", answer, from, err)
	}
}

func TestNoCollectorIsAnError(t *testing.T) {
	if _, err := link.Dial(link.Options{}); err == nil {
		t.Error("a gate without a collector")
	}
}
