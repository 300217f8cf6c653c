package enrolment

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

const (
	vpnDevice  = "8f14e45f-ceea-467f-9f2b-0123456789ab"
	vpnAnother = "9f14e45f-ceea-467f-9f2b-0123456789ab"
)

// vpnHouse has two active devices; the first has a certificate that an operator
// has bound.
func vpnHouse(t *testing.T) *house {
	t.Helper()
	h := newHouse(t)
	devices := []*fleetv1.Device{
		{Id: vpnDevice, Asset: &fleetv1.Asset{AssetNumber: "NB-1", Serial: "S1", State: active, VpnCertificatesSha256: [][]byte{sum("external")}}},
		{Id: vpnAnother, Asset: &fleetv1.Asset{AssetNumber: "NB-2", Serial: "S2", State: active}},
	}
	if err := h.db.SaveDevices(t.Context(), devices); err != nil {
		t.Fatal(err)
	}
	h.Registry = h.reload(t)
	return h
}

func sum(s string) []byte {
	b := sha256.Sum256([]byte(s))
	return b[:]
}

// issued is a certificate as the authority would have issued it just now.
func (h *house) issued(name string, lifetime time.Duration) *fleetv1.VpnCertificate {
	now := h.clock.Now()
	return &fleetv1.VpnCertificate{
		Sha256: sum(name), Serial: name, IssuedAt: timestamppb.New(now), ExpiresAt: timestamppb.New(now.Add(lifetime)),
	}
}

func (h *house) bindVPN(t *testing.T, name string, lifetime time.Duration) {
	t.Helper()
	if err := h.BindVPN(t.Context(), vpnDevice, h.issued(name, lifetime)); err != nil {
		t.Fatal(err)
	}
}

// known says which of these certificates the collector knows as the device's,
// and that a restart knows the same.
func (h *house) known(t *testing.T, names ...string) (known []string) {
	t.Helper()
	again := h.reload(t)
	for _, name := range names {
		d, ok := h.DeviceOfCertificate(sum(name))
		if _, stored := again.DeviceOfCertificate(sum(name)); stored != ok {
			t.Errorf("%s: known %v, after a restart %v", name, ok, stored)
		}
		if ok && d.GetId() == vpnDevice {
			known = append(known, name)
		}
	}
	return known
}

func TestIssuedVPNCertificateIsKnownFromThenOn(t *testing.T) {
	h := vpnHouse(t)
	h.bindVPN(t, "first", 720*time.Hour)
	if got := h.known(t, "external", "first", "other"); !slices.Equal(got, []string{"external", "first"}) {
		t.Errorf("known: %v", got)
	}
	record := h.lastAudit(t, "vpn_certificate.issued")
	if record.DeviceID != vpnDevice || record.Details["certificate_sha256"] != hex.EncodeToString(sum("first")) || record.Details["certificate_serial"] != "first" {
		t.Errorf("recorded: %+v", record)
	}
}

// The one before stays for a day, or to its own end, and no restart and no
// third one gives it more.
// An inventory file knows what an external CA has issued, not what the
// collector has.
func TestInventoryFileLeavesIssuedVPNCertificatesAlone(t *testing.T) {
	h := vpnHouse(t)
	h.bindVPN(t, "first", 30*24*time.Hour)
	file := "asset_number;vpn_certificate_sha256\nNB-1;" + hex.EncodeToString(sum("other")) + "\n"
	if _, err := h.Import(t.Context(), "anna", []byte(file)); err != nil {
		t.Fatal(err)
	}
	if got := h.known(t, "external", "other", "first"); !slices.Equal(got, []string{"other", "first"}) {
		t.Errorf("bound are %q", got)
	}
	if res := h.PlanImport([]byte(file)); res.GetUnchanged() != 1 {
		t.Errorf("once more: %v", res)
	}
}

func TestOperatorReleasesAnIssuedVPNCertificate(t *testing.T) {
	h := vpnHouse(t)
	h.bindVPN(t, "first", 30*24*time.Hour)
	if err := h.Bind(t.Context(), "anna", "NB-1", sum("first"), true); err != nil {
		t.Fatal(err)
	}
	d, _ := h.Device(vpnDevice)
	if got := h.known(t, "external", "first"); !slices.Equal(got, []string{"external"}) || len(d.GetVpnCertificates()) != 0 {
		t.Errorf("bound are %q, issued %v", got, d.GetVpnCertificates())
	}
}

func TestFormerVPNCertificateEnds(t *testing.T) {
	h := vpnHouse(t)
	h.bindVPN(t, "first", 720*time.Hour)
	h.bindVPN(t, "short", time.Hour)
	h.clock.turn(time.Minute)
	h.bindVPN(t, "new", 720*time.Hour)
	for _, step := range []struct {
		after time.Duration
		want  []string
		next  time.Duration // from then on
	}{
		{0, []string{"external", "first", "short", "new"}, 59 * time.Minute},
		{59 * time.Minute, []string{"external", "first", "new"}, 23 * time.Hour},
		{23 * time.Hour, []string{"external", "new"}, 0},
		{720 * time.Hour, []string{"external"}, 0},
	} {
		h.clock.turn(step.after)
		h.lapse(t)
		if got := h.known(t, "external", "first", "short", "new"); !slices.Equal(got, step.want) {
			t.Errorf("after another %s: %v, want %v", step.after, got, step.want)
		}
		if next := h.lapse(t); step.next != 0 && !next.Equal(h.clock.Now().Add(step.next)) {
			t.Errorf("after another %s: next at %s", step.after, next)
		}
	}
	if got := h.audited(t, "vpn_certificate.ended"); len(got) != 3 {
		t.Errorf("%d ends recorded", len(got))
	}
}

// lapse is what Run does; it returns when Run would do it again.
func (h *house) lapse(t *testing.T) time.Time {
	t.Helper()
	next, err := h.endWhatIsDue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestVPNCertificatesThatAreNotBound(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(*house)
		device  string
		bind    string
		want    error
	}{
		"unknown device": {device: "cf14e45f-ceea-467f-9f2b-0123456789ab", bind: "new", want: fs.ErrNotExist},
		"suspended device": {prepare: func(h *house) {
			if _, err := h.SetState(t.Context(), "ops", "NB-1", suspended, "lost"); err != nil {
				t.Fatal(err)
			}
		}, device: vpnDevice, bind: "new", want: ErrNotAccepted},
		"bound to it by an operator":   {device: vpnDevice, bind: "external", want: fs.ErrExist},
		"bound to another":             {device: vpnAnother, bind: "external", want: fs.ErrExist},
		"one more than the day allows": {prepare: func(h *house) { h.spend(t) }, device: vpnDevice, bind: "new", want: ErrTooMany},
	} {
		t.Run(name, func(t *testing.T) {
			h := vpnHouse(t)
			if tc.prepare != nil {
				tc.prepare(h)
			}
			if err := h.BindVPN(t.Context(), tc.device, h.issued(tc.bind, time.Hour)); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if d, ok := h.DeviceOfCertificate(sum("new")); ok {
				t.Errorf("bound to %s all the same", d.GetId())
			}
		})
	}
}

// spend takes all certificates that a day allows.
func (h *house) spend(t *testing.T) {
	t.Helper()
	for i := range vpnBurst {
		if err := h.MayHaveVPN(vpnDevice); err != nil {
			t.Fatal(err)
		}
		h.bindVPN(t, string(rune('a'+i)), 720*time.Hour)
	}
	if err := h.MayHaveVPN(vpnDevice); !errors.Is(err, ErrTooMany) {
		t.Errorf("one more: %v", err)
	}
}

func TestVPNCertificatesAreGivenAgainTheNextDay(t *testing.T) {
	h := vpnHouse(t)
	h.spend(t)
	h.clock.turn(vpnWindow)
	h.lapse(t)
	if err := h.MayHaveVPN(vpnDevice); err != nil {
		t.Error(err)
	}
}

// What an operator has bound stays when what the collector has issued goes.
func TestForgottenVPNCertificatesAreThoseIssued(t *testing.T) {
	h := vpnHouse(t)
	h.bindVPN(t, "first", 720*time.Hour)
	d := proto.CloneOf(h.device(t, "NB-1"))
	forgetVPN(d)
	if len(d.GetVpnCertificates()) != 0 || len(d.GetAsset().GetVpnCertificatesSha256()) != 1 ||
		!bytes.Equal(d.GetAsset().GetVpnCertificatesSha256()[0], sum("external")) {
		t.Errorf("left: %v and %v", d.GetVpnCertificates(), d.GetAsset().GetVpnCertificatesSha256())
	}
}
