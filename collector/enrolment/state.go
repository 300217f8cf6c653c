package enrolment

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/authority"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// ErrTransition is wrapped by the error for a change of state that is not
// allowed.
var ErrTransition = errors.New("not allowed")

const (
	expected  = fleetv1.AssetState_ASSET_STATE_EXPECTED
	pending   = fleetv1.AssetState_ASSET_STATE_PENDING
	active    = fleetv1.AssetState_ASSET_STATE_ACTIVE
	suspended = fleetv1.AssetState_ASSET_STATE_SUSPENDED
	retired   = fleetv1.AssetState_ASSET_STATE_RETIRED
)

// orders is what an operator may change a state to. Only enrolment makes an
// asset pending or, for the first time, active; nothing comes back from
// retired.
var orders = map[fleetv1.AssetState][]fleetv1.AssetState{
	expected:  {suspended, retired},
	pending:   {suspended, retired},
	active:    {suspended, retired},
	suspended: {active, expected, retired},
}

// stateName is a state as people and audit records write it: "active".
func stateName(s fleetv1.AssetState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "ASSET_STATE_"))
}

// SetState suspends, resumes or retires an asset. A suspended asset resumes as
// active when it was enrolled before, as expected when not. To set the state
// that the asset already has is no error and changes nothing. The error wraps
// fs.ErrNotExist for an unknown asset, ErrTransition for a change that is not
// allowed.
func (r *Registry) SetState(ctx context.Context, actor, key string, state fleetv1.AssetState, reason string) (*fleetv1.Device, error) {
	r.change.Lock()
	defer r.change.Unlock()
	old, ok := r.Find(key)
	if !ok {
		return nil, fmt.Errorf("asset %q: %w", key, fs.ErrNotExist)
	}
	before := old.GetAsset().GetState()
	if before == state {
		return old, nil
	}
	if !slices.Contains(orders[before], state) || state == active && old.GetId() == "" || state == expected && old.GetId() != "" {
		return nil, fmt.Errorf("asset %s from %s to %s: %w", old.GetAsset().GetAssetNumber(), stateName(before), stateName(state), ErrTransition)
	}
	d := proto.CloneOf(old)
	d.Asset.State = state
	kind := map[fleetv1.AssetState]string{
		suspended: "device.suspended", retired: "device.retired", active: "device.resumed", expected: "device.resumed",
	}[state]
	record := r.record(kind, actor, d, map[string]string{"before": stateName(before), "reason": reason})
	if err := r.save(ctx, []*fleetv1.Device{d}, record); err != nil {
		return nil, fmt.Errorf("setting state of %s: %w", d.GetAsset().GetAssetNumber(), err)
	}
	d, _ = r.Find(key)
	return d, nil
}

// Bind ties the certificate of a VPN client, by the SHA-256 of its DER form, to
// an asset, or removes it. Binding what is bound to the same asset, and
// removing what is not bound, changes nothing. The error wraps fs.ErrNotExist
// for an unknown asset, fs.ErrExist for a certificate of another asset,
// ErrTransition for a retired asset, fs.ErrInvalid for a hash of another length.
func (r *Registry) Bind(ctx context.Context, actor, key string, sha256 []byte, remove bool) error {
	if len(sha256) != 32 {
		return fmt.Errorf("certificate hash of %d bytes, a SHA-256 has 32: %w", len(sha256), fs.ErrInvalid)
	}
	r.change.Lock()
	defer r.change.Unlock()
	old, ok := r.Find(key)
	if !ok {
		return fmt.Errorf("asset %q: %w", key, fs.ErrNotExist)
	}
	number := old.GetAsset().GetAssetNumber()
	owner, bound := r.DeviceOfCertificate(sha256)
	mine := bound && owner.GetAsset().GetAssetNumber() == number
	switch {
	case bound && !mine:
		return fmt.Errorf("certificate is bound to asset %s: %w", owner.GetAsset().GetAssetNumber(), fs.ErrExist)
	case mine != remove: // already as it should be
		return nil
	case !remove && old.GetAsset().GetState() == retired:
		return fmt.Errorf("binding a certificate to retired asset %s: %w", number, ErrTransition)
	}
	d, kind := proto.CloneOf(old), "certificate.bound"
	if remove {
		kind = "certificate.unbound"
		d.Asset.VpnCertificatesSha256 = slices.DeleteFunc(d.Asset.VpnCertificatesSha256, func(b []byte) bool { return string(b) == string(sha256) })
	} else {
		d.Asset.VpnCertificatesSha256 = append(d.Asset.VpnCertificatesSha256, sha256)
	}
	record := r.record(kind, actor, d, map[string]string{"certificate_sha256": hex.EncodeToString(sha256)})
	if err := r.save(ctx, []*fleetv1.Device{d}, record); err != nil {
		return fmt.Errorf("binding certificate to %s: %w", number, err)
	}
	return nil
}

// enrol makes an asset an active device with this key; one that was enrolled
// before keeps its id and loses its old key at once.
func (r *Registry) enrol(ctx context.Context, assetNumber, deviceID string, spki []byte, cert *authority.Certificate, details map[string]string) error {
	r.change.Lock()
	defer r.change.Unlock()
	old, ok := r.Find(assetNumber)
	if !ok {
		return fmt.Errorf("asset %q: %w", assetNumber, fs.ErrNotExist)
	}
	if why := notEnrollable(old); why != "" || old.GetId() != "" && old.GetId() != deviceID {
		return fmt.Errorf("asset %s changed during enrolment: %w", assetNumber, ErrTransition)
	}
	d := proto.CloneOf(old)
	d.Id = deviceID
	d.Asset.State = active
	d.EnrolledAt = timestamppb.New(r.now())
	if err := r.save(ctx, []*fleetv1.Device{d}, r.record("device.enrolled", "", d, details)); err != nil {
		return fmt.Errorf("enrolling %s: %w", assetNumber, err)
	}
	r.mu.RLock()
	e := r.byID[deviceID]
	r.mu.RUnlock()
	e.renewing.Lock()
	defer e.renewing.Unlock()
	record := r.record("credential.issued", "", d, map[string]string{"certificate_serial": cert.Serial})
	if err := r.store.SaveCredential(ctx, deviceID, spki, cert.Serial, cert.NotAfter, record); err != nil {
		return fmt.Errorf("enrolling %s: %w", assetNumber, err)
	}
	r.publishCredential(e, credential{spki, cert.Serial, cert.NotAfter}, nil)
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
