package main

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/appraisal"
	"pfoertner/collector/store"
	"pfoertner/internal/attest"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// A large fleet does not enrol over the wire: it is written into the store of a
// house that is stopped.

// deviceOf is the i-th notebook of a fleet.
func deviceOf(i int) *fleetv1.Device {
	number := fmt.Sprintf("NB-%06d", i)
	vpn := sha256.Sum256([]byte(number))
	return &fleetv1.Device{
		Id: fmt.Sprintf("0197f3a0-0000-7000-8000-%012d", i), EnrolledAt: timestamppb.Now(),
		Asset: &fleetv1.Asset{
			AssetNumber: number, Vendor: "Lenovo", Model: "ThinkPad T14 Gen 5", Serial: fmt.Sprintf("PF%06d", i), Unit: "inneres/it",
			State: fleetv1.AssetState_ASSET_STATE_ACTIVE, KeyProtection: fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE,
			VpnCertificatesSha256: [][]byte{vpn[:]},
			SoftwareKey: &fleetv1.SoftwareKeyPermission{
				Reason: "test", AllowedBy: []string{"anna", "bert"}, Until: timestamppb.New(time.Now().AddDate(0, 6, 0)),
			},
		},
		Key: &fleetv1.DeviceKey{Protection: fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE},
	}
}

// populate writes enrolled devices into the store of a house that is stopped,
// all with the same key.
func (h *house) populate(b *testing.B, count int) *ecdsa.PrivateKey {
	b.Helper()
	key, err := attest.NewKey()
	if err != nil {
		b.Fatal(err)
	}
	spki, err := attest.SPKI(key.Public())
	if err != nil {
		b.Fatal(err)
	}
	h.write(b, func(db *store.Store) {
		each(b, count, func(i int) error {
			return db.SaveDevices(b.Context(), []*fleetv1.Device{deviceOf(i)})
		})
		each(b, count, func(i int) error {
			return db.SaveCredential(b.Context(), deviceOf(i).GetId(), spki, "01", time.Now().Add(72*time.Hour))
		})
	})
	return key
}

// report writes a report of every device into the store of a house that is
// stopped.
func (h *house) report(b *testing.B, count int) {
	b.Helper()
	references, err := appraisal.DefaultReferences()
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	evidence := []*posturev1.Evidence{unencrypted(now), compliant(now)}
	h.write(b, func(db *store.Store) {
		each(b, count, func(i int) error {
			ev := evidence[min(i%10, 1)]
			res := appraisal.Appraise(appraisal.Input{
				Policy: h.verifier.Policy(), References: references, Device: deviceOf(i), Evidence: ev, CollectedAt: now, Now: now,
			})
			return db.SaveReport(b.Context(), deviceOf(i).GetId(), ev, res)
		})
	})
}

// write opens the database of a house that is stopped.
func (h *house) write(b *testing.B, fill func(*store.Store)) {
	b.Helper()
	db, err := store.Open(b.Context(), filepath.Join(h.config.State, databaseFile), store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	fill(db)
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
}

// each does something for every index, many at a time, so that they share
// commits.
func each(b *testing.B, count int, do func(i int) error) {
	b.Helper()
	var all errgroup.Group
	all.SetLimit(256)
	for i := range count {
		all.Go(func() error { return do(i) })
	}
	if err := all.Wait(); err != nil {
		b.Fatal(err)
	}
}
