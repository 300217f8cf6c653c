package store

import (
	"fmt"
	"testing"
	"time"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// morning is when the tests play.
var morning = time.Date(2026, 11, 21, 8, 30, 0, 0, time.UTC)

func open(tb testing.TB, path string, o Options) *Store {
	tb.Helper()
	s, err := Open(tb.Context(), path, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func deviceID(n int) string    { return fmt.Sprintf("0197f3a0-0000-7000-8000-%012d", n) }
func assetNumber(n int) string { return fmt.Sprintf("HB-%06d", n) }

func device(n int) *fleetv1.Device {
	return &fleetv1.Device{Id: deviceID(n), Asset: &fleetv1.Asset{
		AssetNumber: assetNumber(n), Vendor: "Lenovo", Model: "T14", Serial: fmt.Sprintf("PF%06d", n),
		Unit: "inneres/polizei", State: fleetv1.AssetState_ASSET_STATE_ACTIVE,
	}}
}

// enrol puts devices 0 to n-1 into the inventory.
func enrol(tb testing.TB, s *Store, n int) {
	tb.Helper()
	devices := make([]*fleetv1.Device, n)
	for i := range devices {
		devices[i] = device(i)
	}
	if err := s.SaveDevices(tb.Context(), devices); err != nil {
		tb.Fatal(err)
	}
}
