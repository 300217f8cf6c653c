package enrolment

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// ErrTransition is wrapped by the error for a change that an asset does not
// allow as it is now.
var ErrTransition = errors.New("not allowed")

const (
	// DefaultReimageWindow and MaxReimageWindow are how long the known TPM may
	// come with a new attestation key.
	DefaultReimageWindow = 24 * time.Hour
	MaxReimageWindow     = 7 * 24 * time.Hour
)

// effect is what an order would do to an asset.
type effect struct {
	device *fleetv1.Device // as it would be
	// kind and details are for the audit record.
	kind    string
	details map[string]string
	// takesTwo: one operator must not do that alone.
	takesTwo bool
	// dismissed: the keys of the device end.
	dismissed bool
}

// effectOf works out what an order does to a device now; it changes nothing.
func (r *Registry) effectOf(o *fleetv1.Order, old *fleetv1.Device) (*effect, error) {
	e := &effect{device: proto.CloneOf(old), details: map[string]string{}}
	if state := old.GetAsset().GetState(); state == retired && o.GetRetire() == nil {
		return e, fmt.Errorf("it is retired, and nothing comes back from that: %w", ErrTransition)
	}
	now := r.now()
	switch a := o.GetAction().(type) {
	case *fleetv1.Order_Approve:
		return e, e.approve(a.Approve.GetFingerprint())
	case *fleetv1.Order_Reject:
		return e, e.reject()
	case *fleetv1.Order_Suspend:
		e.kind, e.device.Asset.State = "device.suspended", suspended
		return e, nil
	case *fleetv1.Order_Resume:
		return e, e.resume(now)
	case *fleetv1.Order_Retire:
		e.retire()
		return e, nil
	case *fleetv1.Order_OpenReimageWindow:
		return e, e.openReimageWindow(a.OpenReimageWindow, now)
	case *fleetv1.Order_ExchangeTpm:
		return e, e.exchangeTPM()
	case *fleetv1.Order_AllowSoftwareKey:
		return e, e.allowSoftwareKey(a.AllowSoftwareKey.GetUntil(), now)
	case *fleetv1.Order_RevokeSoftwareKey:
		return e, e.revokeSoftwareKey()
	}
	return e, fmt.Errorf("the order does not say what to do: %w", fs.ErrInvalid)
}

// approve makes the TPM that waits the asset's own: the notebook asks again and
// is enrolled. The fingerprint is the one that was compared with the
// notebook's.
func (e *effect) approve(fingerprint string) error {
	e.kind, e.takesTwo = "device.approved", true
	waiting, a := e.device.GetPending(), e.device.GetAsset()
	switch {
	case waiting == nil:
		return fmt.Errorf("no enrolment waits for approval: %w", ErrTransition)
	case a.GetState() != pending && a.GetState() != active:
		return fmt.Errorf("it is %s: %w", stateName(a.GetState()), ErrTransition)
	case plainFingerprint(fingerprint) == "" || plainFingerprint(fingerprint) != plainFingerprint(waiting.GetFingerprint()):
		return fmt.Errorf("the enrolment that waits has another fingerprint than %q: %w", fingerprint, ErrTransition)
	}
	sum := waiting.GetEndorsementKeySha256()
	a.EndorsementKeysSha256 = including(a.EndorsementKeysSha256, sum)
	a.ApprovedEndorsementKeysSha256 = including(a.ApprovedEndorsementKeysSha256, sum)
	e.device.Pending = nil // the state stays: approved, but not yet come
	e.details["fingerprint"], e.details["endorsement_key_sha256"] = waiting.GetFingerprint(), hex.EncodeToString(sum)
	return nil
}

// plainFingerprint is a fingerprint as it is compared.
func plainFingerprint(text string) string {
	return strings.ToUpper(strings.NewReplacer("-", "", " ", "").Replace(text))
}

// reject blocks the TPM that waits, for this asset.
func (e *effect) reject() error {
	e.kind = "device.rejected"
	waiting, a := e.device.GetPending(), e.device.GetAsset()
	if waiting == nil {
		return fmt.Errorf("no enrolment waits for approval: %w", ErrTransition)
	}
	a.BlockedEndorsementKeysSha256 = including(a.BlockedEndorsementKeysSha256, waiting.GetEndorsementKeySha256())
	unpend(e.device)
	e.details["fingerprint"] = waiting.GetFingerprint()
	e.details["endorsement_key_sha256"] = hex.EncodeToString(waiting.GetEndorsementKeySha256())
	return nil
}

// resume takes a suspended asset back. With its keys it is active again;
// without, or with a software key that is not allowed any more, it has to
// enrol. After an alarm nobody knows who has the keys: they end, and it takes
// two.
func (e *effect) resume(now time.Time) error {
	e.kind = "device.resumed"
	d, a := e.device, e.device.GetAsset()
	switch {
	case a.GetState() == active || a.GetState() == expected || a.GetState() == pending:
		return nil
	case a.GetState() != suspended:
		return fmt.Errorf("it is %s: %w", stateName(a.GetState()), ErrTransition)
	case a.GetAlarm() != nil:
		e.takesTwo = true
		e.details["alarm"] = a.GetAlarm().GetKind()
		a.Alarm = nil
		e.dismiss()
		a.State = expected
	case usesSoftware(d) && !softwareAllowed(a, now):
		e.dismiss()
		a.State = expected
	case d.GetCertificateExpiresAt() != nil:
		a.State = active
	default:
		a.State = expected
	}
	if a.State == expected && d.GetPending() != nil {
		a.State = pending
	}
	e.details["after"] = stateName(a.State)
	return nil
}

// retire ends an asset for good. Its endorsement keys stay with it, so that its
// TPM comes back as nothing else.
func (e *effect) retire() {
	e.kind, e.device.Asset.State = "device.retired", retired
	e.device.Pending, e.device.Asset.ReimageUntil, e.device.Asset.SoftwareKey = nil, nil, nil
	e.dismiss()
}

// openReimageWindow lets the known TPM come with a new attestation key once, as
// a token would.
func (e *effect) openReimageWindow(o *fleetv1.OpenReimageWindow, now time.Time) error {
	e.kind = "device.reimage_window"
	lifetime := DefaultReimageWindow
	if o.GetLifetime() != nil && o.GetLifetime().AsDuration() != 0 {
		lifetime = o.GetLifetime().AsDuration()
	}
	a := e.device.GetAsset()
	switch {
	case lifetime < 0 || lifetime > MaxReimageWindow:
		return fmt.Errorf("lifetime %s: more than 0 and at most %s: %w", lifetime, MaxReimageWindow, fs.ErrInvalid)
	case notEnrollable(e.device) != "":
		return fmt.Errorf("it is %s: %w", stateName(a.GetState()), ErrTransition)
	case !hasEndorsement(a):
		return fmt.Errorf("no TPM of it is known; a token lets it enrol: %w", ErrTransition)
	}
	a.ReimageUntil = timestamppb.New(now.Add(lifetime))
	e.details["until"] = timeText(a.ReimageUntil)
	return nil
}

// exchangeTPM blocks every TPM that the asset had. The notebook enrols with a
// token and waits for approval.
func (e *effect) exchangeTPM() error {
	e.kind, e.takesTwo = "device.tpm_exchange", true
	a := e.device.GetAsset()
	switch {
	case notEnrollable(e.device) != "":
		return fmt.Errorf("it is %s; resume it first: %w", stateName(a.GetState()), ErrTransition)
	case !hasEndorsement(a):
		return fmt.Errorf("no TPM of it is known: %w", ErrTransition)
	}
	var ended []string
	for _, sum := range a.EndorsementKeysSha256 {
		if !blocked(a, sum) {
			ended = append(ended, hex.EncodeToString(sum))
		}
		a.BlockedEndorsementKeysSha256 = including(a.BlockedEndorsementKeysSha256, sum)
	}
	a.ApprovedEndorsementKeysSha256, a.ReimageUntil, e.device.Pending = nil, nil, nil
	a.State = expected
	e.dismiss()
	e.details["blocked_sha256"] = strings.Join(ended, " ")
	return nil
}

// allowSoftwareKey permits a key that is not in a TPM, until a day within a
// year. The operators and the reason are filled in when two have given the
// order.
func (e *effect) allowSoftwareKey(until *timestamppb.Timestamp, now time.Time) error {
	e.kind, e.takesTwo = "software_key.allowed", true
	if until.CheckValid() != nil || !until.AsTime().After(now) || until.AsTime().After(now.AddDate(1, 0, 0)) {
		return fmt.Errorf("an exception needs an end, within a year from now: %w", fs.ErrInvalid)
	}
	e.device.Asset.SoftwareKey = &fleetv1.SoftwareKeyPermission{Until: until, AllowedAt: timestamppb.New(now)}
	e.details["until"] = timeText(until)
	return nil
}

// revokeSoftwareKey ends the permission. A device that needs it is suspended.
func (e *effect) revokeSoftwareKey() error {
	e.kind = "software_key.revoked"
	if e.device.Asset.SoftwareKey == nil {
		return fmt.Errorf("no software key is allowed for it: %w", ErrTransition)
	}
	e.device.Asset.SoftwareKey = nil
	if usesSoftware(e.device) && e.device.Asset.State == active {
		e.device.Asset.State = suspended
	}
	e.details["after"] = stateName(e.device.Asset.State)
	return nil
}

// dismiss ends all by which the collector knows the device, also the VPN
// certificates that it has issued to it.
func (e *effect) dismiss() {
	e.dismissed = true
	e.device.Key = nil
	forgetVPN(e.device)
}

// actionName is what an order does, as audit records name it: "allow_software_key".
func actionName(o *fleetv1.Order) string {
	m := o.ProtoReflect()
	field := m.WhichOneof(m.Descriptor().Oneofs().ByName("action"))
	if field == nil {
		return ""
	}
	return string(field.Name())
}

func timeText(t *timestamppb.Timestamp) string { return t.AsTime().Format(time.RFC3339) }
