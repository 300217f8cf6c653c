package enrolment

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/attestation"
	"pfoertner/collector/audit"
	"pfoertner/collector/authority"
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

// order gives an order in the name of each operator, one after the other.
func (h *house) order(t testing.TB, o *fleetv1.Order, operators ...string) *fleetv1.GiveOrderResponse {
	t.Helper()
	var response *fleetv1.GiveOrderResponse
	for _, operator := range operators {
		var err error
		if response, err = h.GiveOrder(t.Context(), operator, o); err != nil {
			t.Fatalf("%s orders %s: %v", operator, actionName(o), err)
		}
	}
	return response
}

// allowSoftware lets two operators allow software keys for assets, for 300 days.
func (h *house) allowSoftware(t testing.TB, assets ...string) {
	t.Helper()
	for _, asset := range assets {
		if !h.order(t, allowSoftware(asset, h.clock.Now().AddDate(0, 0, 300)), "anna", "bert").GetDone() {
			t.Fatalf("no software key for %s", asset)
		}
	}
}

func allowSoftware(asset string, until time.Time) *fleetv1.Order {
	return &fleetv1.Order{Device: asset, Reason: "old notebook", Action: &fleetv1.Order_AllowSoftwareKey{
		AllowSoftwareKey: &fleetv1.AllowSoftwareKey{Until: timestamppb.New(until)},
	}}
}

// enrolSoftware makes an asset that may have a software key an enrolled device.
func (h *house) enrolSoftware(t testing.TB, asset, id string, spki []byte) error {
	t.Helper()
	return h.Enrol(t.Context(), Enrolment{
		AssetNumber: asset, DeviceID: id, SPKI: spki,
		Certificate: &authority.Certificate{Serial: "01", NotAfter: h.clock.Now().Add(72 * time.Hour)},
		Key:         &fleetv1.DeviceKey{Protection: software},
	})
}

// enrolTPM makes an asset whose TPM has an endorsement key an enrolled device.
func (h *house) enrolTPM(t testing.TB, asset, id string, spki, endorsement []byte) error {
	t.Helper()
	return h.Enrol(t.Context(), Enrolment{
		AssetNumber: asset, DeviceID: id, SPKI: spki,
		Certificate: &authority.Certificate{Serial: "02", NotAfter: h.clock.Now().Add(72 * time.Hour)},
		Key: &fleetv1.DeviceKey{
			Protection: inTPM, EndorsementKeySha256: endorsement, EndorsedBy: "a root",
		},
		TPM: &attestation.Known{DeviceID: id, EndorsementKey: []byte("ek"), AttestationKey: []byte("ak"), Since: h.clock.Now()},
	})
}

const (
	software = fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE
	inTPM    = fleetv1.KeyProtection_KEY_PROTECTION_TPM
)

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
