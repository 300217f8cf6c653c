package session

import (
	"crypto/ecdsa"
	"crypto/x509"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"pfoertner/agent/identity"
	"pfoertner/agent/status"
	"pfoertner/agent/testcollector"
	"pfoertner/agent/uplink"
	"pfoertner/internal/e2e/swtpm"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// chipOffice is a collector that expects the TPM of every notebook that asks,
// unless it refuses all.
type chipOffice struct {
	*testcollector.Collector
	// rotated: another CA is current than the one that notebooks were installed
	// with.
	rotated atomic.Bool
	asked   atomic.Int32
	refuses atomic.Bool
}

func newChipOffice(t *testing.T) *chipOffice {
	o := &chipOffice{Collector: testcollector.New(t)}
	o.OnEnrol = func(s agentv1.EnrolmentService_EnrolServer) error {
		o.asked.Add(1)
		hello, key, err := testcollector.Proven(s)
		if err != nil {
			return err
		}
		if hello.GetTpm() == nil || hello.GetToken() != "" || o.refuses.Load() {
			return testcollector.Refused()
		}
		return o.Grant(s, key, "0f9a2c1e-7c55-4e1c-9a54-3f2f0a0c7d21")
	}
	return o
}

func (o *chipOffice) enrolment() (identity.Enrolment, error) {
	pin := o.Servers.Fingerprint()
	if o.rotated.Load() {
		pin = make([]byte, len(pin))
	}
	return identity.Enrolment{Target: o.Target(), Pin: uplink.Pin{Fingerprint: pin}, Machine: &agentv1.Machine{}}, nil
}

// device is an enrolled notebook with a TPM.
func (o *chipOffice) device(t *testing.T) (*swtpm.TPM, *identity.State) {
	t.Helper()
	tpm := swtpm.New(t)
	state, err := identity.Open(filepath.Join(t.TempDir(), "state"), identity.TPM{Chip: tpm.Chip(t)})
	if err != nil {
		t.Fatal(err)
	}
	e, err := o.enrolment()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := state.Enrol(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	return tpm, state
}

func (o *chipOffice) impatient(a *agent) {
	a.refused = &uplink.Backoff{Base: time.Millisecond, Cap: 10 * time.Millisecond}
	a.retry = &uplink.Backoff{Base: time.Millisecond, Cap: 10 * time.Millisecond}
	a.Enrolment = o.enrolment
}

var refusal = grpcstatus.Error(codes.PermissionDenied, "not accepted")

// A disk that is restored from a backup has an old key.
func TestKeyInTheTPMThatIsNotAcceptedEnrolsAnewWithoutAToken(t *testing.T) {
	o := newChipOffice(t)
	o.Listen()
	_, state := o.device(t)
	before, err := state.Load()
	if err != nil {
		t.Fatal(err)
	}
	o.rotated.Store(true) // the collector has told it which CA came next
	start(t, o.Collector, state, o.impatient)
	o.Next(t).End(refusal)
	opened(t, o.Collector)
	if after, err := state.Load(); err != nil || after.Chain[0].Equal(before.Chain[0]) || o.asked.Load() != 2 {
		t.Errorf("%v, asked %d times", err, o.asked.Load())
	}
}

func TestSuspendedDeviceWithATPMAsksOnceAnHour(t *testing.T) {
	o := newChipOffice(t)
	o.Listen()
	_, state := o.device(t)
	o.refuses.Store(true)
	a := start(t, o.Collector, state, o.impatient)
	for range 5 {
		o.Next(t).End(refusal)
	}
	a.board.shows(t, status.Refused)
	if n := o.asked.Load(); n != 2 {
		t.Errorf("enrolled %d times, want once and once more", n)
	}
}

func TestTPMThatDoesNotAnswerIsShownAndWaitedFor(t *testing.T) {
	o := newChipOffice(t)
	o.Listen()
	tpm, state := o.device(t)
	tpm.Off()
	a := start(t, o.Collector, state, o.impatient)
	a.board.shows(t, status.NoTPM)
	tpm.On(t)
	opened(t, o.Collector)
	a.board.shows(t, status.Online)
	if n := o.asked.Load(); n != 1 {
		t.Errorf("enrolled %d times", n)
	}
}

// After a holiday: nobody brings a token.
func TestExpiredCertificateOfAKeyInTheTPMIsReplacedWithoutAToken(t *testing.T) {
	o := newChipOffice(t)
	o.Listen()
	_, state := o.device(t)
	id, err := state.Load()
	if err != nil {
		t.Fatal(err)
	}
	ended := *id
	leaf := o.Devices.Issue(t, testcollector.Subject{URI: "urn:uuid:" + id.DeviceID, Public: id.Key.Public(), Life: -time.Minute})
	ended.Chain = []*x509.Certificate{leaf.Leaf, o.Devices.Certificate}
	if err := state.Save(&ended); err != nil {
		t.Fatal(err)
	}
	o.rotated.Store(true) // the collector has told it which CA came next
	start(t, o.Collector, state, o.impatient)
	opened(t, o.Collector)
	if after, err := state.Load(); err != nil || !after.Key.Public().(*ecdsa.PublicKey).Equal(id.Key.Public()) || o.asked.Load() != 2 {
		t.Errorf("%v, asked %d times: the same key is wanted, by one enrolment", err, o.asked.Load())
	}
}

func TestTPMThatWasClearedIsShownWhileTheDeviceEnrolsAnew(t *testing.T) {
	o := newChipOffice(t)
	o.Listen()
	tpm, state := o.device(t)
	before, err := state.Load()
	if err != nil {
		t.Fatal(err)
	}
	tpm.Clear(t)
	shown := filepath.Join(t.TempDir(), "status.json")
	board := status.NewBoard(shown, slog.New(slog.DiscardHandler))
	err = state.Obtain(t.Context(), o.enrolment, waiting{board}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if after, err := state.Load(); err != nil || after.Key.Public().(*ecdsa.PublicKey).Equal(before.Key.Public()) {
		t.Errorf("%v: another key is wanted", err)
	}
	if s, err := status.Read(shown); err != nil || !s.ForeignKeys || s.Connection != status.NotEnrolled {
		t.Errorf("shown %+v, %v", s, err)
	}
}
