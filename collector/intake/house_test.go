package intake

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/attestation"
	"pfoertner/collector/audit"
	"pfoertner/collector/authority"
	"pfoertner/collector/enrolment"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	deviceA = "8f14e45f-ceea-467f-9f2b-0123456789ab"
	deviceB = "8f14e45f-ceea-467f-9f2b-0123456789ac"
)

// door is a registry of few devices. Its rules are those of
// enrolment.Registry, which has its own tests.
type door struct {
	mu          sync.Mutex
	state       map[string]fleetv1.AssetState
	key         map[string][]byte
	previous    map[string][]byte
	subscribers []func(*fleetv1.Device)
	renewErr    error
	settleErr   error
	protection  map[string]fleetv1.KeyProtection
	alarms      []alarm
}

// alarm is what the registry was told.
type alarm struct{ id, kind, detail string }

var errShut = errors.New("asset is suspended")

func (d *door) Accepts(id string, spki []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state[id] != fleetv1.AssetState_ASSET_STATE_ACTIVE {
		return errShut
	}
	if len(spki) == 0 || !bytes.Equal(d.key[id], spki) && !bytes.Equal(d.previous[id], spki) {
		return enrolment.ErrStaleKey
	}
	return nil
}

func (d *door) Device(id string) (*fleetv1.Device, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	state, ok := d.state[id]
	return &fleetv1.Device{
		Id:    id,
		Asset: &fleetv1.Asset{AssetNumber: "NB-" + id[34:], State: state, Vendor: "ACME", Model: "Book 1"},
		Key:   &fleetv1.DeviceKey{Protection: d.protection[id]},
	}, ok
}

func (d *door) CertificateLifetime(id string) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.protection[id] == fleetv1.KeyProtection_KEY_PROTECTION_TPM {
		return 72 * time.Hour
	}
	return 24 * time.Hour
}

func (d *door) Alarm(_ context.Context, id, kind, detail string) error {
	d.mu.Lock()
	d.alarms = append(d.alarms, alarm{id, kind, detail})
	d.mu.Unlock()
	d.set(id, fleetv1.AssetState_ASSET_STATE_SUSPENDED)
	return nil
}

// alarmed waits until alarms that are under way are raised, and returns all.
func (h *house) alarmed() []alarm {
	h.alarms.Wait()
	h.door.mu.Lock()
	defer h.door.mu.Unlock()
	return slices.Clone(h.door.alarms)
}

func (d *door) Renew(_ context.Context, id string, from, spki []byte, _ string, _ time.Time) error {
	if err := d.Accepts(id, from); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.renewErr == nil {
		d.key[id], d.previous[id] = spki, from
	}
	return d.renewErr
}

func (d *door) Settle(_ context.Context, id string, spki []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.previous[id] == nil || !bytes.Equal(d.key[id], spki) {
		return nil
	}
	if d.settleErr == nil {
		delete(d.previous, id)
	}
	return d.settleErr
}

func (d *door) OnChange(fn func(*fleetv1.Device)) { d.subscribers = append(d.subscribers, fn) }

// set changes a device as operators do.
func (d *door) set(id string, state fleetv1.AssetState) {
	d.mu.Lock()
	d.state[id] = state
	d.mu.Unlock()
	dev, _ := d.Device(id)
	for _, fn := range d.subscribers {
		fn(dev)
	}
}

// desk is a Verifier that keeps reports in memory. Its verdict is ADMIT unless
// the architecture is "bad".
type desk struct {
	mu        sync.Mutex
	evidence  map[string]*posturev1.Evidence
	result    map[string]*posturev1.Result
	submitted int
	confirmed int
	// gate, when not nil, holds up every report until it is closed or the
	// stream has ended.
	gate chan struct{}
	err  error
}

func (v *desk) Submit(ctx context.Context, id string, ev *posturev1.Evidence, _ []byte, at time.Time) (*posturev1.Result, error) {
	if err := v.wait(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.submitted++
	v.evidence[id] = ev
	return v.judge(id, at)
}

func (v *desk) Confirm(ctx context.Context, id string, at time.Time) (*posturev1.Result, error) {
	if err := v.wait(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.confirmed++
	return v.judge(id, at)
}

func (v *desk) wait(ctx context.Context) error {
	v.mu.Lock()
	gate, err := v.gate, v.err
	v.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (v *desk) judge(id string, at time.Time) (*posturev1.Result, error) {
	ev := v.evidence[id]
	digest, err := posture.Digest(ev)
	if err != nil {
		return nil, err
	}
	verdict := posturev1.Verdict_VERDICT_ADMIT
	if ev.GetPlatform().GetArchitecture() == "bad" {
		verdict = posturev1.Verdict_VERDICT_DENY
	}
	v.result[id] = &posturev1.Result{
		Verdict: verdict, EvidenceDigest: digest, CollectedAt: timestamppb.New(at), AppraisedAt: timestamppb.Now(),
	}
	return v.result[id], nil
}

func (v *desk) Report(_ context.Context, id string) (*posturev1.Evidence, *posturev1.Result, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.evidence[id] == nil {
		return nil, nil, fmt.Errorf("report of %s: %w", id, fs.ErrNotExist)
	}
	return v.evidence[id], v.result[id], nil
}

func (v *desk) counts() (submitted, confirmed int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.submitted, v.confirmed
}

// shelf keeps in memory what is known of TPMs, and audit records.
type shelf struct {
	mu      sync.Mutex
	tpms    map[string]attestation.Known
	records []audit.Record
	err     error
}

func (s *shelf) EachTPM(_ context.Context, fn func(attestation.Known) error) error {
	for _, k := range s.tpms {
		if err := fn(k); err != nil {
			return err
		}
	}
	return nil
}

func (s *shelf) SaveTPM(_ context.Context, _ []byte, k attestation.Known) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.tpms[k.DeviceID] = k
	}
	return s.err
}

func (s *shelf) EachBootReference(context.Context, func(*fleetv1.BootReference) error) error {
	return nil
}

func (s *shelf) SaveBootReference(_ context.Context, _ *fleetv1.BootReference, records ...audit.Record) error {
	return s.AppendAudit(context.Background(), records...)
}

func (s *shelf) AppendAudit(_ context.Context, records ...audit.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = append(s.records, records...)
	return nil
}

// kinds counts the audit records of a kind.
func (s *shelf) kinds(kind string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if r.Kind == kind {
			n++
		}
	}
	return n
}

// house is the agents' server over TLS, on a connection in memory.
type house struct {
	*Service
	book      *attestation.Book
	shelf     *shelf
	door      *door
	desk      *desk
	authority *authority.Authority
	listener  *bufconn.Listener
	server    *grpc.Server
}

func newHouse(t testing.TB, change ...func(*Options)) *house {
	t.Helper()
	a, err := authority.Create(filepath.Join(t.TempDir(), "pki"), authority.Options{DNSNames: []string{"collector"}})
	if err != nil {
		t.Fatal(err)
	}
	h := &house{
		shelf: &shelf{tpms: map[string]attestation.Known{}},
		door: &door{
			state: map[string]fleetv1.AssetState{}, key: map[string][]byte{}, previous: map[string][]byte{},
			protection: map[string]fleetv1.KeyProtection{},
		},
		desk:      &desk{evidence: map[string]*posturev1.Evidence{}, result: map[string]*posturev1.Result{}},
		authority: a,
		listener:  bufconn.Listen(1 << 16),
	}
	o := Options{
		Registry: h.door, Verifier: h.desk, Reports: h.desk, Issuer: a, Audit: h.shelf,
		ReportInterval: func() time.Duration { return 5 * time.Minute }, Version: "test",
	}
	for _, f := range change {
		f(&o)
	}
	h.book, err = attestation.New(t.Context(), attestation.Options{Store: h.shelf, Device: h.door.Device, Now: o.Now})
	if err != nil {
		t.Fatal(err)
	}
	o.TPMs = h.book
	h.Service = NewService(o)
	h.server = grpc.NewServer(h.ServerOptions(h.TLS(a.ServerCertificate, a.Devices()))...)
	agentv1.RegisterSessionServiceServer(h.server, h.Service)
	go h.server.Serve(h.listener)
	t.Cleanup(h.server.Stop)
	return h
}

// notebook is the agent's side.
type notebook struct {
	t     testing.TB
	house *house
	id    string
	key   *ecdsa.PrivateKey
	chain [][]byte
	// signer, when not nil, is used in place of key.
	signer crypto.Signer

	stream   agentv1.SessionService_ConnectClient
	conn     *grpc.ClientConn
	nonce    []byte
	sequence uint64
}

// enrolled makes a device known and active, with a key and a certificate.
func (h *house) enrolled(t testing.TB, id string) *notebook {
	t.Helper()
	key, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return h.enrolledWith(t, id, key)
}

// enrolledWith makes a device known and active, with a certificate for a key.
func (h *house) enrolledWith(t testing.TB, id string, key *ecdsa.PrivateKey) *notebook {
	t.Helper()
	n := h.certified(t, id, key.Public())
	n.key = key
	return n
}

// certified makes a device known and active, with a certificate for a public
// key.
func (h *house) certified(t testing.TB, id string, key crypto.PublicKey) *notebook {
	t.Helper()
	cert, err := h.authority.IssueDevice(id, key, 0)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := attest.SPKI(key)
	if err != nil {
		t.Fatal(err)
	}
	h.door.mu.Lock()
	defer h.door.mu.Unlock()
	h.door.state[id], h.door.key[id] = fleetv1.AssetState_ASSET_STATE_ACTIVE, spki
	return &notebook{t: t, house: h, id: id, chain: cert.Chain}
}

// dial opens a connection with a certificate, or without one.
func (h *house) dial(t testing.TB, pair *tls.Certificate) *grpc.ClientConn {
	t.Helper()
	o := mtls.ClientOptions{Servers: h.authority.Servers(), ServerName: "collector"}
	if pair != nil {
		o.Certificate = func() (*tls.Certificate, error) { return pair, nil }
	}
	conn, err := grpc.NewClient("passthrough:///collector", grpc.WithTransportCredentials(credentials.NewTLS(mtls.ClientConfig(o))),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return h.listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// within is how long a stream may take: a test that waits for what does not come
// fails. In a bubble of synctest, whose clock begins in the year 2000, hours pass
// at once, and who waits for ever is found out.
func within(t testing.TB) context.Context {
	if time.Now().Year() == 2000 {
		return t.Context()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// open connects and sends nothing.
func (n *notebook) open() *notebook {
	n.t.Helper()
	pair := &tls.Certificate{Certificate: n.chain, PrivateKey: n.key}
	if n.signer != nil {
		pair.PrivateKey = n.signer
	}
	n.conn = n.house.dial(n.t, pair)
	stream, err := agentv1.NewSessionServiceClient(n.conn).Connect(within(n.t))
	if err != nil {
		n.t.Fatal(err)
	}
	n.stream, n.nonce, n.sequence = stream, nil, 0
	return n
}

// hello connects and gets through the welcome.
func (n *notebook) hello() *notebook {
	n.t.Helper()
	n.open()
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.ClientHello{Capability: 1, AgentVersion: "1.2.3"}}})
	n.nonce = n.receive().GetWelcome().GetNonce()
	if len(n.nonce) != 16 {
		n.t.Fatalf("nonce %x", n.nonce)
	}
	return n
}

func (n *notebook) send(m *agentv1.ConnectRequest) {
	n.t.Helper()
	if err := n.stream.Send(m); err != nil {
		n.t.Fatalf("sending: %v, %v", err, n.end())
	}
}

func (n *notebook) receive() *agentv1.ConnectResponse {
	n.t.Helper()
	m, err := n.stream.Recv()
	if err != nil {
		n.t.Fatal(err)
	}
	return m
}

// end reads until the stream ends and returns why.
func (n *notebook) end() error {
	for {
		if _, err := n.stream.Recv(); err != nil {
			return err
		}
	}
}

// ends fails the test unless the stream ends with a code.
func (n *notebook) ends(code codes.Code) {
	n.t.Helper()
	if err := n.end(); status.Code(err) != code {
		n.t.Errorf("stream ended with %v, want %s", err, code)
	}
}

// evidence is a machine of an architecture: enough to tell two apart.
func evidence(architecture string) *posturev1.Evidence {
	read := &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_OBSERVED, Source: "test"}
	return &posturev1.Evidence{
		Platform: &posturev1.Platform{Reading: read, Architecture: architecture},
		Tpm:      &posturev1.Tpm{Reading: read},
	}
}

func digest(t testing.TB, ev *posturev1.Evidence) []byte {
	t.Helper()
	sum, err := posture.Digest(ev)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// report makes the next report, without a body.
func (n *notebook) report(whole *posturev1.Evidence) *agentv1.Report {
	n.t.Helper()
	n.sequence++
	return &agentv1.Report{
		Sequence: n.sequence, Nonce: n.nonce, CollectedAgo: durationpb.New(time.Second), Digest: digest(n.t, whole),
	}
}

func (n *notebook) full(ev *posturev1.Evidence) *agentv1.Report {
	r := n.report(ev)
	r.Body = &agentv1.Report_Full{Full: ev}
	return r
}

func (n *notebook) delta(before, now *posturev1.Evidence) *agentv1.Report {
	r := n.report(now)
	r.Body = &agentv1.Report_Delta{Delta: posture.Diff(before, now)}
	return r
}

func (n *notebook) heartbeat(ev *posturev1.Evidence) *agentv1.Report {
	r := n.report(ev)
	r.Body = &agentv1.Report_Heartbeat{Heartbeat: &agentv1.Heartbeat{}}
	return r
}

func message(r *agentv1.Report) *agentv1.ConnectRequest {
	return &agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Report{Report: r}}
}

// acknowledged sends a report and waits for its acknowledgement.
func (n *notebook) acknowledged(r *agentv1.Report) {
	n.t.Helper()
	n.send(message(r))
	ack := n.receive().GetAcknowledgement()
	if ack.GetSequence() != r.GetSequence() || !bytes.Equal(ack.GetDigest(), r.GetDigest()) {
		n.t.Fatalf("acknowledged %v for report %d", ack, r.GetSequence())
	}
}

// judged waits for a result.
func (n *notebook) judged(verdict posturev1.Verdict) {
	n.t.Helper()
	if m := n.receive(); m.GetResult() == nil || m.GetResult().GetVerdict() != verdict {
		n.t.Fatalf("got %v, want a result %s", m, verdict)
	}
}
