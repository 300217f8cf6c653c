package intake

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/admission"
	"pfoertner/collector/audit"
	"pfoertner/collector/authority"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Two notebooks, their sessions' tunnel addresses, and one that is nobody's.
// All are on the loopback interface: a client chooses where it comes from.
const (
	notebookA = "8f14e45f-ceea-467f-9f2b-00000000000a"
	notebookB = "8f14e45f-ceea-467f-9f2b-00000000000b"
	addressA  = "127.8.0.2"
	addressB  = "127.8.0.3"
	stranger  = "127.8.0.9"
	gatewayA  = "vpn1"
)

// tunnelHouse is the agents' listener on TCP with a real Desk.
type tunnelHouse struct {
	t         testing.TB
	authority *authority.Authority
	desk      *admission.Desk
	service   *TunnelService
	address   string

	mu      sync.Mutex
	shut    map[string]bool
	ahead   time.Duration // how much later it is for the service
	records []audit.Record
	full    bool // the audit log takes nothing
	keys    map[string][]byte
}

// Accepts implements TunnelRegistry.
func (h *tunnelHouse) Accepts(id string, spki []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.shut[id] || string(h.keys[id]) != string(spki) {
		return errors.New("device is not accepted")
	}
	return nil
}

// Device implements TunnelRegistry.
func (h *tunnelHouse) Device(id string) (*fleetv1.Device, bool) {
	return &fleetv1.Device{Id: id, Asset: &fleetv1.Asset{AssetNumber: "NB-" + id[35:]}}, true
}

// AppendAudit implements TunnelAudit.
func (h *tunnelHouse) AppendAudit(_ context.Context, records ...audit.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.full {
		return errors.New("disk is full")
	}
	for _, r := range records {
		if err := r.Validate(); err != nil {
			return err
		}
	}
	h.records = append(h.records, records...)
	return nil
}

func (h *tunnelHouse) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

// recorded are the audit records so far, "kind reason".
func (h *tunnelHouse) recorded() (out []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.records {
		out = append(out, strings.TrimSpace(r.Kind+" "+r.Details["reason"]))
		if text := fmt.Sprint(r); strings.Contains(text, "127.8.0.") {
			h.t.Errorf("an address is in the audit log: %s", text)
		}
	}
	return out
}

func newTunnelHouse(t testing.TB) *tunnelHouse {
	t.Helper()
	a, err := authority.Create(filepath.Join(t.TempDir(), "pki"), authority.Options{DNSNames: []string{"collector"}})
	if err != nil {
		t.Fatal(err)
	}
	h := &tunnelHouse{t: t, authority: a, shut: map[string]bool{}, keys: map[string][]byte{}}
	h.desk = admission.NewDesk(admission.Options{Epoch: 1, Now: time.Now})
	h.desk.SetTunnelPolicy(func(string) (time.Duration, bool) { return time.Minute, true })
	h.desk.Ready()
	h.service = NewTunnelService(TunnelOptions{Desk: h.desk, Registry: h, Audit: h, Now: func() time.Time {
		h.mu.Lock()
		defer h.mu.Unlock()
		return time.Now().Add(h.ahead)
	}})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.address = listener.Addr().String()
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(mtls.ServerConfig(mtls.ServerOptions{
		Certificate: a.ServerCertificate, Clients: a.Devices(), Role: mtls.RoleDevice, Optional: true,
	}))))
	agentv1.RegisterTunnelServiceServer(server, h.service)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	return h
}

// vpnCertificate is the fingerprint of a device's VPN certificate.
func vpnCertificate(id string) []byte {
	sum := sha256.Sum256([]byte(id))
	return sum[:]
}

// session is what a gateway reports of a live session with the VPN certificate
// of a device.
func (h *tunnelHouse) session(gateway, id, owner string, addresses ...string) {
	h.t.Helper()
	_, err := h.desk.Report(gateway, &gatev1.ReportRequest{Events: []*gatev1.SessionEvent{{At: timestamppb.Now(), Event: &gatev1.SessionEvent_Up{
		Up: &gatev1.SessionUp{Verdict: posturev1.Verdict_VERDICT_QUARANTINE, Session: &gatev1.SessionFacts{
			SessionId: id, CertificateSha256: vpnCertificate(owner), TunnelAddresses: addresses,
		}},
	}}}})
	if err != nil {
		h.t.Fatal(err)
	}
}

// verdict is what a session may do.
func (h *tunnelHouse) verdict(id string) posturev1.Verdict {
	for _, s := range h.desk.Sessions("") {
		if s.GetSessionId() == id {
			return s.GetVerdict()
		}
	}
	return posturev1.Verdict_VERDICT_DENY
}

func (h *tunnelHouse) isProven(id string, want bool) {
	h.t.Helper()
	if got := h.verdict(id) == posturev1.Verdict_VERDICT_ADMIT; got != want {
		h.t.Errorf("session %s is admitted: %v, want %v", id, got, want)
	}
}

// prover is a notebook, or something that wants to pass for one.
type prover struct {
	h     *tunnelHouse
	id    string
	key   *ecdsa.PrivateKey
	chain [][]byte
	// from is where it connects from, own what it says its addresses are.
	from string
	own  []string
	// change alters its proof before it is sent.
	change func(*agentv1.TunnelChallenge, *agentv1.TunnelProof)
	// said is called with the challenge, before it is answered.
	said func(*agentv1.TunnelChallenge)
	conn *grpc.ClientConn
}

// notebook is an enrolled device that is admitted.
func (h *tunnelHouse) notebook(id, from string) *prover {
	h.t.Helper()
	key, err := attest.NewKey()
	if err != nil {
		h.t.Fatal(err)
	}
	cert, err := h.authority.IssueDevice(id, key.Public(), 0)
	if err != nil {
		h.t.Fatal(err)
	}
	spki, err := attest.SPKI(key.Public())
	if err != nil {
		h.t.Fatal(err)
	}
	h.set(func() { h.keys[id] = spki })
	h.desk.SetDevice(&fleetv1.Device{Id: id, Asset: &fleetv1.Asset{
		AssetNumber: "NB-" + id[35:], State: fleetv1.AssetState_ASSET_STATE_ACTIVE,
		VpnCertificatesSha256: [][]byte{vpnCertificate(id)},
	}})
	h.desk.SetResult(id, &posturev1.Result{
		Verdict: posturev1.Verdict_VERDICT_ADMIT, ExpiresAt: timestamppb.New(time.Now().Add(time.Hour)),
	})
	return &prover{h: h, id: id, key: key, chain: cert.Chain, from: from, own: []string{"192.168.178.20", from}}
}

// open begins a call on a connection of its own.
func (p *prover) open() agentv1.TunnelService_ProveClient {
	p.h.t.Helper()
	o := mtls.ClientOptions{Servers: p.h.authority.Servers(), ServerName: "collector"}
	if p.chain != nil {
		o.Certificate = func() (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: p.chain, PrivateKey: p.key}, nil
		}
	}
	conn, err := grpc.NewClient("passthrough:///"+p.h.address, grpc.WithTransportCredentials(credentials.NewTLS(mtls.ClientConfig(o))),
		grpc.WithContextDialer(func(ctx context.Context, to string) (net.Conn, error) {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(p.from), 0))}
			return d.DialContext(ctx, "tcp", to)
		}))
	if err != nil {
		p.h.t.Fatal(err)
	}
	p.conn = conn
	p.h.t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(p.h.t.Context(), 30*time.Second)
	p.h.t.Cleanup(cancel)
	stream, err := agentv1.NewTunnelServiceClient(conn).Prove(ctx)
	if err != nil {
		p.h.t.Fatal(err)
	}
	return stream
}

func hello() *agentv1.ProveRequest {
	return &agentv1.ProveRequest{Message: &agentv1.ProveRequest_Hello{Hello: &agentv1.TunnelHello{AgentVersion: "1.2.3"}}}
}

func proofOf(p *agentv1.TunnelProof) *agentv1.ProveRequest {
	return &agentv1.ProveRequest{Message: &agentv1.ProveRequest_Proof{Proof: p}}
}

// challenged says hello and returns the challenge.
func (p *prover) challenged(stream agentv1.TunnelService_ProveClient) (*agentv1.TunnelChallenge, error) {
	_ = stream.Send(hello()) // what goes wrong is said by Recv
	m, err := stream.Recv()
	return m.GetChallenge(), err
}

// sign makes the proof that the notebook gives on this stream.
func (p *prover) sign(stream agentv1.TunnelService_ProveClient, c *agentv1.TunnelChallenge) *agentv1.TunnelProof {
	p.h.t.Helper()
	raw, err := proto.Marshal(&agentv1.TunnelStatement{Gateway: c.GetGateway(), SessionId: c.GetSessionId(), Addresses: p.own})
	if err != nil {
		p.h.t.Fatal(err)
	}
	exporter, err := mtls.Exporter(stream.Context())
	if err != nil {
		p.h.t.Fatal(err)
	}
	signature, err := attest.Sign(p.key, attest.TunnelDigest(c.GetNonce(), exporter, raw))
	if err != nil {
		p.h.t.Fatal(err)
	}
	return &agentv1.TunnelProof{Statement: raw, Signature: signature}
}

// prove goes the whole way; nil is the result.
func (p *prover) prove() error {
	p.h.t.Helper()
	stream := p.open()
	c, err := p.challenged(stream)
	if err != nil {
		return err
	}
	if len(c.GetNonce()) != 32 {
		p.h.t.Errorf("nonce %x", c.GetNonce())
	}
	if p.said != nil {
		p.said(c)
	}
	proof := p.sign(stream, c)
	if p.change != nil {
		p.change(c, proof)
	}
	_ = stream.Send(proofOf(proof))
	m, err := stream.Recv()
	if err == nil && m.GetResult() == nil {
		p.h.t.Errorf("got %v, want a result", m)
	}
	return err
}

func wants(t testing.TB, err error, code codes.Code) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

func TestANotebookProvesItsOwnSession(t *testing.T) {
	h := newTunnelHouse(t)
	a := h.notebook(notebookA, addressA)
	wants(t, a.prove(), codes.NotFound) // the gateway has not reported it yet
	h.session(gatewayA, "s1", notebookA, addressA)
	h.isProven("s1", false)
	for range 2 {
		if err := a.prove(); err != nil {
			t.Fatal(err)
		}
		h.isProven("s1", true)
	}
	if got := h.recorded(); len(got) != 1 || got[0] != "tunnel.proven" {
		t.Errorf("recorded %q: only what changed is", got)
	}
}

// Each of these must be refused, and proves nothing.
func TestWhatIsNoProof(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(h *tunnelHouse, a *prover)
		code    codes.Code
		record  string
	}{
		"an address without a session": {func(h *tunnelHouse, a *prover) { a.from = stranger }, codes.NotFound, ""},
		"an address of two gateways": {func(h *tunnelHouse, a *prover) {
			h.session("vpn2", "s2", notebookB, addressA)
		}, codes.NotFound, ""},
		"the session of another device": {func(h *tunnelHouse, a *prover) {
			h.notebook(notebookB, addressB)
			h.session(gatewayA, "s2", notebookB, addressB)
			a.from, a.own = addressB, []string{addressB}
			a.said = func(*agentv1.TunnelChallenge) { h.t.Error("it is told of another device's session") }
		}, codes.PermissionDenied, "tunnel.refused other_device"},
		"a session of nobody": {func(h *tunnelHouse, a *prover) {
			h.session(gatewayA, "s2", "unknown", addressB)
			a.from, a.own = addressB, []string{addressB}
		}, codes.NotFound, ""},
		"an address on no interface of the notebook: it was relayed to": {func(h *tunnelHouse, a *prover) {
			a.own = []string{"192.168.178.20", addressB}
		}, codes.PermissionDenied, "tunnel.refused address"},
		"no addresses at all": {func(h *tunnelHouse, a *prover) { a.own = nil }, codes.PermissionDenied, "tunnel.refused address"},
		"a signature by another key": {func(h *tunnelHouse, a *prover) {
			other, _ := attest.NewKey()
			a.change = func(_ *agentv1.TunnelChallenge, p *agentv1.TunnelProof) {
				p.Signature, _ = attest.Sign(other, make([]byte, 32))
			}
		}, codes.PermissionDenied, "tunnel.refused signature"},
		"a statement that was changed": {func(h *tunnelHouse, a *prover) {
			a.own = nil
			a.change = func(c *agentv1.TunnelChallenge, p *agentv1.TunnelProof) {
				p.Statement, _ = proto.Marshal(&agentv1.TunnelStatement{
					Gateway: c.GetGateway(), SessionId: c.GetSessionId(), Addresses: []string{addressA},
				})
			}
		}, codes.PermissionDenied, "tunnel.refused signature"},
		"a statement for another gateway": {func(h *tunnelHouse, a *prover) {
			a.said = func(c *agentv1.TunnelChallenge) { c.Gateway = "vpn2" }
		}, codes.PermissionDenied, "tunnel.refused statement"},
		"a statement for another session": {func(h *tunnelHouse, a *prover) {
			a.said = func(c *agentv1.TunnelChallenge) { c.SessionId = "s2" }
		}, codes.PermissionDenied, "tunnel.refused statement"},
		"another nonce": {func(h *tunnelHouse, a *prover) {
			a.said = func(c *agentv1.TunnelChallenge) { c.Nonce = make([]byte, 32) }
		}, codes.PermissionDenied, "tunnel.refused signature"},
		"an answer after ten seconds": {func(h *tunnelHouse, a *prover) {
			a.said = func(*agentv1.TunnelChallenge) { h.set(func() { h.ahead = tunnelWithin + time.Second }) }
		}, codes.DeadlineExceeded, ""},
		"a statement that is none": {func(h *tunnelHouse, a *prover) {
			a.change = func(_ *agentv1.TunnelChallenge, p *agentv1.TunnelProof) { p.Statement = []byte{0xff} }
		}, codes.InvalidArgument, ""},
		"no addresses but words": {func(h *tunnelHouse, a *prover) { a.own = []string{addressA, "eth0"} }, codes.InvalidArgument, ""},
		"a device that is not accepted": {func(h *tunnelHouse, a *prover) {
			h.set(func() { h.shut[notebookA] = true })
			a.said = func(*agentv1.TunnelChallenge) { h.t.Error("it is told of the session") }
		}, codes.PermissionDenied, ""},
		"a device that is suspended meanwhile": {func(h *tunnelHouse, a *prover) {
			a.said = func(*agentv1.TunnelChallenge) { h.set(func() { h.shut[notebookA] = true }) }
		}, codes.PermissionDenied, ""},
		"no certificate": {func(h *tunnelHouse, a *prover) { a.chain = nil }, codes.Unauthenticated, ""},
		"a session that ended meanwhile": {func(h *tunnelHouse, a *prover) {
			a.said = func(*agentv1.TunnelChallenge) { _, _ = h.desk.Report(gatewayA, &gatev1.ReportRequest{Full: true}) }
		}, codes.NotFound, ""},
		"an audit log that is full": {func(h *tunnelHouse, a *prover) { h.set(func() { h.full = true }) }, codes.Unavailable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTunnelHouse(t)
			a := h.notebook(notebookA, addressA)
			h.session(gatewayA, "s1", notebookA, addressA)
			c.prepare(h, a)
			wants(t, a.prove(), c.code)
			h.isProven("s1", false)
			h.isProven("s2", false)
			got := strings.Join(h.recorded(), ", ")
			if got != c.record {
				t.Errorf("recorded %q, want %q", got, c.record)
			}
		})
	}
}

// Whoever has seen a proof cannot use it: not on another connection, not a
// second time on the same.
func TestAProofCannotBeReplayed(t *testing.T) {
	h := newTunnelHouse(t)
	a := h.notebook(notebookA, addressA)
	h.session(gatewayA, "s1", notebookA, addressA)
	// The private PC has the device's certificate chain and its session's
	// address but not its key; here it even has the connection's key, and only
	// repeats what was signed on another one.
	var seen *agentv1.TunnelProof
	a.change = func(_ *agentv1.TunnelChallenge, p *agentv1.TunnelProof) {
		seen = &agentv1.TunnelProof{Statement: p.GetStatement(), Signature: p.GetSignature()}
	}
	if err := a.prove(); err != nil {
		t.Fatal(err)
	}
	h.desk.Unprove(gatewayA, "s1")
	a.change = func(_ *agentv1.TunnelChallenge, p *agentv1.TunnelProof) {
		p.Statement, p.Signature = seen.GetStatement(), seen.GetSignature()
	}
	wants(t, a.prove(), codes.PermissionDenied)
	h.isProven("s1", false)
}

// A man in the middle who has two connections shows the challenge of one on the
// other: the signature names the connection it was made on.
func TestAProofIsForItsOwnConnectionOnly(t *testing.T) {
	h := newTunnelHouse(t)
	a := h.notebook(notebookA, addressA)
	h.session(gatewayA, "s1", notebookA, addressA)
	asked, elsewhere := a.open(), a.open()
	c, err := a.challenged(asked)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.challenged(elsewhere); err != nil {
		t.Fatal(err)
	}
	_ = asked.Send(proofOf(a.sign(elsewhere, c)))
	_, err = asked.Recv()
	wants(t, err, codes.PermissionDenied)
	h.isProven("s1", false)
}

func TestMessagesOutOfOrderEndTheCall(t *testing.T) {
	huge, err := proto.Marshal(&agentv1.TunnelStatement{Gateway: strings.Repeat("g", maxStatement)})
	if err != nil {
		t.Fatal(err)
	}
	for name, messages := range map[string][]*agentv1.ProveRequest{
		"a proof first":    {proofOf(&agentv1.TunnelProof{})},
		"nothing first":    {{}},
		"two hellos":       {hello(), hello()},
		"an empty proof":   {hello(), {}},
		"a huge statement": {hello(), proofOf(&agentv1.TunnelProof{Statement: huge})},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTunnelHouse(t)
			a := h.notebook(notebookA, addressA)
			h.session(gatewayA, "s1", notebookA, addressA)
			stream := a.open()
			for _, m := range messages {
				_ = stream.Send(m)
			}
			for {
				if _, err := stream.Recv(); err != nil {
					wants(t, err, codes.InvalidArgument)
					break
				}
			}
			h.isProven("s1", false)
		})
	}
}

func TestOneSessionOfADeviceIsProvenAtATime(t *testing.T) {
	h := newTunnelHouse(t)
	a := h.notebook(notebookA, addressA)
	h.session(gatewayA, "s1", notebookA, addressA)
	h.session("vpn2", "s2", notebookA, addressB)
	if err := a.prove(); err != nil {
		t.Fatal(err)
	}
	a.from, a.own = addressB, []string{addressA, addressB}
	if err := a.prove(); err != nil {
		t.Fatal(err)
	}
	h.isProven("s1", false)
	h.isProven("s2", true)
}

func TestADeviceThatTriesTooOftenWaits(t *testing.T) {
	h := newTunnelHouse(t)
	a := h.notebook(notebookA, stranger)
	for range proofBurst {
		wants(t, a.prove(), codes.NotFound)
	}
	wants(t, a.prove(), codes.ResourceExhausted)
	b := h.notebook(notebookB, addressB)
	wants(t, b.prove(), codes.NotFound) // the others don't
	h.set(func() { h.ahead = 2 * time.Second })
	wants(t, a.prove(), codes.NotFound)
}

func TestADeviceHasFewCallsOpen(t *testing.T) {
	h := newTunnelHouse(t)
	a := h.notebook(notebookA, addressA)
	h.session(gatewayA, "s1", notebookA, addressA)
	for range openPerDevice {
		if _, err := a.challenged(a.open()); err != nil {
			t.Fatal(err)
		}
	}
	_, err := a.challenged(a.open())
	wants(t, err, codes.ResourceExhausted)
}

// The same refusal again is one record: a device cannot fill the audit log.
func TestARepeatedRefusalIsOneRecord(t *testing.T) {
	h := newTunnelHouse(t)
	a := h.notebook(notebookA, addressA)
	h.session(gatewayA, "s1", notebookA, addressA)
	a.own = nil
	for range 3 {
		wants(t, a.prove(), codes.PermissionDenied)
	}
	if got := h.recorded(); len(got) != 1 {
		t.Errorf("recorded %q", got)
	}
}

func TestQuietDevicesAreForgotten(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newTunnelLimits(func() time.Time { return now })
	for i := range mostTried {
		release, ok := l.enter(fmt.Sprint(i))
		if !ok {
			t.Fatal("refused")
		}
		release()
	}
	now = now.Add(time.Hour)
	release, _ := l.enter("one more")
	release()
	if len(l.tries) != 1 {
		t.Errorf("%d devices are remembered", len(l.tries))
	}
}

// Prove returns when a call's time is over, and its work ends a little later.
func TestARefusalAfterTheCallIsOverHarmsNobody(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newTunnelLimits(func() time.Time { return now })
	for i := range mostTried {
		release, _ := l.enter(fmt.Sprint(i))
		release()
	}
	now = now.Add(tunnelHelloWithin + tunnelWithin)
	release, _ := l.enter("one more")
	release()
	if l.news("0", "s1 signature") {
		t.Error("a device that is forgotten has news")
	}
}

func FuzzParseStatement(f *testing.F) {
	for _, addresses := range [][]string{nil, {addressA, "fd00::2"}, {"::ffff:10.8.0.2"}, {"fe80::1%eth0"}, {"x"}} {
		raw, err := proto.Marshal(&agentv1.TunnelStatement{Gateway: "vpn1", SessionId: "ovpn/1", Addresses: addresses})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := parseStatement(raw)
		if err != nil {
			if len(s.addresses) != 0 {
				t.Errorf("addresses beside an error: %v", s)
			}
			return
		}
		if len(raw) > maxStatement || len(s.addresses) > maxOwn {
			t.Errorf("%d bytes, %d addresses pass", len(raw), len(s.addresses))
		}
		for _, a := range s.addresses {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
				t.Errorf("%q passes", a)
			}
			if !s.has(a) {
				t.Errorf("%q is not found", a)
			}
		}
	})
}
