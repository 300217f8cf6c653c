package verifier

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const quotePolicy = `
name: quoted
freshness: {max_age: 10h}
rules:
  - id: secure-boot
    title: {de: Start, en: Start}
    remedy: {de: Start, en: Start}
    require: attested.secure_boot_on()
    on_fail: deny
    on_unknown: quarantine
`

func (h *house) attestation(secureBoot posturev1.Ternary, valid time.Duration) *posturev1.Attestation {
	return &posturev1.Attestation{
		Reading:  &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_OBSERVED},
		QuotedAt: timestamppb.New(h.now()), ValidUntil: timestamppb.New(h.now().Add(valid)),
		SecureBoot: secureBoot, SetupMode: no,
	}
}

// underQuotes is a house whose policy looks at what the TPM vouches for.
func underQuotes(t *testing.T) *house {
	h := newHouse(t)
	if err := h.Adopt(t.Context(), compile(t, quotePolicy), nil); err != nil {
		t.Fatal(err)
	}
	h.inventory.set(t, "a", active())
	return h
}

func TestTheTPMIsAskedAtEveryAppraisal(t *testing.T) {
	h := underQuotes(t)
	if res := h.submit(t, "a", yes); res.GetVerdict() != quarantine || res.GetQuotedAt() != nil {
		t.Errorf("never quoted: %v, quote of %v", res.GetVerdict(), res.GetQuotedAt())
	}
	first := h.attestation(yes, 24*time.Hour)
	h.vouch("a", first)
	if res := h.submit(t, "a", yes); res.GetVerdict() != admit || !proto.Equal(res.GetQuotedAt(), first.GetQuotedAt()) {
		t.Errorf("quoted: %v, quote of %v", res.GetVerdict(), res.GetQuotedAt())
	}
	h.vouch("a", h.attestation(no, 24*time.Hour))
	if res, err := h.Confirm(t.Context(), "a", h.now()); err != nil || res.GetVerdict() != deny {
		t.Errorf("a heartbeat after the start was changed: %v, %v", res.GetVerdict(), err)
	}
	h.vouch("b", h.attestation(yes, 24*time.Hour))
	if res, err := h.Reappraise(t.Context(), "a"); err != nil || res.GetVerdict() != deny {
		t.Errorf("another device's quote: %v, %v", res.GetVerdict(), err)
	}
	_, stored, err := h.store.Report(t.Context(), "a")
	if err != nil || !proto.Equal(stored.GetQuotedAt(), first.GetQuotedAt()) {
		t.Errorf("stored with the quote of %v, %v", stored.GetQuotedAt(), err)
	}
}

func TestRunJudgesAnewWhatTheTPMVouchesFor(t *testing.T) {
	h := underQuotes(t)
	stop := running(t, h)
	defer stop()
	h.submit(t, "a", yes)
	h.vouch("a", h.attestation(yes, 24*time.Hour))
	h.AttestationChanged("a")
	h.AttestationChanged("")
	h.AttestationChanged("not in the inventory")
	h.await(t, "a", admit)
	h.vouch("a", h.attestation(no, 24*time.Hour))
	h.AttestationChanged("a")
	h.await(t, "a", deny)
}

// No restart, and no quote that stays out, keeps a verdict longer than the
// quote it rests on.
func TestAVerdictEndsWithItsQuote(t *testing.T) {
	h := underQuotes(t)
	h.vouch("a", h.attestation(yes, 20*time.Minute))
	res := h.submit(t, "a", yes)
	if left := res.GetExpiresAt().AsTime().Sub(h.now()); res.GetVerdict() != admit || left != 20*time.Minute {
		t.Fatalf("%v for %v", res.GetVerdict(), left)
	}
	h.restart(t)
	stop := running(t, h)
	defer stop()
	h.advance(20 * time.Minute)
	h.Expired("a")
	h.await(t, "a", quarantine)
}

func TestWithoutABookNothingIsAttested(t *testing.T) {
	h := underQuotes(t)
	v := New(Options{Store: h.store, Desk: h.desk, Devices: h.inventory, Policy: h.Policy(), Now: h.now})
	h.Verifier = v
	h.vouch("a", h.attestation(yes, 24*time.Hour))
	if res := h.submit(t, "a", yes); res.GetVerdict() != quarantine {
		t.Errorf("%v", res.GetVerdict())
	}
}
