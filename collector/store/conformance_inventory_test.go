package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// The behaviours of TestConformance that concern assets, keys and tokens.

func allDevices(t *testing.T, s *Store) []*fleetv1.Device {
	t.Helper()
	var all []*fleetv1.Device
	check(t, s.EachDevice(t.Context(), func(d *fleetv1.Device) error {
		all = append(all, d)
		return nil
	}))
	return all
}

func devices(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	one, two, waiting := device(1), device(2), device(3)
	waiting.Id = ""
	one.EnrolledAt, one.CertificateExpiresAt = timestamppb.New(morning), timestamppb.New(morning.Add(72*time.Hour))
	one.Asset.Groups = []string{"kfz-zulassung"}
	check(t, s.SaveDevices(ctx, []*fleetv1.Device{two, waiting, one}))
	two.Asset.State = fleetv1.AssetState_ASSET_STATE_SUSPENDED
	live := proto.CloneOf(two)
	live.Online, live.Evidence, live.Result = true, evidence("6.1"), result(admit, "x")
	check(t, s.SaveDevices(ctx, []*fleetv1.Device{live}))

	got, want := allDevices(t, s), []*fleetv1.Device{one, two, waiting}
	if !slices.EqualFunc(got, want, func(a, b *fleetv1.Device) bool { return proto.Equal(a, b) }) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func devicesAllOrNothing(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	twice := device(5)
	twice.Id = deviceID(1)
	err := s.SaveDevices(ctx, []*fleetv1.Device{device(3), device(4), twice}, audit.Record{At: morning, Kind: "inventory.imported"})
	wants(t, err, fs.ErrExist)
	if !strings.Contains(err.Error(), assetNumber(5)) {
		t.Errorf("error %q does not name the asset", err)
	}
	if err := s.SaveDevices(ctx, []*fleetv1.Device{device(3), {}}); err == nil {
		t.Error("a device without an asset number was taken")
	}
	if n := len(allDevices(t, s)); n != 2 {
		t.Errorf("%d devices, want the 2 from before", n)
	}
	if head := must(s.AuditHead(ctx))(t); head.Sequence != 0 {
		t.Errorf("%d audit records of a change that was not made", head.Sequence)
	}
}

func certificates(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	one, two := device(1), device(2)
	one.Asset.VpnCertificatesSha256 = [][]byte{bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)}
	check(t, s.SaveDevices(ctx, []*fleetv1.Device{one, two}))

	two.Asset.VpnCertificatesSha256 = [][]byte{bytes.Repeat([]byte{2}, 32)}
	wants(t, s.SaveDevices(ctx, []*fleetv1.Device{two}), fs.ErrExist)

	one.Asset.VpnCertificatesSha256 = one.Asset.VpnCertificatesSha256[:1]
	check(t, s.SaveDevices(ctx, []*fleetv1.Device{two, one}))
}

func newIdentity(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	check(t, s.SaveReport(ctx, deviceID(1), evidence("6.1"), result(admit, "a")))
	check(t, s.SaveCredential(ctx, deviceID(1), []byte("key"), "01", morning))
	again := device(1)
	again.Id = deviceID(9)
	check(t, s.SaveDevices(ctx, []*fleetv1.Device{again}))

	for _, id := range []string{deviceID(1), deviceID(9)} {
		_, _, err := s.Report(ctx, id)
		wants(t, err, fs.ErrNotExist)
		_, _, _, err = s.Credential(ctx, id)
		wants(t, err, fs.ErrNotExist)
	}
	wants(t, s.SaveReport(ctx, deviceID(1), evidence("6.1"), result(admit, "a")), fs.ErrNotExist)
	check(t, s.SaveReport(ctx, deviceID(9), evidence("6.1"), result(admit, "a")))
}

func credentials(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	wants(t, s.SaveCredential(ctx, "unknown", []byte("key"), "01", morning), fs.ErrNotExist)
	check(t, s.SaveCredential(ctx, deviceID(1), []byte("first"), "01", morning))
	check(t, s.SaveCredential(ctx, deviceID(1), []byte("second"), "02", morning.Add(time.Hour)))
	check(t, s.SaveCredential(ctx, deviceID(0), []byte("other"), "03", morning))
	spki, serial, notAfter, err := s.Credential(ctx, deviceID(1))
	if err != nil || string(spki) != "second" || serial != "02" || !notAfter.Equal(morning.Add(time.Hour)) {
		t.Errorf("got %q %q %v %v", spki, serial, notAfter, err)
	}
	var serials []string
	check(t, s.EachCredential(ctx, func(id string, spki []byte, serial string, _ time.Time) error {
		serials = append(serials, fmt.Sprint(id, string(spki), serial))
		return nil
	}))
	if want := []string{deviceID(0) + "other03", deviceID(1) + "second02"}; !slices.Equal(serials, want) {
		t.Errorf("got %q, want %q", serials, want)
	}
	wantKeys(t, s, deviceID(1), "second02", "")
}

// wantKeys compares what a device's keys are: each with its serial number, ""
// for none.
func wantKeys(t *testing.T, s *Store, id, current, previous string) {
	t.Helper()
	got := map[string]string{}
	note := func(into string) func(string, []byte, string, time.Time) error {
		return func(device string, spki []byte, serial string, notAfter time.Time) error {
			if notAfter.IsZero() {
				t.Errorf("%s key %s has no end", into, spki)
			}
			if device == id {
				got[into] = string(spki) + serial
			}
			return nil
		}
	}
	check(t, s.EachCredential(t.Context(), note("current")))
	check(t, s.EachPreviousCredential(t.Context(), note("previous")))
	if got["current"] != current || got["previous"] != previous {
		t.Errorf("current %q, previous %q; want %q, %q", got["current"], got["previous"], current, previous)
	}
}

func renewals(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	day := func(n int) time.Time { return morning.Add(time.Duration(n) * 24 * time.Hour) }
	id := deviceID(1)
	check(t, s.SaveCredential(ctx, id, []byte("one"), "01", day(1)))
	check(t, s.SaveCredential(ctx, deviceID(0), []byte("other"), "09", day(1)))
	record := audit.Record{At: morning, Kind: "device.renewed", DeviceID: id}
	check(t, s.RenewCredential(ctx, id, []byte("one"), []byte("two"), "02", day(2), record))
	wantKeys(t, s, id, "two02", "one01")

	check(t, s.Close())
	s = open()
	wantKeys(t, s, id, "two02", "one01")
	check(t, s.EachPreviousCredential(ctx, func(_ string, _ []byte, _ string, notAfter time.Time) error {
		if !notAfter.Equal(day(1)) {
			t.Errorf("the key before ends %v, want %v", notAfter, day(1))
		}
		return nil
	}))

	// The answer was lost: the key before asks again, and stays the one before.
	check(t, s.RenewCredential(ctx, id, []byte("one"), []byte("three"), "03", day(3)))
	wantKeys(t, s, id, "three03", "one01")
	// Only the current key ends the one before it.
	check(t, s.SettleCredential(ctx, id, []byte("one")))
	wantKeys(t, s, id, "three03", "one01")
	for range 2 {
		check(t, s.SettleCredential(ctx, id, []byte("three")))
		wantKeys(t, s, id, "three03", "")
	}
	check(t, s.Close())
	s = open()
	wantKeys(t, s, id, "three03", "")
	check(t, s.RenewCredential(ctx, id, []byte("three"), []byte("four"), "04", day(4)))
	wantKeys(t, s, id, "four04", "three03")
	wantKeys(t, s, deviceID(0), "other09", "")
	if head := must(s.AuditHead(ctx))(t); head.Sequence != 1 || head.Kind != "device.renewed" {
		t.Errorf("audit head %+v", head)
	}
}

func renewalsRefused(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	id := deviceID(1)
	check(t, s.SaveCredential(ctx, id, []byte("one"), "01", morning))
	record := audit.Record{At: morning, Kind: "device.renewed", DeviceID: id}
	for _, stranger := range []struct {
		device string
		from   []byte
	}{{id, []byte("stranger")}, {id, nil}, {id, []byte{}}, {deviceID(0), []byte("one")}, {"unknown", []byte("one")}} {
		err := s.RenewCredential(ctx, stranger.device, stranger.from, []byte("two"), "02", morning, record)
		wants(t, err, fs.ErrNotExist)
		wantKeys(t, s, id, "one01", "")
	}
	check(t, s.SettleCredential(ctx, id, []byte("stranger")))
	check(t, s.SettleCredential(ctx, "unknown", []byte("one")))
	if head := must(s.AuditHead(ctx))(t); head.Sequence != 0 {
		t.Errorf("%d audit records of renewals that were not made", head.Sequence)
	}
}

func renewalsEnd(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	check(t, s.SaveCredential(ctx, deviceID(1), []byte("one"), "01", morning))
	check(t, s.RenewCredential(ctx, deviceID(1), []byte("one"), []byte("two"), "02", morning))
	check(t, s.SaveCredential(ctx, deviceID(1), []byte("three"), "03", morning))
	wantKeys(t, s, deviceID(1), "three03", "")
	check(t, s.RenewCredential(ctx, deviceID(1), []byte("three"), []byte("four"), "04", morning))
	again := device(1)
	again.Id = deviceID(9)
	check(t, s.SaveDevices(ctx, []*fleetv1.Device{again}))
	wantKeys(t, s, deviceID(1), "", "")
}

func tokens(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	expires := morning.Add(72 * time.Hour)
	wants(t, s.SaveToken(ctx, []byte("h1"), "HB-NONE", expires), fs.ErrNotExist)
	check(t, s.SaveToken(ctx, []byte("h1"), assetNumber(1), expires, audit.Record{At: morning, Kind: "token.created"}))
	wants(t, s.SaveToken(ctx, []byte("h1"), assetNumber(0), expires), fs.ErrExist)
	check(t, s.SaveToken(ctx, []byte("h2"), assetNumber(0), expires))

	_, err := s.UseToken(ctx, []byte("h3"), morning)
	wants(t, err, fs.ErrNotExist)
	_, err = s.UseToken(ctx, []byte("h2"), expires)
	wants(t, err, os.ErrDeadlineExceeded)
	if asset := must(s.UseToken(ctx, []byte("h1"), expires.Add(-1)))(t); asset != assetNumber(1) {
		t.Errorf("token of asset %q, want %q", asset, assetNumber(1))
	}
	asset, err := s.UseToken(ctx, []byte("h1"), morning)
	wants(t, err, fs.ErrExist)
	if asset != assetNumber(1) {
		t.Errorf("used token names asset %q, want %q for the audit record", asset, assetNumber(1))
	}
}

func tokenRace(t *testing.T, open func() *Store) {
	s := open()
	enrol(t, s, 1)
	check(t, s.SaveToken(t.Context(), []byte("h"), assetNumber(0), morning.Add(time.Hour)))
	won := make(chan string, 50)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if asset, err := s.UseToken(t.Context(), []byte("h"), morning); err == nil {
				won <- asset
			} else if !errors.Is(err, fs.ErrExist) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d callers got the token, want 1", len(won))
	}
}
