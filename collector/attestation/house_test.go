package attestation_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"time"

	"pfoertner/collector/attestation"
	"pfoertner/collector/audit"
	"pfoertner/internal/attest"
	"pfoertner/internal/attest/attesttest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	observed = posturev1.ReadingState_READING_STATE_OBSERVED
	failed   = posturev1.ReadingState_READING_STATE_FAILED

	learned  = posturev1.PcrReference_PCR_REFERENCE_LEARNED
	approved = posturev1.PcrReference_PCR_REFERENCE_APPROVED
	rejected = posturev1.PcrReference_PCR_REFERENCE_REJECTED
	unknown  = posturev1.PcrReference_PCR_REFERENCE_UNSPECIFIED
)

// shelf is a store in memory, which survives a restart of the book.
type shelf struct {
	mu      sync.Mutex
	tpms    map[string]attestation.Known
	refs    []*fleetv1.BootReference
	records []audit.Record
	saves   int
	err     error // of SaveTPM
	refErr  error // of SaveBootReference
	// meanwhile happens when SaveTPM is under way; nil: nothing does.
	meanwhile func()
}

func (s *shelf) EachTPM(_ context.Context, fn func(attestation.Known) error) error {
	for _, k := range s.tpms {
		if err := fn(k); err != nil {
			return err
		}
	}
	return nil
}

func (s *shelf) SaveTPM(_ context.Context, was []byte, k attestation.Known) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meanwhile != nil {
		s.meanwhile()
	}
	if s.err != nil {
		return s.err
	}
	if now, ok := s.tpms[k.DeviceID]; !ok || !bytes.Equal(now.AttestationKey, was) {
		return fs.ErrNotExist
	}
	s.tpms[k.DeviceID] = k
	s.saves++
	return nil
}

func (s *shelf) EachBootReference(_ context.Context, fn func(*fleetv1.BootReference) error) error {
	for _, r := range s.refs {
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

func (s *shelf) SaveBootReference(_ context.Context, r *fleetv1.BootReference, records ...audit.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refErr != nil {
		return s.refErr
	}
	s.refs = slices.DeleteFunc(s.refs, func(x *fleetv1.BootReference) bool {
		return x.GetVendor() == r.GetVendor() && x.GetModel() == r.GetModel() && x.GetPcr() == r.GetPcr() && bytes.Equal(x.GetSha256(), r.GetSha256())
	})
	s.refs = append(s.refs, r)
	s.records = append(s.records, records...)
	return nil
}

func (s *shelf) kinds() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var kinds []string
	for _, r := range s.records {
		kinds = append(kinds, r.Kind)
	}
	return kinds
}

// house is a book, its shelf and its clock.
type house struct {
	*attestation.Book
	t        testing.TB
	shelf    *shelf
	now      time.Time
	models   map[string]string
	software map[string]bool
	changed  []string
	exporter []byte
}

func newHouse(t testing.TB) *house {
	h := &house{
		t: t, shelf: &shelf{tpms: map[string]attestation.Known{}}, now: time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC),
		models: map[string]string{}, software: map[string]bool{}, exporter: bytes.Repeat([]byte{9}, 32),
	}
	h.restart()
	return h
}

// restart loads the book anew, as a collector that starts.
func (h *house) restart() {
	h.t.Helper()
	b, err := attestation.New(h.t.Context(), attestation.Options{Store: h.shelf, Device: h.device, Now: func() time.Time { return h.now }})
	if err != nil {
		h.t.Fatal(err)
	}
	h.Book, h.changed = b, nil
	b.OnChange(func(id string) { h.changed = append(h.changed, id) })
}

func (h *house) device(id string) (*fleetv1.Device, bool) {
	model, other := h.models[id]
	if !other {
		model = "Book 1"
	}
	d := &fleetv1.Device{
		Id: id, Asset: &fleetv1.Asset{AssetNumber: "NB-" + id, Vendor: "ACME", Model: model},
		Key: &fleetv1.DeviceKey{Protection: fleetv1.KeyProtection_KEY_PROTECTION_TPM},
	}
	if h.software[id] {
		d.Key.Protection = fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE
	}
	return d, true
}

// enrolled is a machine whose TPM is known.
func (h *house) enrolled(id string) *attesttest.TPM {
	h.t.Helper()
	p := attesttest.New(h.t)
	k := attestation.Known{DeviceID: id, EndorsementKey: p.EK.Area, AttestationKey: p.AK.Area, Since: h.now}
	h.shelf.tpms[id] = k
	h.Put(k)
	return p
}

var nonces byte

// asked makes a nonce.
func asked() []byte {
	nonces++
	return bytes.Repeat([]byte{nonces}, attest.NonceBytes)
}

// question asks a nonce now.
func (h *house) question(nonce []byte) attestation.Question {
	return attestation.Question{Nonce: nonce, Exporter: h.exporter, Asked: h.now}
}

// quote lets a machine quote, and the book judge it.
func (h *house) quote(id string, p *attesttest.TPM, change ...func(*agentv1.Quote)) (*posturev1.Attestation, error) {
	h.t.Helper()
	nonce := asked()
	q := p.Quote(h.t, nonce, h.exporter)
	for _, f := range change {
		f(q)
	}
	return h.Judge(h.t.Context(), id, h.question(nonce), q)
}

// quotes fails the test unless the quote counts.
func (h *house) quotes(id string, p *attesttest.TPM, change ...func(*agentv1.Quote)) *posturev1.Attestation {
	h.t.Helper()
	a, err := h.quote(id, p, change...)
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

func (h *house) stands(id string, state posturev1.ReadingState, reason string) {
	h.t.Helper()
	if r := h.Attestation(id).GetReading(); r.GetState() != state || r.GetReason() != reason {
		h.t.Errorf("it stands at %v, want %s %q", r, state, reason)
	}
}

func wantError(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func number(i int) string { return fmt.Sprintf("%03d", i) }
