package enrolment

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/audit"
	"pfoertner/collector/store"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

func TestSoftwareKeyIsNotAcceptedWithoutAPermissionThatHolds(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\n")
	id := h.give(t, "NB-1")
	h.clock.turn(300*24*time.Hour - 1)
	if err := h.Accepts(id, oldKey); err != nil {
		t.Errorf("at its last moment: %v", err)
	}
	h.clock.turn(1)
	// Whether or not Run has noted it.
	if err := h.Accepts(id, oldKey); !errors.Is(err, ErrNotAccepted) || errors.Is(err, ErrStaleKey) {
		t.Errorf("after it: %v", err)
	}
	if err := h.Renew(t.Context(), id, oldKey, newKey, "02", h.clock.Now().Add(time.Hour)); !errors.Is(err, ErrNotAccepted) {
		t.Errorf("renewed after it: %v", err)
	}
}

// A device of an older collector: nobody has said where its key is, and nobody
// has allowed a software key.
func TestKeyThatIsNotKnownToBeInATPMNeedsThePermission(t *testing.T) {
	h := newHouse(t)
	d := &fleetv1.Device{Id: deviceA, Asset: &fleetv1.Asset{AssetNumber: "NB-1", State: active, KeyProtection: software}}
	if err := errors.Join(
		h.db.SaveDevices(t.Context(), []*fleetv1.Device{d}),
		h.db.SaveCredential(t.Context(), deviceA, oldKey, "01", h.clock.Now().Add(time.Hour)),
	); err != nil {
		t.Fatal(err)
	}
	h = h.again(t)
	if err := h.Accepts(deviceA, oldKey); !errors.Is(err, ErrNotAccepted) {
		t.Errorf("without a permission: %v", err)
	}
	// One without an end has ended.
	d.Asset.SoftwareKey = &fleetv1.SoftwareKeyPermission{Reason: "ever", AllowedBy: []string{"anna", "bert"}}
	if err := h.db.SaveDevices(t.Context(), []*fleetv1.Device{d}); err != nil {
		t.Fatal(err)
	}
	h = h.again(t)
	if err := h.Accepts(deviceA, oldKey); !errors.Is(err, ErrNotAccepted) {
		t.Errorf("with a permission without an end: %v", err)
	}
	if _, err := h.endWhatIsDue(t.Context()); err != nil || h.device(t, "NB-1").GetAsset().GetState() != suspended {
		t.Errorf("not suspended: %v", err)
	}
	// The way back that docs/deployment.md names.
	h.allowSoftware(t, "NB-1")
	h.order(t, resume("NB-1"), "anna")
	if err := h.Accepts(deviceA, oldKey); err != nil {
		t.Errorf("allowed, then resumed: %v", err)
	}
}

// Resuming what was suspended because its permission ended takes its key away:
// one operator does not bring it back.
func TestResumingDoesNotBringAnEndedSoftwareKeyBack(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	id := h.give(t, "NB-1")
	h.clock.turn(300 * 24 * time.Hour)
	if _, err := h.endWhatIsDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := h.lastAudit(t, "software_key.ended"); r.DeviceID != id || r.Actor != "" || r.Details["reason"] != "permission ended" {
		t.Errorf("audit: %+v", r)
	}
	if d := h.order(t, resume("NB-1"), "anna").GetDevice(); d.GetAsset().GetState() != expected || d.GetCertificateExpiresAt() != nil {
		t.Errorf("resumed as %v", d)
	}
	h.allowSoftware(t, "NB-1")
	if err := h.Accepts(id, oldKey); !errors.Is(err, ErrNotAccepted) {
		t.Errorf("its old key is back: %v", err)
	}
}

// ends is a house in a bubble of time, with Run running.
func ends(t *testing.T) (h *house, states func() []fleetv1.AssetState) {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "p.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	h = &house{db: db, clock: &clock{now: time.Now()}}
	if h.Registry, err = NewRegistry(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	var seen []fleetv1.AssetState
	h.OnChange(func(d *fleetv1.Device) { seen = append(seen, d.GetAsset().GetState()) })
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-done, db.Close()); err != nil {
			t.Error(err)
		}
	})
	return h, func() []fleetv1.AssetState { return seen }
}

// kept is how many proposals are stored.
func (h *house) kept(t *testing.T) (n int) {
	t.Helper()
	if err := h.db.EachProposal(t.Context(), func(*fleetv1.Proposal) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// passes lets time pass, until all that it brings has happened.
func passes(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestPermissionForASoftwareKeyEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, states := ends(t)
		h.stock(t, "NB-1;;;S1;;;;\n")
		h.order(t, allowSoftware("NB-1", time.Now().Add(90*time.Minute+time.Millisecond)), "anna", "bert")
		if err := h.enrolSoftware(t, "NB-1", deviceA, oldKey); err != nil {
			t.Fatal(err)
		}
		passes(90 * time.Minute)
		if state := h.device(t, "NB-1").GetAsset().GetState(); state != active {
			t.Errorf("before its end: %s", stateName(state))
		}
		passes(time.Millisecond)
		seen := states()
		if d := h.device(t, "NB-1"); d.GetAsset().GetState() != suspended || seen[len(seen)-1] != suspended {
			t.Errorf("at its end: %v", d)
		}
		if n := len(h.audited(t, "software_key.ended")); n != 1 {
			t.Errorf("%d ends recorded", n)
		}
	})
}

func TestWhatWaitsEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := ends(t)
		h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\n")
		h.clock.now = time.Now()
		h.giveTPM(t, "NB-1", ekA)
		h.order(t, reimage("NB-1", time.Hour), "anna")
		h.wait(t, "NB-2", ekB, fingerprint)
		h.order(t, approve("NB-2", fingerprint), "anna")

		passes(time.Hour)
		if h.device(t, "NB-1").GetAsset().GetReimageUntil() != nil || len(h.audited(t, "device.reimage_window_ended")) != 1 {
			t.Error("the re-image window is open")
		}
		passes(71*time.Hour - time.Nanosecond)
		if h.kept(t) != 1 {
			t.Error("the proposal ended before its time")
		}
		passes(time.Nanosecond)
		if h.kept(t) != 0 || h.lastAudit(t, "order.withdrawn").Details["why"] != "expired" {
			t.Error("the proposal still waits")
		}
		passes(11 * 24 * time.Hour)
		if d := h.device(t, "NB-2"); d.GetPending() != nil || d.GetAsset().GetState() != expected || len(h.audited(t, "device.pending_ended")) != 1 {
			t.Errorf("the enrolment still waits: %v", d)
		}
		if _, ok := h.DeviceOfEndorsement(ekB); ok {
			t.Error("a forgotten TPM is remembered")
		}
		if n := len(h.audited(t, "software_key.ended")); n != 0 {
			t.Errorf("%d software keys ended", n)
		}
	})
}

// A store that fails for a while is tried again; nothing ends unnoticed.
func TestWhatCouldNotBeEndedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := ends(t)
		h.stock(t, "NB-1;;;S1;;;;\n")
		h.wait(t, "NB-1", ekA, fingerprint)
		h.change.Lock()
		whole := h.store
		h.store = failing{whole}
		h.change.Unlock()
		passes(PendingLifetime)
		if h.device(t, "NB-1").GetPending() == nil {
			t.Error("ended without the store")
		}
		h.change.Lock()
		h.store = whole
		h.change.Unlock()
		passes(retryAfter)
		if h.device(t, "NB-1").GetPending() != nil {
			t.Error("not tried again")
		}
	})
}

// The clock may be set without anybody waking Run.
// A collector that was off over a weekend finds much to end. Orders and alarms
// wait for one commit at most.
func TestMuchThatIsDueEndsInFewCommits(t *testing.T) {
	h := newHouse(t)
	const fleet = 2*maxEnded + 1
	var devices []*fleetv1.Device
	for i := range fleet {
		devices = append(devices, &fleetv1.Device{Asset: &fleetv1.Asset{
			AssetNumber: fmt.Sprintf("NB-%d", i), State: expected, ReimageUntil: timestamppb.New(h.clock.Now()),
		}})
	}
	if err := h.db.SaveDevices(t.Context(), devices); err != nil {
		t.Fatal(err)
	}
	h = h.again(t)
	counted := &counting{Store: h.Registry.store}
	h.Registry.store = counted
	if next, err := h.endWhatIsDue(t.Context()); err != nil || !next.IsZero() {
		t.Errorf("next at %s, %v", next, err)
	}
	if n := len(h.audited(t, "device.reimage_window_ended")); n != fleet {
		t.Errorf("%d windows ended, want %d", n, fleet)
	}
	if counted.commits != 3 {
		t.Errorf("%d commits", counted.commits)
	}
}

// counting counts decisions.
type counting struct {
	Store
	commits int
}

func (c *counting) SaveDecision(ctx context.Context, devices []*fleetv1.Device, dismissed, settled []string, records ...audit.Record) error {
	c.commits++
	return c.Store.SaveDecision(ctx, devices, dismissed, settled, records...)
}

func TestSetClockIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := ends(t)
		h.stock(t, "NB-1;;;S1;;;;\n")
		h.wait(t, "NB-1", ekA, fingerprint)
		synctest.Wait()
		h.change.Lock()
		h.now = func() time.Time { return time.Now().Add(PendingLifetime) }
		h.change.Unlock()
		passes(maxNap)
		if h.device(t, "NB-1").GetPending() != nil {
			t.Error("Run sleeps by the clock of before")
		}
	})
}
