package enrolment

import (
	"context"
	"errors"
	"io/fs"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/attestation"
	"pfoertner/collector/audit"
	"pfoertner/collector/authority"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

func (failing) SaveEnrolment(context.Context, *fleetv1.Device, []byte, string, time.Time, *attestation.Known, ...audit.Record) error {
	return errDisk
}

// tpms are the TPMs that are stored, by device id.
func (h *house) tpms(t testing.TB) map[string]attestation.Known {
	t.Helper()
	all := map[string]attestation.Known{}
	if err := h.db.EachTPM(t.Context(), func(k attestation.Known) error {
		all[k.DeviceID] = k
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestEnrolmentStandsAsAWholeOrNotAtAll(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\n")
	h.wait(t, "NB-1", ekA, fingerprint)
	h.order(t, approve("NB-1", fingerprint), "anna", "bert")
	before, whole := h.device(t, "NB-1"), h.store
	var told []*fleetv1.Device
	h.OnChange(func(d *fleetv1.Device) { told = append(told, d) })

	h.store = failing{whole}
	if err := h.enrolTPM(t, "NB-1", deviceA, oldKey, ekA); !errors.Is(err, errDisk) {
		t.Fatal(err)
	}
	for _, r := range []*Registry{h.Registry, h.reload(t)} {
		if d, _ := r.Find("NB-1"); !proto.Equal(d, before) || len(told) != 0 {
			t.Errorf("not stored, but %v", d)
		}
	}
	if len(h.tpms(t)) != 0 || len(h.audited(t, "device.enrolled")) != 0 {
		t.Error("not stored, but something of it is there")
	}

	h.store = whole
	if err := h.enrolTPM(t, "NB-1", deviceA, oldKey, ekA); err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || told[0].GetCertificateExpiresAt() == nil || told[0].GetKey().GetProtection() != inTPM {
		t.Errorf("subscribers were told %v, want device and key at once", told)
	}
	for _, r := range []*Registry{h.Registry, h.reload(t)} {
		if err := r.Accepts(deviceA, oldKey); err != nil {
			t.Error(err)
		}
		if d, _ := r.Find("NB-1"); !proto.Equal(d, told[0]) {
			t.Errorf("is %v, want %v", d, told[0])
		}
	}
	if k := h.tpms(t)[deviceA]; string(k.AttestationKey) != "ak" {
		t.Errorf("TPM %+v", k)
	}
	// The store refuses a part: nothing of the rest is there.
	h.allowSoftware(t, "NB-2")
	if err := h.enrolSoftware(t, "NB-2", deviceA, newKey); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a device id twice: %v", err)
	}
	if d := h.again(t).device(t, "NB-2"); d.GetId() != "" || d.GetAsset().GetState() != expected || len(h.audited(t, "device.enrolled")) != 1 {
		t.Errorf("a part is there: %v", d)
	}
	if err := h.Accepts(deviceA, newKey); !errors.Is(err, ErrNotAccepted) {
		t.Errorf("its key: %v", err)
	}
}

func TestEnrolmentThatTheAssetDoesNotAllow(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\nNB-3;;;S3;;;;\nNB-4;;;S4;;;;\nNB-5;;;S5;;;;\n")
	h.giveTPM(t, "NB-1", ekA)
	h.wait(t, "NB-2", ekB, fingerprint) // not approved
	h.allowSoftware(t, "NB-3", "NB-4")
	h.order(t, revoke("NB-3"), "anna")
	h.order(t, suspend("NB-4"), "anna")
	ekListed := []byte("listed by the delivery, as long.")
	if res, err := h.Import(t.Context(), "ops", []byte("asset_number;endorsement_key_sha256\nNB-5;"+sumsText([][]byte{ekListed})+"\n")); err != nil || len(res.GetErrors()) > 0 {
		t.Fatal(err, res.GetErrors())
	}
	bare := func(asset string, ek []byte) error {
		return h.Enrol(t.Context(), Enrolment{
			AssetNumber: asset, DeviceID: deviceB, SPKI: newKey, Certificate: &authority.Certificate{},
			Key: &fleetv1.DeviceKey{Protection: inTPM, EndorsementKeySha256: ek}, TPM: &attestation.Known{DeviceID: deviceB},
		})
	}
	for name, tc := range map[string]struct {
		err  error
		want error
	}{
		"unknown asset":                      {h.enrolTPM(t, "NB-9", deviceB, newKey, ekA), fs.ErrNotExist},
		"second device id":                   {h.enrolTPM(t, "NB-1", deviceB, newKey, ekA), ErrTransition},
		"TPM of another asset":               {h.enrolTPM(t, "NB-2", deviceB, newKey, ekA), ErrTransition},
		"TPM that waits":                     {h.enrolTPM(t, "NB-2", deviceB, newKey, ekB), ErrTransition},
		"TPM that nobody vouches for":        {bare("NB-5", ekListed), ErrTransition},
		"software key without permission":    {h.enrolSoftware(t, "NB-2", deviceB, newKey), ErrTransition},
		"software key instead of the TPM":    {h.enrolSoftware(t, "NB-1", deviceA, newKey), ErrTransition},
		"software key, permission withdrawn": {h.enrolSoftware(t, "NB-3", deviceB, newKey), ErrTransition},
		"suspended":                          {h.enrolSoftware(t, "NB-4", deviceB, newKey), ErrTransition},
	} {
		if !errors.Is(tc.err, tc.want) {
			t.Errorf("%s: %v, want %v", name, tc.err, tc.want)
		}
	}
	for name, e := range map[string]Enrolment{
		"nothing":      {},
		"no key":       {AssetNumber: "NB-3", DeviceID: deviceB, SPKI: newKey, Certificate: &authority.Certificate{}},
		"TPM unknown":  {AssetNumber: "NB-1", DeviceID: deviceA, SPKI: newKey, Certificate: &authority.Certificate{}, Key: &fleetv1.DeviceKey{Protection: inTPM, EndorsementKeySha256: ekA}},
		"which key":    {AssetNumber: "NB-3", DeviceID: deviceB, SPKI: newKey, Certificate: &authority.Certificate{}, Key: &fleetv1.DeviceKey{}},
		"not where":    {AssetNumber: "NB-1", DeviceID: deviceA, SPKI: newKey, Certificate: &authority.Certificate{}, Key: &fleetv1.DeviceKey{}, TPM: &attestation.Known{DeviceID: deviceA}},
		"other device": {AssetNumber: "NB-1", DeviceID: deviceA, SPKI: newKey, Certificate: &authority.Certificate{}, Key: &fleetv1.DeviceKey{Protection: inTPM, EndorsementKeySha256: ekA}, TPM: &attestation.Known{DeviceID: deviceB}},
	} {
		if err := h.Enrol(t.Context(), e); err == nil {
			t.Errorf("%s: enrolled", name)
		}
	}
	if err := h.Accepts(deviceA, oldKey); err != nil {
		t.Errorf("who was there before: %v", err)
	}
	if len(h.audited(t, "device.enrolled")) != 1 {
		t.Error("something was enrolled")
	}
}

// The ratchet: what once had a TPM never goes back to a software key without
// two operators.
func TestTPMEndsThePermissionForASoftwareKey(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	id := h.give(t, "NB-1")
	h.wait(t, "NB-1", ekA, fingerprint)
	if err := h.Accepts(id, oldKey); err != nil {
		t.Errorf("waiting with another key locks the device out: %v", err)
	}
	h.order(t, approve("NB-1", fingerprint), "anna", "bert")
	if err := h.enrolTPM(t, "NB-1", id, newKey, ekA); err != nil {
		t.Fatal(err)
	}
	if d := h.device(t, "NB-1"); d.GetAsset().GetSoftwareKey() != nil || d.GetKey().GetProtection() != inTPM {
		t.Errorf("got %v", d)
	}
	if r := h.lastAudit(t, "software_key.ended"); r.AssetNumber != "NB-1" {
		t.Errorf("audit: %+v", r)
	}
	if err := h.enrolSoftware(t, "NB-1", id, thirdKey); !errors.Is(err, ErrTransition) {
		t.Errorf("back to software: %v", err)
	}
	h.allowSoftware(t, "NB-1")
	if err := h.enrolSoftware(t, "NB-1", id, thirdKey); err != nil {
		t.Error(err)
	}
	if len(h.tpms(t)) != 0 {
		t.Error("the TPM of before is still known")
	}
}

func TestNewAttestationKeyUsesTheWindowAndEndsVPNCertificates(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	id := h.giveTPM(t, "NB-1", ekA)
	renewed := func(known bool) {
		t.Helper()
		h.order(t, reimage("NB-1", 0), "anna")
		if err := h.BindVPN(t.Context(), id, h.issued("vpn", time.Hour)); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		d := h.device(t, "NB-1")
		err := h.Enrol(t.Context(), Enrolment{
			AssetNumber: "NB-1", DeviceID: id, SPKI: newKey, Certificate: &authority.Certificate{Serial: "03", NotAfter: h.clock.Now().Add(time.Hour)},
			Key: d.GetKey(), TPM: &attestation.Known{DeviceID: id, EndorsementKey: []byte("ek"), AttestationKey: []byte("ak")}, KnownAttestationKey: known,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	renewed(true)
	if d := h.device(t, "NB-1"); d.GetAsset().GetReimageUntil() == nil || len(d.GetVpnCertificates()) != 1 {
		t.Errorf("recovered with the known key: %v", d)
	}
	renewed(false)
	if d := h.device(t, "NB-1"); d.GetAsset().GetReimageUntil() != nil || len(d.GetVpnCertificates()) != 0 {
		t.Errorf("set up anew: %v", d)
	}
	if _, bound := h.DeviceOfCertificate(sum("vpn")); bound {
		t.Error("the VPN certificate is still bound")
	}
}

// Of two enrolments of a device the book must hear in the order in which they
// were stored, and of its dismissal after both.
func TestTPMIsKnownBeforeTheDeviceCanChangeAgain(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	id := h.giveTPM(t, "NB-1", ekA)
	e := Enrolment{
		AssetNumber: "NB-1", DeviceID: id, SPKI: newKey, Certificate: &authority.Certificate{Serial: "03", NotAfter: h.clock.Now().Add(time.Hour)},
		Key: h.device(t, "NB-1").GetKey(), TPM: &attestation.Known{DeviceID: id, EndorsementKey: []byte("ek"), AttestationKey: []byte("anew")},
	}
	committed := false
	e.Committed = func() {
		committed = true
		if stored := h.tpms(t)[id]; string(stored.AttestationKey) != "anew" {
			t.Errorf("stored is %v", stored)
		}
		if h.Accepts(id, newKey) == nil {
			t.Error("the device is accepted before its TPM is known")
		}
		if h.change.TryLock() {
			h.change.Unlock()
			t.Error("the device can change before its TPM is known")
		}
	}
	if err := h.Enrol(t.Context(), e); err != nil || !committed {
		t.Fatal(err, committed)
	}
	e.Committed, e.AssetNumber = func() { t.Error("committed") }, "NB-9"
	if err := h.Enrol(t.Context(), e); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestPendingEnrolments(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\nNB-3;;;S3;;;;\n")
	h.order(t, suspend("NB-3"), "anna")
	h.wait(t, "NB-1", ekA, fingerprint)
	for _, r := range []*Registry{h.Registry, h.reload(t)} {
		d, ok := r.DeviceOfEndorsement(ekA)
		p, now := d.GetPending(), h.clock.Now()
		if !ok || d.GetAsset().GetState() != pending || p.GetFingerprint() != fingerprint ||
			!p.GetRequestedAt().AsTime().Equal(now) || !p.GetExpiresAt().AsTime().Equal(now.Add(14*24*time.Hour)) {
			t.Errorf("waits as %v", d)
		}
	}
	if r := h.lastAudit(t, "device.pending"); r.AssetNumber != "NB-1" || r.Details["fingerprint"] != fingerprint || r.Details["serial"] != "S1" {
		t.Errorf("audit: %+v", r)
	}
	h.clock.turn(time.Hour)
	before := h.device(t, "NB-1")
	h.wait(t, "NB-1", ekA, fingerprint)
	if !proto.Equal(before, h.device(t, "NB-1")) || len(h.audited(t, "device.pending")) != 1 {
		t.Error("asking again is not free")
	}
	p := &fleetv1.PendingEnrolment{EndorsementKeySha256: ekA, Fingerprint: fingerprint}
	for asset, want := range map[string]error{"NB-2": fs.ErrExist, "NB-9": fs.ErrNotExist} {
		if err := h.SetPending(t.Context(), asset, p, nil); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", asset, err, want)
		}
	}
	if err := h.SetPending(t.Context(), "NB-3", &fleetv1.PendingEnrolment{EndorsementKeySha256: ekB, Fingerprint: fingerprint}, nil); !errors.Is(err, ErrTransition) {
		t.Errorf("suspended: %v", err)
	}
	if err := h.SetPending(t.Context(), "NB-2", &fleetv1.PendingEnrolment{Fingerprint: fingerprint}, nil); err == nil {
		t.Error("waits without an endorsement key")
	}
	h.wait(t, "NB-1", ekB, fingerprint)
	if _, ok := h.DeviceOfEndorsement(ekA); ok {
		t.Error("what waits no longer is still found")
	}
}

func TestAlarmSuspendsUntilTwoOperatorsResume(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\n")
	id := h.giveTPM(t, "NB-1", ekA)
	h.order(t, reimage("NB-1", 0), "anna")
	if err := h.BindVPN(t.Context(), id, h.issued("vpn", time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := h.Alarm(t.Context(), deviceB, "cloned", ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown device: %v", err)
	}
	if err := h.Alarm(t.Context(), id, "cloned", "two streams answer"); err != nil {
		t.Fatal(err)
	}
	want := &fleetv1.Alarm{Kind: "cloned", Detail: "two streams answer", At: timestamppb.New(h.clock.Now())}
	h.clock.turn(time.Minute)
	if err := h.Alarm(t.Context(), id, "stale_key", "later"); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Registry{h.Registry, h.reload(t)} {
		d, _ := r.Find("NB-1")
		if a := d.GetAsset(); a.GetState() != suspended || !proto.Equal(a.GetAlarm(), want) || a.GetReimageUntil() != nil {
			t.Errorf("suspended as %v", a)
		}
		if err := r.Accepts(id, oldKey); !errors.Is(err, ErrNotAccepted) {
			t.Errorf("its key: %v", err)
		}
	}
	if r := h.lastAudit(t, "alarm.cloned"); r.DeviceID != id || r.Details["detail"] != "two streams answer" || r.Details["before"] != "active" {
		t.Errorf("audit: %+v", r)
	}
	if n := len(h.audited(t, "alarm.stale_key")); n != 0 {
		t.Errorf("%d further alarms of what is suspended", n)
	}

	// Nobody knows who has the keys: they end, the device id and its TPM stay.
	d := h.order(t, resume("NB-1"), "anna", "bert").GetDevice()
	if d.GetId() != id || d.GetAsset().GetState() != expected || d.GetKey() != nil || d.GetCertificateExpiresAt() != nil || !listed(d.GetAsset(), ekA) {
		t.Errorf("resumed as %v", d)
	}
	if _, bound := h.DeviceOfCertificate(sum("vpn")); bound || len(h.tpms(t)) != 0 {
		t.Error("its VPN certificate or TPM is still known")
	}
	for _, r := range []*Registry{h.Registry, h.reload(t)} {
		if err := r.Accepts(id, oldKey); !errors.Is(err, ErrNotAccepted) {
			t.Errorf("its key, resumed: %v", err)
		}
	}
	if err := h.enrolTPM(t, "NB-1", id, newKey, ekA); err != nil {
		t.Error(err)
	}
	// A suspended asset that has an alarm takes two from then on.
	h.order(t, suspend("NB-1"), "anna")
	if err := h.Alarm(t.Context(), id, "cloned", "later"); err != nil {
		t.Fatal(err)
	}
	if h.order(t, resume("NB-1"), "anna").GetDone() {
		t.Error("one operator resumed it")
	}
}

// Renewing must not bring keys back that two operators have ended meanwhile.
func TestDismissedKeysAreNotRenewed(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	id := h.giveTPM(t, "NB-1", ekA)
	h.order(t, exchangeTPM("NB-1"), "anna", "bert")
	if err := h.Renew(t.Context(), id, oldKey, newKey, "02", h.clock.Now().Add(time.Hour)); !errors.Is(err, ErrNotAccepted) {
		t.Errorf("renewed: %v", err)
	}
	if err := h.Accepts(id, newKey); !errors.Is(err, ErrNotAccepted) {
		t.Errorf("its new key: %v", err)
	}
}

func TestReplacedKeyOfAnActiveDeviceIsStale(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	id := h.give(t, "NB-1")
	stale := func(what string, device string, key []byte, want bool) {
		t.Helper()
		err := h.Accepts(device, key)
		if errors.Is(err, ErrStaleKey) != want || want && !errors.Is(err, ErrNotAccepted) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := h.Renew(t.Context(), id, oldKey, newKey, "02", h.clock.Now().Add(72*time.Hour)); err != nil {
		t.Fatal(err)
	}
	stale("before the new key is used", id, oldKey, false)
	if err := h.Settle(t.Context(), id, newKey); err != nil {
		t.Fatal(err)
	}
	stale("the replaced key", id, oldKey, true)
	stale("the current key", id, newKey, false)
	stale("an unknown device", deviceB, oldKey, false)
	h.order(t, suspend("NB-1"), "anna")
	stale("of a suspended device", id, oldKey, false)
}

func TestCertificatesForSoftwareKeysAreShort(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\n")
	if got := h.CertificateLifetime(h.giveTPM(t, "NB-1", ekA)); got != 72*time.Hour {
		t.Errorf("in a TPM: %s", got)
	}
	id := h.give(t, "NB-2")
	if got := h.CertificateLifetime(id); got != 24*time.Hour {
		t.Errorf("software key: %s", got)
	}
	for configured, want := range map[time.Duration]time.Duration{0: 24 * time.Hour, 8 * time.Hour: 8 * time.Hour, 1000 * time.Hour: 72 * time.Hour} {
		r, err := NewRegistry(t.Context(), h.db, WithClock(h.clock.Now), WithSoftwareLifetime(configured))
		if err != nil {
			t.Fatal(err)
		}
		if got := r.CertificateLifetime(id); got != want {
			t.Errorf("configured %s: %s, want %s", configured, got, want)
		}
	}
	h.clock.turn(300*24*time.Hour - time.Hour)
	if got := h.CertificateLifetime(id); got > time.Hour {
		t.Errorf("longer than it is allowed: %s", got)
	}
}
