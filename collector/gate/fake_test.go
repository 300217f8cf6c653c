//go:build linux

package main_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/internal/e2e"
	"pfoertner/internal/lease"
	"pfoertner/internal/mtls"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	deny       = posturev1.Verdict_VERDICT_DENY
	quarantine = posturev1.Verdict_VERDICT_QUARANTINE
	admit      = posturev1.Verdict_VERDICT_ADMIT
)

// fakeCollector is gate.v1 with real gRPC, TLS and signatures, and verdicts
// that a test sets. One can be stopped, which looks to the gate like kill -9,
// and started again with the next epoch.
type fakeCollector struct {
	gatev1.UnimplementedGateServiceServer
	ttl, heartbeat time.Duration
	signer         *lease.Signer
	chain          [][]byte
	server         *e2e.Identity
	gates          *e2e.Authority
	in             *e2e.Namespace
	address        netip.AddrPort

	mu        sync.Mutex
	grpc      *grpc.Server
	epoch     uint64
	sequence  uint64
	standings map[string]posturev1.Verdict // by fingerprint
	sessions  map[string]*gatev1.SessionFacts
	changes   chan struct{} // closed and replaced when something changed
	log       []*gatev1.Standing
	events    []*gatev1.SessionEvent
	asked     int
}

func newFakeCollector(t *testing.T, in *e2e.Namespace, address netip.AddrPort, servers, gates *e2e.Authority) *fakeCollector {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := servers.Issue(t, e2e.Subject{CommonName: "signer", URI: "urn:pfoertner:lease-signer:s1", Key: key})
	c := &fakeCollector{
		ttl: 1500 * time.Millisecond, heartbeat: 200 * time.Millisecond,
		signer: lease.NewSigner(key), chain: [][]byte{signer.Certificate.Raw},
		server: servers.Issue(t, e2e.Subject{
			CommonName: "collector", URI: "urn:pfoertner:collector:c1", Server: true,
			IPs: []net.IP{address.Addr().AsSlice()},
		}),
		gates: gates, in: in, address: address,
		standings: map[string]posturev1.Verdict{}, changes: make(chan struct{}),
	}
	c.start(t)
	t.Cleanup(c.stop)
	return c
}

func (c *fakeCollector) start(t *testing.T) {
	t.Helper()
	var listener net.Listener
	err := c.in.Do(func() (err error) {
		listener, err = net.Listen("tcp", c.address.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	c.sequence = 0
	c.sessions = map[string]*gatev1.SessionFacts{}
	c.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(mtls.ServerConfig(mtls.ServerOptions{
		Certificate: serves(c.server), Clients: c.gates.Pool(), Role: mtls.RoleGate,
	}))))
	gatev1.RegisterGateServiceServer(c.grpc, c)
	go c.grpc.Serve(listener)
}

func (c *fakeCollector) stop() { c.grpc.Stop() }

// set changes where an identity stands and tells the gates.
func (c *fakeCollector) set(id *e2e.Identity, v posturev1.Verdict) time.Time {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sequence++
	c.standings[string(id.Fingerprint())] = v
	c.log = append(c.log, &gatev1.Standing{CertificateSha256: id.Fingerprint(), Verdict: v, Code: codeOf(v)})
	c.wake()
	return now
}

// wake needs the lock.
func (c *fakeCollector) wake() {
	close(c.changes)
	c.changes = make(chan struct{})
}

func codeOf(v posturev1.Verdict) string {
	if v == admit {
		return ""
	}
	return "7K4-QX2"
}

func (c *fakeCollector) Admit(ctx context.Context, req *gatev1.AdmitRequest) (*gatev1.AdmitResponse, error) {
	if _, _, err := mtls.Peer(ctx, mtls.RoleGate); err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	c.mu.Lock()
	l := c.lease(req.GetSession())
	c.asked++
	c.mu.Unlock()
	signed, err := c.signer.Sign(ctx, l)
	if err != nil {
		return nil, err
	}
	res := &gatev1.AdmitResponse{Lease: signed, Code: l.GetCode()}
	if l.GetVerdict() != admit {
		res.Message = &posturev1.LocalText{De: `Kein Zugang: Übergangsfrist "abgelaufen". Vorgangsnummer: 7K4-QX2`}
	}
	return res, nil
}

// lease needs the lock.
func (c *fakeCollector) lease(s *gatev1.SessionFacts) *gatev1.Lease {
	c.sequence++
	v := c.standings[string(s.GetCertificateSha256())]
	l := &gatev1.Lease{
		Gateway: "g1", SessionId: s.GetSessionId(), CertificateSha256: s.GetCertificateSha256(),
		Verdict: v, Code: codeOf(v), Epoch: c.epoch, Sequence: c.sequence,
	}
	if v != deny {
		l.Ttl = durationpb.New(c.ttl)
	}
	return l
}

func (c *fakeCollector) Report(ctx context.Context, req *gatev1.ReportRequest) (*gatev1.ReportResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if req.GetFull() {
		c.sessions = map[string]*gatev1.SessionFacts{}
	}
	c.events = append(c.events, req.GetEvents()...)
	for _, e := range req.GetEvents() {
		if s := e.GetUp().GetSession(); s != nil {
			c.sessions[s.GetSessionId()] = s
		}
		delete(c.sessions, e.GetDown().GetSessionId())
	}
	c.wake()
	return &gatev1.ReportResponse{}, nil
}

func (c *fakeCollector) Watch(req *gatev1.WatchRequest, stream grpc.ServerStreamingServer[gatev1.WatchResponse]) error {
	c.mu.Lock()
	epoch, told := c.epoch, len(c.log)
	at := c.sequence
	all := &gatev1.Standings{Gateway: "g1", Epoch: epoch, Sequence: at, Last: true}
	for f, v := range c.standings {
		all.Standings = append(all.Standings, &gatev1.Standing{CertificateSha256: []byte(f), Verdict: v, Code: codeOf(v)})
	}
	c.mu.Unlock()
	start := &gatev1.Start{
		Epoch: epoch, Sequence: at, SignerChain: c.chain,
		HeartbeatInterval: durationpb.New(c.heartbeat), LeaseTtl: durationpb.New(c.ttl),
	}
	if err := stream.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Start{Start: start}}); err != nil {
		return err
	}
	signed, err := c.signer.SignStandings(all)
	if err != nil {
		return err
	}
	if err := stream.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Snapshot{Snapshot: signed}}); err != nil {
		return err
	}
	beat := time.NewTicker(c.heartbeat)
	defer beat.Stop()
	for {
		c.mu.Lock()
		changed := c.changes
		change := &gatev1.Standings{Gateway: "g1", Epoch: epoch, Sequence: c.sequence, Standings: c.log[told:]}
		told = len(c.log)
		var renewed []*gatev1.Lease
		for _, s := range c.sessions {
			if l := c.lease(s); l.GetVerdict() != deny {
				renewed = append(renewed, l)
			}
		}
		c.mu.Unlock()
		if len(change.GetStandings()) > 0 {
			signed, err := c.signer.SignStandings(change)
			if err != nil {
				return err
			}
			if err := stream.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Change{Change: signed}}); err != nil {
				return err
			}
		}
		if len(renewed) > 0 {
			signed, err := c.signer.SignBatch(renewed)
			if err != nil {
				return err
			}
			if err := stream.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Renewal{Renewal: signed}}); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		case <-beat.C:
			if err := stream.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Heartbeat{
				Heartbeat: &gatev1.WatchHeartbeat{Epoch: epoch, Sequence: change.GetSequence()},
			}}); err != nil {
				return err
			}
		}
	}
}

// reported waits for an event that the gate reports.
func (c *fakeCollector) reported(t *testing.T, what string, is func(*gatev1.SessionEvent) bool) *gatev1.SessionEvent {
	t.Helper()
	var found *gatev1.SessionEvent
	if !e2e.Eventually(t, 15*time.Second, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		i := slices.IndexFunc(c.events, is)
		if i >= 0 {
			found = c.events[i]
		}
		return i >= 0
	}) {
		t.Fatalf("the gate did not report %s: %v", what, c.allEvents())
	}
	return found
}

func (c *fakeCollector) allEvents() []*gatev1.SessionEvent {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.events)
}

func cutConfirmed(v posturev1.Verdict) func(*gatev1.SessionEvent) bool {
	return func(e *gatev1.SessionEvent) bool {
		return e.GetCutConfirmed() != nil && e.GetCutConfirmed().GetVerdict() == v
	}
}

func alarm(kind string) func(*gatev1.SessionEvent) bool {
	return func(e *gatev1.SessionEvent) bool { return e.GetAlarm().GetKind() == kind }
}
