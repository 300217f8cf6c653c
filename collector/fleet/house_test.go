package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/appraisal"
	"pfoertner/collector/attestation"
	"pfoertner/collector/authority"
	"pfoertner/collector/enrolment"
	"pfoertner/collector/store"
	"pfoertner/internal/mtls"
	"pfoertner/internal/signed"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// house is a collector as far as operators see it: real store, registry and
// TLS; desk, presence and verifier say what the test tells them.
type house struct {
	store    *store.Store
	path     string // of the database
	registry *enrolment.Registry
	keys     *authority.Authority
	desk     *desk
	presence presence
	verifier *verifier
	book     *attestation.Book
	notebook notebook
	shelf    shelf
	address  string
	// catalogues are the VPN catalogues that were put in force.
	catalogues [][]byte

	mu    sync.Mutex
	clock time.Time
}

var morning = time.Date(2026, 11, 21, 8, 30, 0, 0, time.UTC)

func (h *house) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clock
}

func (h *house) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock = h.clock.Add(d)
}

func build(t testing.TB) *house {
	t.Helper()
	h := &house{clock: morning, desk: &desk{}, presence: presence{}, verifier: &verifier{}}
	h.path = filepath.Join(t.TempDir(), "pfoertner.db")
	var err error
	if h.store, err = store.Open(t.Context(), h.path, store.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.store.Close(); err != nil {
			t.Error(err)
		}
	})
	if h.registry, err = enrolment.NewRegistry(t.Context(), h.store, enrolment.WithClock(h.now)); err != nil {
		t.Fatal(err)
	}
	h.openBook(t)
	return h
}

// openBook loads what is known of TPMs.
func (h *house) openBook(t testing.TB) {
	t.Helper()
	device := func(id string) (*fleetv1.Device, bool) { return h.registry.Device(id) }
	var err error
	if h.book, err = attestation.New(t.Context(), attestation.Options{Store: h.store, Device: device, Now: h.now}); err != nil {
		t.Fatal(err)
	}
}

func (h *house) options() Options {
	shipped, err := appraisal.DefaultReferences()
	if err != nil {
		panic(err) // a build that ships nonsense
	}
	return Options{
		References: h.store, Shipped: shipped, Catalogue: func(file []byte) { h.catalogues = append(h.catalogues, file) },
		Open: func(kind string, file []byte) ([]byte, string, error) {
			return signed.Open(kind, file, h.keys.Servers(), time.Now())
		},
		Devices: h.registry, Reports: h.store, Desk: h.desk, Presence: h.presence, Inventory: h.registry,
		Orders: h.registry, Policies: h.store, Verifier: h.verifier, Audit: h.store, Now: h.now,
		TPMs: h.book, Collector: &h.notebook, Authorities: &h.shelf, BootReferences: h.book,
	}
}

// serve opens the operators' listener.
func (h *house) serve(t testing.TB) {
	t.Helper()
	var err error
	h.keys, err = authority.Create(filepath.Join(t.TempDir(), "pki"), authority.Options{Addresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	config := mtls.ServerConfig(mtls.ServerOptions{
		Certificate: h.keys.ServerCertificate, Clients: h.keys.Operators(), Role: mtls.RoleOperator,
	})
	life, end := context.WithCancel(context.Background())
	h.address = listen(t, NewServer(life, h.options(), grpc.Creds(credentials.NewTLS(config))))
	t.Cleanup(end)
}

func listen(t testing.TB, server *grpc.Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	return l.Addr().String()
}

// operator dials as the operator of that name.
func (h *house) operator(t testing.TB, name string) *grpc.ClientConn {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := h.keys.WriteOperator(dir, name); err != nil {
		t.Fatal(err)
	}
	return h.dial(t, mtls.FromFiles(filepath.Join(dir, "operator.crt"), filepath.Join(dir, "operator.key")), h.keys.Servers())
}

func (h *house) dial(t testing.TB, certificate func() (*tls.Certificate, error), servers *x509.CertPool) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(h.address, grpc.WithTransportCredentials(credentials.NewTLS(
		mtls.ClientConfig(mtls.ClientOptions{Certificate: certificate, Servers: servers, ServerName: "127.0.0.1"}),
	)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// add puts devices into store and registry, past enrolment.
func (h *house) add(t testing.TB, devices ...*fleetv1.Device) {
	t.Helper()
	if err := h.store.SaveDevices(t.Context(), devices); err != nil {
		t.Fatal(err)
	}
	var err error
	if h.registry, err = enrolment.NewRegistry(t.Context(), h.store, enrolment.WithClock(h.now)); err != nil {
		t.Fatal(err)
	}
}

func (h *house) report(t testing.TB, id string, verdict posturev1.Verdict, pending uint32, at time.Time) {
	t.Helper()
	ev := &posturev1.Evidence{Patch: &posturev1.Patch{PendingSecurity: pending}, Platform: &posturev1.Platform{AgentVersion: "1.0.0"}}
	res := &posturev1.Result{
		Verdict: verdict, CollectedAt: timestamppb.New(at), AppraisedAt: timestamppb.New(at),
		EvidenceDigest: fmt.Append(nil, pending, at),
		Findings:       []*posturev1.Finding{{Rule: "patches", Outcome: posturev1.Outcome_OUTCOME_FAIL}},
	}
	if verdict != admit {
		res.Code = "7K4-QX2"
	}
	if err := h.store.SaveReport(t.Context(), id, ev, res); err != nil {
		t.Fatal(err)
	}
}

const (
	deny       = posturev1.Verdict_VERDICT_DENY
	quarantine = posturev1.Verdict_VERDICT_QUARANTINE
	admit      = posturev1.Verdict_VERDICT_ADMIT
)

func deviceID(n int) string    { return fmt.Sprintf("0197f3a0-0000-7000-8000-%012d", n) }
func assetNumber(n int) string { return fmt.Sprintf("HB-%06d", n) }

func device(n int, unit string) *fleetv1.Device {
	return &fleetv1.Device{Id: deviceID(n), Asset: &fleetv1.Asset{
		AssetNumber: assetNumber(n), Unit: unit, Serial: fmt.Sprintf("PF%06d", n), State: fleetv1.AssetState_ASSET_STATE_ACTIVE,
	}}
}

// notebook answers, when asked to report, as a test tells it.
type notebook struct {
	asked  []string
	answer func(ctx context.Context) error
}

func (n *notebook) CollectAndWait(ctx context.Context, deviceID string, quote bool) error {
	n.asked = append(n.asked, fmt.Sprint(deviceID, " ", quote))
	if n.answer == nil {
		return nil
	}
	return n.answer(ctx)
}

// shelf holds authorities by name alone, and takes every file but a bad one.
type shelf struct {
	list []*fleetv1.EndorsementAuthority
}

func (s *shelf) List() []*fleetv1.EndorsementAuthority { return s.list }

func (s *shelf) Add(_ context.Context, actor string, certificates []byte, dryRun bool) ([]*fleetv1.EndorsementAuthority, error) {
	if string(certificates) == "bad" {
		return nil, fmt.Errorf("Bad Root: nobody reviewed it: %w", fs.ErrInvalid)
	}
	added := []*fleetv1.EndorsementAuthority{{Subject: string(certificates), AddedBy: actor}}
	if !dryRun {
		s.list = append(s.list, added...)
	}
	return added, nil
}

// desk knows the sessions and verdicts that a test gives it.
type desk struct {
	sessions []*fleetv1.Session
	verdicts map[string]posturev1.Verdict
}

func (d *desk) Sessions(gateway string) []*fleetv1.Session {
	var found []*fleetv1.Session
	for _, s := range d.sessions {
		if gateway == "" || s.GetGateway() == gateway {
			found = append(found, s)
		}
	}
	return found
}

func (d *desk) Explain(deviceID string) (posturev1.Verdict, *posturev1.LocalText) {
	v := d.verdicts[deviceID]
	return v, &posturev1.LocalText{De: "so ist es", En: "now " + strings.ToLower(strings.TrimPrefix(v.String(), "VERDICT_"))}
}

// presence holds devices that are online, and their agents' versions.
type presence map[string]string

func (p presence) Online(id string) (bool, time.Time, string) {
	version, ok := p[id]
	if !ok {
		return false, time.Time{}, ""
	}
	return true, morning.Add(time.Hour), version
}

// verifier adopts in two steps and waits between them when told to.
type verifier struct {
	mu         sync.Mutex
	adopted    []*appraisal.Policy
	references []*appraisal.References
	between    func(context.Context)
}

func (v *verifier) AdoptReferences(ctx context.Context, r *appraisal.References, progress func(*fleetv1.ApplyResponse)) error {
	progress(&fleetv1.ApplyResponse{Appraised: 1, Total: 1, NowQuarantined: 1})
	v.mu.Lock()
	defer v.mu.Unlock()
	v.references = append(v.references, r)
	return ctx.Err()
}

func (v *verifier) References() *appraisal.References {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.references) == 0 {
		return &appraisal.References{}
	}
	return v.references[len(v.references)-1]
}

func (v *verifier) Adopt(ctx context.Context, p *appraisal.Policy, progress func(*fleetv1.ApplyResponse)) error {
	progress(&fleetv1.ApplyResponse{Appraised: 1, Total: 2})
	if v.between != nil {
		v.between(ctx)
	}
	progress(&fleetv1.ApplyResponse{Appraised: 2, Total: 2, NowDenied: 1})
	v.mu.Lock()
	defer v.mu.Unlock()
	v.adopted = append(v.adopted, p)
	return ctx.Err()
}

func (v *verifier) versions() (versions []uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range v.adopted {
		versions = append(versions, p.Version())
	}
	return versions
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused checks code and text of a call's error.
func refused(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if got := status.Convert(err); got.Code() != code || !strings.Contains(got.Message(), text) {
		t.Errorf("got %v %q, want %v with %q", got.Code(), got.Message(), code, text)
	}
}

// saveLarge saves a report of the size that a real notebook sends: 3 KB of
// evidence, a dozen findings.
func saveLarge(ctx context.Context, h *house, n int) error {
	ev := &posturev1.Evidence{Patch: &posturev1.Patch{PendingSecurity: uint32(n % 10)}, Platform: &posturev1.Platform{AgentVersion: "1.0.0"}}
	for i := range 35 {
		ev.Patch.Pending = append(ev.Patch.Pending, &posturev1.PendingUpdate{
			Package: fmt.Sprintf("lib-number-%d", i), Architecture: "amd64", InstalledVersion: "1.2.3-1",
			FixedVersion: "1.2.3-1+deb12u1", FirstSeenAt: timestamppb.New(morning), Origin: "Debian-Security",
		})
	}
	res := &posturev1.Result{
		Verdict: posturev1.Verdict(n % 3), CollectedAt: timestamppb.New(morning), AppraisedAt: timestamppb.New(morning),
		EvidenceDigest: fmt.Append(nil, n), Policy: "dienstgeraete",
	}
	for i := range 12 {
		res.Findings = append(res.Findings, &posturev1.Finding{
			Rule: fmt.Sprintf("rule-%d", i), Outcome: posturev1.Outcome_OUTCOME_PASS,
			Title:  &posturev1.LocalText{De: "Festplatten verschlüsselt", En: "Disks encrypted"},
			Values: []*posturev1.Value{{Path: "evidence.patch.pending_security", Value: "0"}},
		})
	}
	return h.store.SaveReport(ctx, deviceID(n), ev, res)
}
