//go:build linux

package enrolment

import (
	"bytes"
	"crypto/x509"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// What honest notebooks go through.

func TestNotebookOfTheDeliveryListEnrolsByItself(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "PF1")
	ad.expect(t, "NB-1", "PF1", n)
	answer, err := ad.enrol(t, n, "")
	if err != nil {
		t.Fatal(err)
	}
	issued := answer.GetIssued()
	cert := must(x509.ParseCertificate(issued.GetChain()[0]))(t)
	if err := acceptsCertificate(ad.Registry, cert); err != nil || !cert.NotAfter.Equal(ad.clock.Now().Add(72*time.Hour)) {
		t.Errorf("its certificate, until %s: %v", cert.NotAfter, err)
	}
	for _, r := range []*Registry{ad.Registry, ad.reload(t)} {
		d, ok := r.Find("NB-1")
		key := d.GetKey()
		if !ok || d.GetAsset().GetState() != active || d.GetId() != issued.GetDeviceId() ||
			key.GetProtection() != fleetv1.KeyProtection_KEY_PROTECTION_TPM || !bytes.Equal(key.GetEndorsementKeySha256(), n.endorsement(t)) ||
			key.GetFingerprint() != n.fingerprint(t) || !key.GetVirtual() || key.GetEndorsedBy() != "swtpm-localca-rootca" {
			t.Errorf("device %v", d)
		}
	}
	known, ok := ad.book.Known(issued.GetDeviceId())
	if !ok || !known.Holds(n.ak.Area()) || !known.Since.Equal(ad.clock.Now()) || !bytes.Equal(known.EndorsementKey, n.ek.Area) || !known.Virtual ||
		known.Clock.Milliseconds == 0 || !known.Attestation.GetQuotedAt().AsTime().Equal(ad.clock.Now()) || len(known.Attestation.GetPcrs()) != 8 {
		t.Errorf("the book has %+v", known)
	}
	r := ad.lastAudit(t, "device.enrolled")
	if r.Details["key_protection"] != "tpm" || r.Details["endorsement_key"] != n.fingerprint(t) || r.Details["way"] != "enrolled" || r.DeviceID != issued.GetDeviceId() {
		t.Errorf("audit: %+v", r)
	}
}

func TestUnknownTPMWaitsForTwoPersons(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "PF1")
	ad.expect(t, "NB-1", "PF1")
	token := ad.token(t, "NB-1")
	wait := func(token string) {
		t.Helper()
		answer, err := ad.enrol(t, n, token)
		if p := answer.GetPending(); err != nil || p.GetFingerprint() != n.fingerprint(t) || !p.GetAskAgainAt().AsTime().Equal(ad.clock.Now().Add(askAgainAfter)) {
			t.Fatalf("%v, %v", answer, err)
		}
	}
	wait(token)
	asked := ad.clock.Now()
	p := ad.device(t, "NB-1").GetPending()
	if p.GetReason() != "endorsement_unknown" || p.GetFingerprint() != n.fingerprint(t) || p.GetSerial() != "PF1" ||
		!p.GetExpiresAt().AsTime().Equal(asked.Add(14*24*time.Hour)) || ad.device(t, "NB-1").GetAsset().GetState() != pending {
		t.Errorf("pending: %v", p)
	}
	ad.clock.turn(time.Hour)
	wait("")    // pending asks again, without a token
	wait(token) // and with the one that is spent
	if got := ad.device(t, "NB-1").GetPending(); !got.GetRequestedAt().AsTime().Equal(asked) || len(ad.audited(t, "device.pending")) != 1 {
		t.Errorf("asking again counts as a new request: %v", got)
	}
	ad.approve(t, "NB-1", n)
	if d := ad.mustEnrol(t, n, ""); d.GetAsset().GetState() != active || d.GetPending() != nil {
		t.Errorf("approved: %v", d)
	}
}

func TestTPMWithoutCertificateWaitsUntilThatVeryKeyIsApproved(t *testing.T) {
	ad := newAdministration(t)
	n, other := ad.notebook(t, "PF1"), ad.notebook(t, "PF1")
	n.ek.Certificates, other.ek.Certificates = nil, nil
	ad.expect(t, "NB-1", "PF1", n) // even on the delivery list
	answer, err := ad.enrol(t, n, "")
	if err != nil || answer.GetPending() == nil || ad.device(t, "NB-1").GetPending().GetReason() != "endorsement_bare" {
		t.Fatalf("%v, %v", answer, err)
	}
	ad.approve(t, "NB-1", n)
	if answer, err := ad.enrol(t, other, ad.token(t, "NB-1")); err == nil {
		t.Errorf("another TPM on the approval: %v", answer)
	}
	if d := ad.mustEnrol(t, n, ""); d.GetKey().GetEndorsedBy() != "" {
		t.Errorf("endorsed by %s", d.GetKey().GetEndorsedBy())
	}
}

func TestNotebookThatNeverGotItsCertificateAsksAgainWithItsTPM(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n)
	token := ad.token(t, "NB-1")
	first := ad.mustEnrol(t, n, token)
	if again := ad.mustEnrol(t, n, token); again.GetId() != first.GetId() {
		t.Errorf("%s became %s", first.GetId(), again.GetId())
	}
}

// After a holiday: the certificate has expired, the agent makes a new TLS key.
func TestExpiredCertificateIsNoObstacleForAKnownTPM(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "PF1")
	ad.expect(t, "NB-1", "PF1", n)
	first := ad.mustEnrol(t, n, "")
	before, _ := ad.book.Known(first.GetId())
	ad.clock.turn(89 * 24 * time.Hour)
	n.key = must(n.chip.NewKey())(t)
	again := ad.mustEnrol(t, n, "")
	after, _ := ad.book.Known(first.GetId())
	if again.GetId() != first.GetId() || !again.GetCertificateExpiresAt().AsTime().After(ad.clock.Now()) ||
		!after.Since.Equal(before.Since) || !after.Clock.Follows(before.Clock) || after.Clock == before.Clock {
		t.Errorf("%v, %+v, then %+v", again, before, after)
	}
	if r := ad.lastAudit(t, "device.enrolled"); r.Details["way"] != "recovered" {
		t.Errorf("audit: %+v", r)
	}
	ad.clock.turn(91 * 24 * time.Hour)
	if _, err := ad.enrol(t, n, ""); status.Code(err) != codes.PermissionDenied || ad.lastAudit(t, recordRefused).Details["reason"] != "absent" {
		t.Errorf("after 91 days: %v", err)
	}
	ad.seen[first.GetId()] = ad.clock.Now().Add(-24 * time.Hour) // it reported yesterday
	ad.mustEnrol(t, n, "")
	ad.clock.turn(91 * 24 * time.Hour)
	ad.mustEnrol(t, n, ad.token(t, "NB-1"))
}

// A new firmware may have lost the serial number. The TPM proves more.
func TestKnownTPMRecoversUnderAnotherSerialNumberAndIsReported(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "PF1")
	ad.expect(t, "NB-1", "PF1", n)
	first := ad.mustEnrol(t, n, "")
	n.serial = ""
	if again := ad.mustEnrol(t, n, ""); again.GetId() != first.GetId() {
		t.Errorf("it has become %v", again)
	}
	if r := ad.lastAudit(t, recordSerial); r.DeviceID != first.GetId() || r.Details["detail"] != `inventory "PF1", notebook ""` {
		t.Errorf("audit: %+v", r)
	}
}

// The certificate of the endorsement key expires some day. Who spoke for it then
// has spoken.
func TestExpiredEndorsementCertificateEndsNoDevice(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n)
	ad.mustEnrol(t, n, "")
	n.ek.Certificates = nil
	d := ad.mustEnrol(t, n, "")
	if d.GetKey().GetEndorsedBy() == "" || !d.GetKey().GetVirtual() {
		t.Errorf("forgotten who spoke for it: %v", d.GetKey())
	}
	if known, _ := ad.book.Known(d.GetId()); !known.Virtual {
		t.Error("a virtual TPM became hardware")
	}
}

func TestReimagedNotebookNeedsATokenOrTheWindow(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n)
	first := ad.mustEnrol(t, n, "")
	ad.clock.turn(time.Minute)
	n.reimage(t)
	if _, err := ad.enrol(t, n, ""); status.Code(err) != codes.PermissionDenied || ad.lastAudit(t, recordRefused).Details["reason"] != "reimage" {
		t.Fatalf("without either: %v", err)
	}
	ad.order(t, &fleetv1.Order{Device: "NB-1", Action: &fleetv1.Order_OpenReimageWindow{OpenReimageWindow: &fleetv1.OpenReimageWindow{}}})
	if d := ad.mustEnrol(t, n, ""); d.GetId() != first.GetId() || ad.lastAudit(t, "device.enrolled").Details["way"] != "reimaged" {
		t.Errorf("in the window: %v", d)
	}
	ad.clock.turn(time.Minute)
	n.reimage(t)
	if _, err := ad.enrol(t, n, ""); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the window is open twice: %v", err)
	}
	ad.mustEnrol(t, n, ad.token(t, "NB-1"))
	ad.order(t, &fleetv1.Order{Device: "NB-1", Action: &fleetv1.Order_OpenReimageWindow{OpenReimageWindow: &fleetv1.OpenReimageWindow{}}})
	ad.clock.turn(25 * time.Hour)
	n.reimage(t)
	if _, err := ad.enrol(t, n, ""); status.Code(err) != codes.PermissionDenied {
		t.Errorf("after the window: %v", err)
	}
}

func TestNewMainboardWaitsAndTheOldOneIsBlocked(t *testing.T) {
	ad := newAdministration(t)
	old, fresh := ad.notebook(t, "PF1"), ad.notebook(t, "PF1")
	ad.expect(t, "NB-1", "PF1", old)
	first := ad.mustEnrol(t, old, "")
	if _, err := ad.enrol(t, fresh, ad.token(t, "NB-1")); err == nil || len(ad.audited(t, recordConflict)) != 1 {
		t.Fatalf("exchanged without an order: %v", err)
	}
	ad.order(t, &fleetv1.Order{Device: "NB-1", Reason: "mainboard", Action: &fleetv1.Order_ExchangeTpm{ExchangeTpm: &fleetv1.ExchangeTpm{}}})
	if _, err := ad.enrol(t, old, ""); err == nil || ad.lastAudit(t, recordRefused).Details["reason"] != "endorsement_blocked" {
		t.Errorf("the old one: %v", err)
	}
	if _, err := ad.enrol(t, old, ad.token(t, "NB-1")); err == nil {
		t.Error("the old one came back with a token")
	}
	answer, err := ad.enrol(t, fresh, ad.token(t, "NB-1"))
	if err != nil || answer.GetPending() == nil || ad.device(t, "NB-1").GetPending().GetReason() != "endorsement_exchanged" {
		t.Fatalf("%v, %v", answer, err)
	}
	ad.approve(t, "NB-1", fresh)
	if d := ad.mustEnrol(t, fresh, ""); d.GetId() != first.GetId() || !bytes.Equal(d.GetKey().GetEndorsementKeySha256(), fresh.endorsement(t)) {
		t.Errorf("%v", d)
	}
}

// An asset that had to do with a software key gets its TPM by a token and two
// persons; the permission ends.
func TestSoftwareDeviceMovesToATPM(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "")
	ad.permit(t, "NB-1")
	if _, err := newAttempt(t, ad.token(t, "NB-1"), "").try(t, ad.dial(t)); err != nil {
		t.Fatal(err)
	}
	before := ad.device(t, "NB-1")
	if answer, err := ad.enrol(t, n, ad.token(t, "NB-1")); err != nil || answer.GetPending() == nil {
		t.Fatalf("%v, %v", answer, err)
	}
	if ad.device(t, "NB-1").GetAsset().GetState() != active {
		t.Error("a notebook that waits took the access of the one that works")
	}
	ad.approve(t, "NB-1", n)
	d := ad.mustEnrol(t, n, "")
	if d.GetId() != before.GetId() || d.GetAsset().GetSoftwareKey() != nil || d.GetKey().GetProtection() != fleetv1.KeyProtection_KEY_PROTECTION_TPM {
		t.Errorf("%v", d)
	}
}

// A collector that was not told whom to believe believes nobody.
func TestTPMIsRefusedWhereNobodyIsBelieved(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n)
	bare := ad.house.open(t, unlimited, ServerOptions{Book: ad.book})
	if _, err := converse(t, bare.dial(t), n.hello(t, ""), n.prove); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without a bundle: %v", err)
	}
}
