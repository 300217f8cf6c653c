package enrolment

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"pfoertner/collector/audit"
	"pfoertner/collector/store"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// clock is a clock that tests turn.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// house is a registry over a real store.
type house struct {
	*Registry
	db    *store.Store
	clock *clock
	path  string
}

func newHouse(t testing.TB) *house {
	t.Helper()
	h := &house{clock: &clock{now: time.Now().Truncate(time.Second)}, path: filepath.Join(t.TempDir(), "p.db")}
	db, err := store.Open(t.Context(), h.path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	h.db = db
	h.Registry = h.reload(t)
	return h
}

// reload makes a second registry from what is stored, as a restart would.
func (h *house) reload(t testing.TB) *Registry {
	t.Helper()
	r, err := NewRegistry(t.Context(), h.db, WithClock(h.clock.Now))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// stock imports lines under the full header.
func (h *house) stock(t testing.TB, lines string) {
	t.Helper()
	res, err := h.Import(t.Context(), "ops", []byte(header+lines))
	if err != nil || len(res.GetErrors()) > 0 {
		t.Fatalf("importing: %v, %v", err, res.GetErrors())
	}
}

const header = "asset_number;vendor;model;serial;unit;groups;key_protection;vpn_certificate_sha256\n"

// device returns the asset's device, which must exist.
func (h *house) device(t testing.TB, key string) *fleetv1.Device {
	t.Helper()
	d, ok := h.Find(key)
	if !ok {
		t.Fatalf("no asset %s", key)
	}
	return d
}

// audited returns the records of a kind, oldest first.
func (h *house) audited(t testing.TB, kind string) (records []audit.Record) {
	t.Helper()
	err := h.db.EachAudit(context.WithoutCancel(t.Context()), 0, func(s audit.Sealed) error {
		if s.Kind == kind {
			records = append(records, s.Record)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// lastAudit is the newest record of a kind, of which there must be one.
func (h *house) lastAudit(t testing.TB, kind string) audit.Record {
	t.Helper()
	all := h.audited(t, kind)
	if len(all) == 0 {
		t.Fatalf("no audit record %s", kind)
	}
	return all[len(all)-1]
}

func numbers(devices []*fleetv1.Device) []string {
	var n []string
	for _, d := range devices {
		n = append(n, d.GetAsset().GetAssetNumber())
	}
	slices.Sort(n)
	return n
}
