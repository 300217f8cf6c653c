package attestation_test

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"pfoertner/collector/attestation"
	"pfoertner/internal/attest"
	"pfoertner/internal/attest/attesttest"
	"pfoertner/internal/attest/bootlog/bootlogtest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func TestQuoteBecomesAnAttestation(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	h.stands("a", failed, "the TPM has never quoted")
	a := h.quotes("a", p)
	if a != h.Attestation("a") {
		t.Error("what was judged is not what stands")
	}
	if a.GetReading().GetState() != observed || a.GetSecureBoot() != posturev1.Ternary_TERNARY_YES || a.GetSetupMode() != posturev1.Ternary_TERNARY_NO {
		t.Errorf("attested %v", a)
	}
	if !a.GetQuotedAt().AsTime().Equal(h.now) || !a.GetValidUntil().AsTime().Equal(h.now.Add(24*time.Hour)) {
		t.Errorf("of %v until %v", a.GetQuotedAt().AsTime(), a.GetValidUntil().AsTime())
	}
	var names []string
	for _, k := range a.GetKeys() {
		names = append(names, k.GetName())
	}
	if !slices.Equal(names, []string{"PK", "KEK", "db", "dbx"}) || !slices.Equal(a.GetAuthorities(), []string{"db", "SbatLevel"}) {
		t.Errorf("keys %v, authorities %v", names, a.GetAuthorities())
	}
	if l := a.GetBootLoaders(); len(l) != 2 || !bytes.Equal(l[0], bootlogtest.Digest("shim")) || !bytes.Equal(l[1], bootlogtest.Digest("grub")) {
		t.Errorf("boot loaders %x", l)
	}
	var pcrs []uint32
	for _, r := range a.GetPcrs() {
		pcrs = append(pcrs, r.GetIndex())
		if !bytes.Equal(r.GetSha256(), p.Boot.PCR(r.GetIndex())) {
			t.Errorf("PCR %d is %x", r.GetIndex(), r.GetSha256())
		}
	}
	if !slices.Equal(pcrs, attest.QuotedPCRs()) || a.GetIncomplete() != "" || a.GetTpmFirmware() != 42 || a.GetVirtual() || a.GetBootLoadersChangedAt() != nil {
		t.Errorf("attested %v", a)
	}
}

func TestQuoteThatDoesNotVerifyProvesNothing(t *testing.T) {
	other := attesttest.New(t)
	for name, tc := range map[string]func(h *house, p *attesttest.TPM) error{
		"another nonce": func(h *house, p *attesttest.TPM) error {
			_, err := h.Judge(t.Context(), "a", h.question(asked()), p.Quote(t, asked(), h.exporter))
			return err
		},
		"another connection": func(h *house, p *attesttest.TPM) error {
			nonce := asked()
			_, err := h.Judge(t.Context(), "a", h.question(nonce), p.Quote(t, nonce, bytes.Repeat([]byte{1}, 32)))
			return err
		},
		"another TPM": func(h *house, _ *attesttest.TPM) error { _, err := h.quote("a", other); return err },
		"another device": func(h *house, p *attesttest.TPM) error {
			h.enrolled("b")
			_, err := h.quote("b", p)
			return err
		},
		"a device without TPM": func(h *house, p *attesttest.TPM) error { _, err := h.quote("c", p); return err },
		"other values": func(h *house, p *attesttest.TPM) error {
			_, err := h.quote("a", p, func(q *agentv1.Quote) { q.PcrValues[3] = make([]byte, 32) })
			return err
		},
		"nothing": func(h *house, _ *attesttest.TPM) error {
			_, err := h.Judge(t.Context(), "a", h.question(asked()), &agentv1.Quote{})
			return err
		},
		"a certification": func(h *house, p *attesttest.TPM) error {
			nonce := asked()
			m, s := p.Certify(t, attesttest.NewKey(t), attest.Qualify(attest.PurposeQuote, nonce, h.exporter))
			_, err := h.Judge(t.Context(), "a", h.question(nonce), &agentv1.Quote{Message: m, Signature: s})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			p := h.enrolled("a")
			h.quotes("a", p)
			before, clock := h.Attestation("a"), h.shelf.tpms["a"].Clock
			wantError(t, tc(h, p), attestation.ErrRefused)
			if h.Attestation("a") != before || h.shelf.tpms["a"].Clock != clock {
				t.Error("it changed something")
			}
		})
	}
}

func TestQuoteWithoutUsableEventLogLeavesFactsUnknown(t *testing.T) {
	for name, change := range map[string]func(*agentv1.Quote){
		"none":             func(q *agentv1.Quote) { q.EventLog = nil },
		"nonsense":         func(q *agentv1.Quote) { q.EventLog = bytes.Repeat([]byte{0xff}, 1000) },
		"cut off":          func(q *agentv1.Quote) { q.EventLog = q.EventLog[:len(q.EventLog)/2] },
		"another start's":  func(q *agentv1.Quote) { q.EventLog = bootlogtest.New().Log() },
		"and values nor":   func(q *agentv1.Quote) { q.EventLog, q.PcrValues = nil, nil },
		"changed in PCR 7": func(q *agentv1.Quote) { q.EventLog = bootlogtest.SecureBoot().Without(1).Log() },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			a := h.quotes("a", h.enrolled("a"), change)
			if a.GetReading().GetState() != observed || a.GetIncomplete() == "" || a.GetSecureBoot() != posturev1.Ternary_TERNARY_UNSPECIFIED || len(a.GetKeys()) > 0 {
				t.Errorf("attested %v", a)
			}
		})
	}
}

// The TPM of a virtual machine was copied: both go on from the same state.
func TestTPMThatContradictsItsClockIsACopy(t *testing.T) {
	for name, tc := range map[string]struct {
		diverge func(original, clone *attesttest.TPM)
		cloned  bool
	}{
		"older":            {func(o, c *attesttest.TPM) { o.Clock.Milliseconds += 1000 }, true},
		"not started anew": {func(o, c *attesttest.TPM) { o.Clock.ResetCount++; c.Clock.Milliseconds += 1000000 }, true},
		"not resumed":      {func(o, c *attesttest.TPM) { o.Clock.RestartCount++; c.Clock.Milliseconds += 1000000 }, true},
		"one and the same": {func(o, c *attesttest.TPM) { *c = *o }, false},
		"started anew":     {func(o, c *attesttest.TPM) { c.Clock.ResetCount++; c.Clock.Milliseconds = 1 }, false},
		"counter wraps":    {func(o, c *attesttest.TPM) { c.Clock.ResetCount += 1 << 30 }, false},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				h := newHouse(t)
				original := h.enrolled("a")
				h.quotes("a", original)
				clone := *original
				tc.diverge(original, &clone)
				h.quotes("a", original)
				if restarted {
					h.restart()
				}
				if name == "one and the same" {
					clone = *original
				}
				_, err := h.quote("a", &clone)
				if errors.Is(err, attestation.ErrCloned) != tc.cloned {
					t.Errorf("judged %v", err)
				}
				key := attesttest.NewKey(t)
				parsed, parseErr := attest.ParseSigningKey(key.Area)
				if parseErr != nil {
					t.Fatal(parseErr)
				}
				nonce := asked()
				m, s := clone.Certify(t, key, attest.Qualify(attest.PurposeCertify, nonce, h.exporter))
				err = h.Certified(t.Context(), "a", parsed, attest.PurposeCertify, h.question(nonce), m, s)
				if errors.Is(err, attestation.ErrCloned) != tc.cloned {
					t.Errorf("certified %v", err)
				}
				if err := h.Follow(t.Context(), "a", clone.AK.Area, h.now, clone.Clock); errors.Is(err, attestation.ErrCloned) != tc.cloned {
					t.Errorf("followed %v", err)
				}
			})
		}
	}
}

// Somebody on the line holds up what the notebook says, until it has connected
// anew and stated something later: that must not look like two TPMs.
func TestStatementThatWasHeldUpOnTheWayIsNoCopy(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	first := h.question(asked())
	heldUp := p.Quote(t, first.Nonce, first.Exporter)
	key := attesttest.NewKey(t)
	parsed, err := attest.ParseSigningKey(key.Area)
	if err != nil {
		t.Fatal(err)
	}
	certified, signature := p.Certify(t, key, attest.Qualify(attest.PurposeVPN, first.Nonce, first.Exporter))
	earlier := p.Clock
	h.now = h.now.Add(20 * time.Second)
	h.quotes("a", p)
	stands, clock := h.Attestation("a"), h.shelf.tpms["a"].Clock
	h.now = h.now.Add(time.Second)

	_, err = h.Judge(t.Context(), "a", first, heldUp)
	wantError(t, err, attestation.ErrOvertaken)
	wantError(t, h.Certified(t.Context(), "a", parsed, attest.PurposeVPN, first, certified, signature), attestation.ErrOvertaken)
	wantError(t, h.Follow(t.Context(), "a", p.AK.Area, first.Asked, earlier), attestation.ErrOvertaken)
	if h.Attestation("a") != stands || h.shelf.tpms["a"].Clock != clock {
		t.Error("it changed something")
	}
	// Who is asked only now and is behind, is a copy all the same.
	wantError(t, h.Follow(t.Context(), "a", p.AK.Area, h.now, earlier), attestation.ErrCloned)
}

// A first connection has broken, and its question is still open when the
// notebook has quoted on the next one.
func TestQuestionThatAnotherQuoteHasAnsweredIsNotMissed(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	asked := h.now
	h.now = h.now.Add(time.Minute)
	h.quotes("a", p)
	h.now = h.now.Add(time.Minute)
	if err := h.Failed(t.Context(), "a", asked, "no quote within 2m0s"); err != nil {
		t.Error(err)
	}
	h.stands("a", observed, "")
	if err := h.Failed(t.Context(), "a", h.now, "no quote within 1m0s"); err != nil {
		t.Error(err)
	}
	h.stands("a", failed, "no quote within 1m0s")
}

// An enrolment that began with one attestation key ends when a renewal has made
// another known: their clocks have nothing to do with each other.
func TestClockOfAnotherAttestationKeyIsNotCompared(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	h.quotes("a", p)
	wantError(t, h.Follow(t.Context(), "a", attesttest.NewAK(t).Area, h.now, attest.Clock{}), attestation.ErrRefused)
}

// Its time must be on the disk before a quote counts.
func TestQuoteCountsOnlyWhenItIsStored(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	full := errors.New("disk full")
	h.shelf.err = full
	_, err := h.quote("a", p)
	wantError(t, err, full)
	h.stands("a", failed, "the TPM has never quoted")
	h.shelf.err = nil
	h.quotes("a", p)
	saves := h.shelf.saves
	h.quotes("a", p) // says nothing new but its time
	if h.shelf.saves != saves+1 || h.shelf.tpms["a"].Clock != p.Clock {
		t.Errorf("%d more saves, clock %v, want %v", h.shelf.saves-saves, h.shelf.tpms["a"].Clock, p.Clock)
	}
}

// The store commits an enrolment or a dismissal while a statement is judged; the
// book hears of it only afterwards.
func TestStatementIsNotStoredOverAnEnrolmentOrADismissal(t *testing.T) {
	ofOld := map[string]func(h *house, p *attesttest.TPM) error{
		"quote": func(h *house, p *attesttest.TPM) error { _, err := h.quote("a", p); return err },
		"certification": func(h *house, p *attesttest.TPM) error {
			return h.Follow(t.Context(), "a", p.AK.Area, h.now, attest.Clock{Milliseconds: 1, Safe: true})
		},
		"another attestation key": func(h *house, _ *attesttest.TPM) error {
			return h.Replace(t.Context(), "a", attesttest.New(t).AK.Area)
		},
		"missing quote": func(h *house, _ *attesttest.TPM) error { return h.Failed(t.Context(), "a", h.now, "none") },
	}
	for name, statement := range ofOld {
		t.Run(name+" and an enrolment", func(t *testing.T) {
			h := newHouse(t)
			old, anew := h.enrolled("a"), attesttest.New(t)
			k := attestation.Known{DeviceID: "a", EndorsementKey: anew.EK.Area, AttestationKey: anew.AK.Area, Since: h.now}
			h.shelf.meanwhile = func() { h.shelf.tpms["a"] = k }
			wantError(t, statement(h, old), fs.ErrNotExist)
			h.shelf.meanwhile = nil
			if !bytes.Equal(h.shelf.tpms["a"].AttestationKey, anew.AK.Area) {
				t.Fatal("the store has the key of before")
			}
			h.Put(k)
			h.stands("a", failed, "the TPM has never quoted")
			h.quotes("a", anew)
		})
		t.Run(name+" and a dismissal", func(t *testing.T) {
			h := newHouse(t)
			old := h.enrolled("a")
			h.shelf.meanwhile = func() { delete(h.shelf.tpms, "a") }
			wantError(t, statement(h, old), fs.ErrNotExist)
			h.Forget("a")
			if _, back := h.shelf.tpms["a"]; back {
				t.Error("the store knows the TPM again")
			}
			h.stands("a", failed, "no TPM of this device is known")
		})
	}
}

func TestQuoteCountsForADay(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	h.quotes("a", p)
	h.now = h.now.Add(24*time.Hour - time.Nanosecond)
	h.restart()
	h.stands("a", observed, "")
	h.now = h.now.Add(time.Nanosecond)
	h.stands("a", failed, "the newest quote is of 2026-03-01T08:00:00Z")
	h.quotes("a", p)
	h.stands("a", observed, "")
}

func TestQuoteThatIsMissingTakesEverythingBack(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	h.quotes("a", p)
	if err := h.Failed(t.Context(), "a", h.now, "no quote within 1m0s"); err != nil {
		t.Fatal(err)
	}
	h.restart() // and it is not forgotten
	h.stands("a", failed, "no quote within 1m0s")
	if a := h.Attestation("a"); a.GetSecureBoot() != 0 || len(a.GetPcrs()) > 0 || a.GetQuotedAt() != nil {
		t.Errorf("facts are left: %v", a)
	}
	h.quotes("a", p)
	h.stands("a", observed, "")
	h.shelf.err = errors.New("disk full")
	if err := h.Failed(t.Context(), "a", h.now, ""); err == nil {
		t.Error("no error")
	}
	h.stands("a", failed, "no reason given")
}

func TestDeviceWithoutTPMHasNothingAttested(t *testing.T) {
	h := newHouse(t)
	h.software["s"] = true
	h.stands("s", posturev1.ReadingState_READING_STATE_NOT_APPLICABLE, "the device key is not in a TPM")
	h.stands("never seen", failed, "no TPM of this device is known")
	h.quotes("a", h.enrolled("a"))
	h.Forget("a")
	h.stands("a", failed, "no TPM of this device is known")
	if _, known := h.Known("a"); known {
		t.Error("still known")
	}
}

// Only what changes a fact needs another appraisal.
func TestChangesAreAnnounced(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	h.changed = nil
	steps := []struct {
		name      string
		happens   func()
		announced bool
	}{
		{"first quote", func() { h.quotes("a", p) }, true},
		{"same facts", func() { h.now = h.now.Add(time.Hour); h.quotes("a", p) }, false},
		{"no quote", func() { _ = h.Failed(t.Context(), "a", h.now, "late") }, true},
		{"again none", func() { _ = h.Failed(t.Context(), "a", h.now, "late") }, false},
		{"quote again", func() { h.quotes("a", p) }, true},
		{"other loader", func() { p.Boot.Program("third"); h.quotes("a", p) }, true},
		{"refused", func() { _, _ = h.quote("a", attesttest.New(t)) }, false},
	}
	for _, s := range steps {
		h.changed = nil
		s.happens()
		if (len(h.changed) > 0) != s.announced {
			t.Errorf("%s: announced %v", s.name, h.changed)
		}
	}
}

func TestChangeOfBootLoadersIsDated(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	h.quotes("a", p)
	h.now = h.now.Add(time.Hour)
	p.Boot.Program("memory test")
	// A log that is left out for one start hides no change.
	if a := h.quotes("a", p, func(q *agentv1.Quote) { q.EventLog = nil }); a.GetBootLoadersChangedAt() != nil {
		t.Errorf("unknown boot loaders have changed: %v", a)
	}
	h.restart()
	if a := h.quotes("a", p); !a.GetBootLoadersChangedAt().AsTime().Equal(h.now) {
		t.Errorf("changed at %v", a.GetBootLoadersChangedAt())
	}
	changed := h.now
	h.now = h.now.Add(time.Hour)
	if a := h.quotes("a", p); !a.GetBootLoadersChangedAt().AsTime().Equal(changed) {
		t.Errorf("changed at %v", a.GetBootLoadersChangedAt())
	}
}

func TestLongEventLogDoesNotFillTheStore(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	for i := range 1000 {
		p.Boot.Program(number(i))
	}
	a := h.quotes("a", p)
	if len(a.GetBootLoaders()) != 64 || a.GetIncomplete() == "" {
		t.Errorf("%d boot loaders, incomplete %q", len(a.GetBootLoaders()), a.GetIncomplete())
	}
}

func TestVirtualTPMIsMarked(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	k, _ := h.Known("a")
	k.Virtual = true
	h.Put(k)
	if !h.Attestation("a").GetVirtual() || !h.quotes("a", p).GetVirtual() {
		t.Error("not marked")
	}
}

// The answer to a renewal may be lost: then the notebook has the key of before.
func TestOldAttestationKeyIsGoodUntilTheNewOneHasSigned(t *testing.T) {
	h := newHouse(t)
	old := h.enrolled("a")
	h.quotes("a", old)
	renewed := *old
	renewed.AK = attesttest.NewAK(t)
	renewed.Clock.ResetCount = 99 // another key, another offset
	for range 2 {                 // a renewal may be repeated
		if err := h.Replace(t.Context(), "a", renewed.AK.Area); err != nil {
			t.Fatal(err)
		}
	}
	h.restart()
	clone := *old
	old.Clock.Milliseconds += 1000
	h.quotes("a", old)
	_, err := h.quote("a", &clone)
	wantError(t, err, attestation.ErrCloned)
	k, _ := h.Known("a")
	if !k.Holds(old.AK.Area) || !k.Holds(renewed.AK.Area) || k.Holds(nil) || k.Holds(attesttest.NewAK(t).Area) {
		t.Error("it holds other keys")
	}
	h.quotes("a", &renewed)
	_, err = h.quote("a", old)
	wantError(t, err, attestation.ErrRefused)
	h.restart()
	_, err = h.quote("a", old)
	wantError(t, err, attestation.ErrRefused)
	h.quotes("a", &renewed)
}

func FuzzQuote(f *testing.F) {
	h := newHouse(f)
	p := h.enrolled("a")
	nonce := asked()
	q := p.Quote(f, nonce, h.exporter)
	f.Add(q.GetMessage(), q.GetSignature(), q.GetPcrValues()[0], q.GetEventLog())
	f.Add([]byte{}, []byte{}, []byte{}, []byte{})
	genuine := h.quotes("a", p)
	f.Fuzz(func(t *testing.T, message, signature, value, log []byte) {
		forged := &agentv1.Quote{Message: message, Signature: signature, PcrValues: [][]byte{value}, EventLog: log}
		if _, err := h.Judge(t.Context(), "a", h.question(nonce), forged); !errors.Is(err, attestation.ErrRefused) {
			t.Errorf("judged %v", err)
		}
		// A genuine quote with a log of the notebook's making: what it proves is
		// what was measured.
		whole := p.Quote(t, nonce, h.exporter)
		whole.EventLog = log
		a, err := h.Judge(t.Context(), "a", h.question(nonce), whole)
		if err != nil {
			t.Fatal(err)
		}
		for i, k := range a.GetKeys() {
			if !proto.Equal(k, genuine.GetKeys()[i]) {
				t.Errorf("key %v is proven, measured was %v", k, genuine.GetKeys()[i])
			}
		}
	})
}
