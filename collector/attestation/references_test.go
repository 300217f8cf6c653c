package attestation_test

import (
	"errors"
	"io/fs"
	"slices"
	"testing"
	"time"

	"pfoertner/internal/attest/attesttest"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// rated are the states of the PCRs of a device.
func (h *house) rated(id string) map[uint32]posturev1.PcrReference {
	m := map[uint32]posturev1.PcrReference{}
	for _, p := range h.Attestation(id).GetPcrs() {
		m[p.GetIndex()] = p.GetReference()
	}
	return m
}

// reference is the only known value of a PCR on "Book 1".
func (h *house) reference(pcr uint32) *fleetv1.BootReference {
	h.t.Helper()
	list := slices.DeleteFunc(h.BootReferences("Book 1"), func(r *fleetv1.BootReference) bool { return r.GetPcr() != pcr })
	if len(list) != 1 {
		h.t.Fatalf("PCR %d has %d values", pcr, len(list))
	}
	return list[0]
}

func TestValuesAreLearnedPerModel(t *testing.T) {
	h := newHouse(t)
	h.models["c"] = "Book 2"
	for _, id := range []string{"a", "b", "c"} {
		h.quotes(id, h.enrolled(id))
	}
	if got := h.BootReferences(""); len(got) != 8 {
		t.Fatalf("learned %v", got)
	}
	for i, pcr := range []uint32{0, 2, 4, 7} {
		r := h.BootReferences("Book 1")[i]
		if r.GetPcr() != pcr || r.GetDevices() != 2 || r.GetState() != learned || r.GetVendor() != "ACME" || !r.GetFirstSeenAt().AsTime().Equal(h.now) {
			t.Errorf("learned %v", r)
		}
	}
	want := map[uint32]posturev1.PcrReference{0: learned, 2: learned, 4: learned, 7: learned, 11: unknown, 12: unknown, 13: unknown, 14: unknown}
	for pcr, state := range h.rated("a") {
		if state != want[pcr] {
			t.Errorf("PCR %d is %s", pcr, state)
		}
	}
	h.Forget("b")
	if r := h.reference(0); r.GetDevices() != 1 {
		t.Errorf("devices %d", r.GetDevices())
	}
	h.restart()
	if r := h.reference(0); r.GetDevices() != 2 || r.GetState() != learned { // the store was not told to forget
		t.Errorf("after a restart %v", r)
	}
}

func TestDecisionReachesEveryDeviceThatQuotesTheValue(t *testing.T) {
	h := newHouse(t)
	for _, id := range []string{"a", "b"} {
		h.quotes(id, h.enrolled(id))
	}
	other := h.enrolled("c")
	other.Boot.Program("other")
	h.quotes("c", other)
	h.changed = nil
	for i, state := range []posturev1.PcrReference{approved, rejected, learned} {
		r := h.BootReferences("Book 1")[0]
		r.State = state
		set, err := h.SetBootReference(t.Context(), "ops", r)
		if err != nil {
			t.Fatal(err)
		}
		if set.GetState() != state || set.GetDecidedBy() != "ops" || set.GetDevices() != 3 || !set.GetDecidedAt().AsTime().Equal(h.now) {
			t.Errorf("decided %v", set)
		}
		if h.rated("a")[0] != state || h.rated("c")[0] != state || h.rated("a")[4] != learned {
			t.Errorf("%s: rated %v", state, h.rated("a"))
		}
		if len(h.changed) != 3*(i+1) {
			t.Errorf("announced %v", h.changed)
		}
		h.restart()
		h.changed = make([]string, 3*(i+1))
		if h.rated("b")[0] != state {
			t.Errorf("%s: after a restart rated %v", state, h.rated("b"))
		}
	}
	if got := h.shelf.kinds(); !slices.Equal(got[len(got)-3:], []string{"boot_reference.approved", "boot_reference.rejected", "boot_reference.undecided"}) {
		t.Errorf("records %v", got)
	}
}

func TestDecisionBeforeAnybodyQuotes(t *testing.T) {
	h := newHouse(t)
	p := attesttest.New(t)
	r := &fleetv1.BootReference{Vendor: "ACME", Model: "Book 1", Pcr: 0, Sha256: p.Boot.PCR(0), State: rejected}
	if _, err := h.SetBootReference(t.Context(), "ops", r); err != nil {
		t.Fatal(err)
	}
	h.quotes("a", h.enrolled("a"))
	if h.rated("a")[0] != rejected {
		t.Errorf("rated %v", h.rated("a"))
	}
}

func TestDecisionThatIsNone(t *testing.T) {
	good := func() *fleetv1.BootReference {
		return &fleetv1.BootReference{Vendor: "ACME", Model: "Book 1", Pcr: 7, Sha256: make([]byte, 32), State: approved}
	}
	for name, tc := range map[string]struct {
		change func(*fleetv1.BootReference)
		want   error
	}{
		"no model":       {func(r *fleetv1.BootReference) { r.Model = "" }, fs.ErrInvalid},
		"varies":         {func(r *fleetv1.BootReference) { r.Pcr = 11 }, fs.ErrInvalid},
		"short value":    {func(r *fleetv1.BootReference) { r.Sha256 = make([]byte, 20) }, fs.ErrInvalid},
		"no state":       {func(r *fleetv1.BootReference) { r.State = unknown }, fs.ErrInvalid},
		"take back none": {func(r *fleetv1.BootReference) { r.State = learned }, fs.ErrNotExist},
	} {
		h := newHouse(t)
		r := good()
		tc.change(r)
		if _, err := h.SetBootReference(t.Context(), "ops", r); !errors.Is(err, tc.want) || len(h.shelf.refs) > 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A notebook that starts something else every time must not fill the store.
func TestValuesThatAreLearnedAreBounded(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	for i := range 20 {
		p.Boot.Program(number(i))
		h.quotes("a", p)
	}
	if n := len(h.shelf.refs); n != 8 {
		t.Errorf("one device has taught %d values in a day", n)
	}
	for i := range 70 {
		h.now = h.now.Add(25 * time.Hour)
		p.Boot.Program("later " + number(i))
		h.quotes("a", p)
	}
	if n := len(h.shelf.refs); n != 64+3 {
		t.Errorf("%d values are learned, want 64 of PCR 4 and three of the others", n)
	}
	if a := h.quotes("a", p); a.GetReading().GetState() != observed || h.rated("a")[4] != unknown {
		t.Errorf("the value beyond is rated %v", h.rated("a"))
	}
}

func TestModelWithoutANameTeachesNothing(t *testing.T) {
	h := newHouse(t)
	h.models["a"] = ""
	h.quotes("a", h.enrolled("a"))
	if len(h.shelf.refs) > 0 {
		t.Errorf("learned %v", h.shelf.refs)
	}
}

func TestValueThatCannotBeStoredIsLearnedLater(t *testing.T) {
	h := newHouse(t)
	p := h.enrolled("a")
	h.shelf.refErr = errors.New("disk full")
	if a := h.quotes("a", p); a.GetReading().GetState() != observed || h.rated("a")[0] != unknown {
		t.Errorf("attested %v", a)
	}
	h.shelf.refErr = nil
	if h.quotes("a", p); h.rated("a")[0] != learned {
		t.Errorf("rated %v", h.rated("a"))
	}
}
