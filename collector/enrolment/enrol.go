package enrolment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/attestation"
	"pfoertner/collector/authority"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Enrolment is a notebook that becomes a device, after all is proven and
// decided.
type Enrolment struct {
	AssetNumber string
	// DeviceID is the one that the asset has already, otherwise a new one.
	DeviceID string
	// SPKI is the SHA-256 of the key (attest.SPKI), Certificate what was issued
	// for it.
	SPKI        []byte
	Certificate *authority.Certificate
	// Key says where the key is.
	Key *fleetv1.DeviceKey
	// TPM is what is known of the TPM; nil for a software key.
	TPM *attestation.Known
	// KnownAttestationKey: the TPM has proven itself by the attestation key that
	// was known of the device.
	KnownAttestationKey bool
	// Details are for the audit record.
	Details map[string]string
	// Committed is called after the commit, before anything else can change the
	// device or anybody sees it; nil: nothing is.
	Committed func()
}

// Enrol makes an asset an active device with this key and no other; one that
// was enrolled before keeps its id. All of it is there after the commit, or
// nothing. A key in a TPM ends the permission to have none. A new attestation key
// ends the re-image window and the VPN certificates that the one before vouched
// for. The error wraps fs.ErrNotExist for an unknown asset, ErrTransition when
// the asset does not, or not any more, allow this enrolment.
func (r *Registry) Enrol(ctx context.Context, e Enrolment) error {
	if err := e.check(); err != nil {
		return fmt.Errorf("enrolling %s: %w", e.AssetNumber, err)
	}
	r.change.Lock()
	defer r.change.Unlock()
	old, ok := r.lookup(r.byAsset, e.AssetNumber)
	if !ok {
		return fmt.Errorf("asset %q: %w", e.AssetNumber, fs.ErrNotExist)
	}
	if why := r.refuses(old, e); why != "" {
		return fmt.Errorf("enrolling %s: %s: %w", e.AssetNumber, why, ErrTransition)
	}
	d := proto.CloneOf(old)
	d.Id, d.EnrolledAt, d.Key = e.DeviceID, timestamppb.New(r.now()), proto.CloneOf(e.Key)
	d.Asset.State = active
	records := []record{
		{"device.enrolled", e.Details},
		{"credential.issued", map[string]string{"certificate_serial": e.Certificate.Serial}},
	}
	if e.TPM != nil {
		if bytes.Equal(d.GetPending().GetEndorsementKeySha256(), e.Key.GetEndorsementKeySha256()) {
			d.Pending = nil
		}
		if d.Asset.SoftwareKey != nil {
			d.Asset.SoftwareKey = nil
			records = append(records, record{"software_key.ended", map[string]string{"reason": "enrolled with a TPM"}})
		}
	}
	if !e.KnownAttestationKey {
		d.Asset.ReimageUntil = nil
		forgetVPN(d)
	}
	return r.enrol(ctx, d, e, records)
}

// check finds what no caller may leave out.
func (e Enrolment) check() error {
	switch inTPM := e.Key.GetProtection() == fleetv1.KeyProtection_KEY_PROTECTION_TPM; {
	case e.AssetNumber == "", e.DeviceID == "", len(e.SPKI) == 0, e.Certificate == nil, e.Key == nil:
		return errors.New("enrolment is not complete")
	case inTPM != (e.TPM != nil), inTPM && len(e.Key.GetEndorsementKeySha256()) == 0, e.TPM != nil && e.TPM.DeviceID != e.DeviceID:
		return errors.New("enrolment contradicts itself about the TPM")
	}
	return nil
}

// refuses says why an asset does not allow an enrolment; empty: it does. It was
// asked before, but the asset may have changed since.
func (r *Registry) refuses(old *fleetv1.Device, e Enrolment) string {
	a, sum := old.GetAsset(), e.Key.GetEndorsementKeySha256()
	switch {
	case notEnrollable(old) != "":
		return "it is " + stateName(a.GetState())
	case old.GetId() != "" && old.GetId() != e.DeviceID:
		return "it has another device id"
	case e.TPM == nil && !softwareAllowed(a, r.now()):
		return "a software key is not allowed"
	case e.TPM != nil && !listed(a, sum):
		return "the TPM is not the asset's"
	case e.TPM != nil && e.Key.GetEndorsedBy() == "" && !approved(a, sum):
		return "nobody vouches for the TPM"
	}
	return ""
}

// enrol stores and publishes an enrolment. The caller holds r.change.
func (r *Registry) enrol(ctx context.Context, d *fleetv1.Device, e Enrolment, records []record) error {
	r.mu.RLock()
	entry := r.byAsset[e.AssetNumber]
	r.mu.RUnlock()
	entry.renewing.Lock()
	defer entry.renewing.Unlock()
	c := credential{e.SPKI, e.Certificate.Serial, e.Certificate.NotAfter}
	if err := r.store.SaveEnrolment(ctx, d, c.spki, c.serial, c.notAfter, e.TPM, r.records("", d, records)...); err != nil {
		return fmt.Errorf("enrolling %s: %w", e.AssetNumber, err)
	}
	if e.Committed != nil {
		e.Committed()
	}
	r.publish(func() []*fleetv1.Device {
		entry.current, entry.previous = c, credential{}
		r.forget(e.AssetNumber)
		return []*fleetv1.Device{r.put(d)}
	})
	return nil
}

// notEnrollable says why no key may be given to an asset in its state; empty
// when one may.
func notEnrollable(d *fleetv1.Device) string {
	switch state := d.GetAsset().GetState(); state {
	case expected, pending, active:
		return ""
	default:
		return "asset_" + stateName(state)
	}
}
