package enrolment

import (
	"context"
	"fmt"
	"io/fs"
	"strings"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

const (
	expected  = fleetv1.AssetState_ASSET_STATE_EXPECTED
	pending   = fleetv1.AssetState_ASSET_STATE_PENDING
	active    = fleetv1.AssetState_ASSET_STATE_ACTIVE
	suspended = fleetv1.AssetState_ASSET_STATE_SUSPENDED
	retired   = fleetv1.AssetState_ASSET_STATE_RETIRED
)

// stateName is a state as people and audit records write it: "active".
func stateName(s fleetv1.AssetState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "ASSET_STATE_"))
}

// SetState suspends, resumes or retires an asset, for programs that do not know
// GiveOrder: what takes two operators it never does. To set the state that the
// asset already has is no error and changes nothing. The error wraps
// fs.ErrNotExist for an unknown asset, ErrTransition for a change that is not
// allowed.
func (r *Registry) SetState(ctx context.Context, actor, key string, state fleetv1.AssetState, reason string) (*fleetv1.Device, error) {
	r.change.Lock()
	defer r.change.Unlock()
	old, ok := r.Find(key)
	if !ok {
		return nil, fmt.Errorf("asset %q: %w", key, fs.ErrNotExist)
	}
	number, before := old.GetAsset().GetAssetNumber(), old.GetAsset().GetState()
	if before == state {
		return old, nil
	}
	refused := func(why error) error {
		return fmt.Errorf("asset %s from %s to %s: %w", number, stateName(before), stateName(state), why)
	}
	order := &fleetv1.Order{}
	switch state {
	case suspended:
		order.Action = &fleetv1.Order_Suspend{}
	case retired:
		order.Action = &fleetv1.Order_Retire{}
	case active, expected:
		order.Action = &fleetv1.Order_Resume{}
	default:
		return nil, refused(ErrTransition)
	}
	e, err := r.effectOf(order, old)
	switch {
	case err != nil:
		return nil, refused(err)
	case e.takesTwo:
		return nil, refused(fmt.Errorf("after an alarm two operators resume it: %w", ErrTransition))
	case e.device.GetAsset().GetState() != state:
		return nil, refused(ErrTransition)
	}
	if err := r.carryOut(ctx, actor, reason, old, e); err != nil {
		return nil, fmt.Errorf("setting state of %s: %w", number, err)
	}
	d, _ := r.lookup(r.byAsset, number)
	return d, nil
}
