package enrolment

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// PendingLifetime is how long an enrolment waits for approval by default.
const PendingLifetime = 14 * 24 * time.Hour

// SetPending lets a notebook that has proven its TPM wait until two operators
// approve it. An expected asset becomes pending; an active one stays active with
// the key that it has, or whoever has its token could lock it out. Asking again
// with the same TPM changes nothing; another TPM takes the place of the one that
// waited. Zero times of p are now and PendingLifetime from now. The error wraps
// fs.ErrNotExist for an unknown asset, fs.ErrExist for the TPM of another asset,
// ErrTransition for one that is blocked here or an asset that cannot enrol.
func (r *Registry) SetPending(ctx context.Context, assetNumber string, p *fleetv1.PendingEnrolment, details map[string]string) error {
	if len(p.GetEndorsementKeySha256()) == 0 || p.GetFingerprint() == "" {
		return errors.New("pending enrolment without an endorsement key")
	}
	r.change.Lock()
	defer r.change.Unlock()
	old, ok := r.lookup(r.byAsset, assetNumber)
	if !ok {
		return fmt.Errorf("asset %q: %w", assetNumber, fs.ErrNotExist)
	}
	sum := p.GetEndorsementKeySha256()
	owner, taken := r.DeviceOfEndorsement(sum)
	switch {
	case taken && owner.GetAsset().GetAssetNumber() != assetNumber:
		return fmt.Errorf("the TPM belongs to asset %s: %w", owner.GetAsset().GetAssetNumber(), fs.ErrExist)
	case blocked(old.GetAsset(), sum):
		return fmt.Errorf("the TPM is blocked for asset %s: %w", assetNumber, ErrTransition)
	case notEnrollable(old) != "":
		return fmt.Errorf("an enrolment of asset %s, which is %s: %w", assetNumber, stateName(old.GetAsset().GetState()), ErrTransition)
	case bytes.Equal(old.GetPending().GetEndorsementKeySha256(), sum):
		return nil
	}
	d, now := proto.CloneOf(old), r.now()
	d.Pending = proto.CloneOf(p)
	if d.Pending.RequestedAt == nil {
		d.Pending.RequestedAt = timestamppb.New(now)
	}
	if d.Pending.ExpiresAt == nil {
		d.Pending.ExpiresAt = timestamppb.New(now.Add(PendingLifetime))
	}
	if d.Asset.State == expected {
		d.Asset.State = pending
	}
	all := maps.Clone(details)
	if all == nil {
		all = map[string]string{}
	}
	all["reason"], all["fingerprint"] = p.GetReason(), p.GetFingerprint()
	all["endorsement_key_sha256"] = hex.EncodeToString(sum)
	if err := r.save(ctx, []*fleetv1.Device{d}, r.record("device.pending", "", d, all)); err != nil {
		return fmt.Errorf("letting %s wait for approval: %w", assetNumber, err)
	}
	return nil
}

// unpend ends the pending enrolment of a device that the caller has cloned.
func unpend(d *fleetv1.Device) {
	d.Pending = nil
	if d.Asset.State == pending {
		d.Asset.State = expected
	}
}
