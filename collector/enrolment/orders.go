package enrolment

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"strings"

	"google.golang.org/protobuf/proto"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// GiveOrder carries out what an operator decides about one asset. What weakens
// something (effects.go) takes two: the first one's order waits as a proposal,
// the same order by another operator carries it out. Two orders are the same
// when asset and action are. The same operator again changes nothing. Each needs
// a reason, and what was decided about must not have changed in between.
//
// The error wraps fs.ErrNotExist for an unknown asset, fs.ErrInvalid for an
// order that makes no sense, ErrTransition for one that the asset does not allow
// as it is now.
func (r *Registry) GiveOrder(ctx context.Context, actor string, o *fleetv1.Order) (*fleetv1.GiveOrderResponse, error) {
	if actor = strings.TrimSpace(actor); actor == "" {
		return nil, fmt.Errorf("an order by nobody: %w", fs.ErrInvalid)
	}
	if problem := checkText(o.GetReason()); problem != "" {
		return nil, fmt.Errorf("reason: %s: %w", problem, fs.ErrInvalid)
	}
	r.change.Lock()
	defer r.change.Unlock()
	old, ok := r.Find(o.GetDevice())
	if !ok {
		return nil, fmt.Errorf("asset %q: %w", o.GetDevice(), fs.ErrNotExist)
	}
	e, err := r.effectOf(o, old)
	if err != nil {
		return nil, fmt.Errorf("asset %s: %w", old.GetAsset().GetAssetNumber(), err)
	}
	response := &fleetv1.GiveOrderResponse{}
	if e.takesTwo {
		response, err = r.orderOfTwo(ctx, actor, o, old, e)
	} else {
		response.Done, err = true, r.carryOut(ctx, actor, o.GetReason(), old, e)
	}
	if err != nil {
		return nil, fmt.Errorf("asset %s: %w", old.GetAsset().GetAssetNumber(), err)
	}
	response.Device, _ = r.lookup(r.byAsset, old.GetAsset().GetAssetNumber())
	return response, nil
}

// carryOut commits the effect of one operator's order.
func (r *Registry) carryOut(ctx context.Context, actor, reason string, old *fleetv1.Device, e *effect) error {
	if proto.Equal(old, e.device) {
		return nil
	}
	return r.commit(ctx, e.decision(old, r.records(actor, e.device, []record{{e.kind, e.detailed(old, reason)}})))
}

// orderOfTwo makes a proposal of an order, or carries out the one that waits.
func (r *Registry) orderOfTwo(ctx context.Context, actor string, o *fleetv1.Order, old *fleetv1.Device, e *effect) (*fleetv1.GiveOrderResponse, error) {
	if strings.TrimSpace(o.GetReason()) == "" {
		return nil, fmt.Errorf("the order takes two operators, and each gives a reason: %w", fs.ErrInvalid)
	}
	o = canonical(o, old)
	p := r.waiting(o)
	if p == nil {
		p, err := r.propose(ctx, actor, o, e.device)
		return &fleetv1.GiveOrderResponse{Proposal: p}, err
	}
	if strings.EqualFold(p.GetProposedBy(), actor) {
		return &fleetv1.GiveOrderResponse{Proposal: p}, nil
	}
	p = proto.CloneOf(p)
	p.ConfirmedBy = actor
	if permission := e.device.GetAsset().GetSoftwareKey(); o.GetAllowSoftwareKey() != nil {
		permission.Reason, permission.AllowedBy = p.GetOrder().GetReason(), []string{p.GetProposedBy(), actor}
	}
	details := e.detailed(old, p.GetOrder().GetReason())
	details["proposed_by"], details["confirmed_by"] = p.GetProposedBy(), actor
	d := e.decision(old, r.records(actor, e.device, []record{
		{"order.confirmed", map[string]string{
			"proposal": p.GetId(), "order": actionName(o), "proposed_by": p.GetProposedBy(), "reason": o.GetReason(),
		}},
		{e.kind, details},
	}))
	d.settled = []string{p.GetId()}
	if err := r.commit(ctx, d); err != nil {
		return nil, err
	}
	return &fleetv1.GiveOrderResponse{Done: true, Proposal: p}, nil
}

// canonical is an order as it is kept and compared: one name for the asset, one
// way to write a fingerprint.
func canonical(o *fleetv1.Order, d *fleetv1.Device) *fleetv1.Order {
	o = proto.CloneOf(o)
	o.Device = d.GetAsset().GetAssetNumber()
	if a := o.GetApprove(); a != nil {
		a.Fingerprint = d.GetPending().GetFingerprint()
	}
	return o
}

// sameOrder compares canonical orders, the reason apart.
func sameOrder(a, b *fleetv1.Order) bool {
	a, b = proto.CloneOf(a), proto.CloneOf(b)
	a.Reason, b.Reason = "", ""
	return proto.Equal(a, b)
}

// decision is what is committed for the effect.
func (e *effect) decision(old *fleetv1.Device, records []audit.Record) decision {
	d := decision{devices: []*fleetv1.Device{e.device}, records: records}
	if e.dismissed && old.GetId() != "" {
		d.dismissed = []string{old.GetId()}
	}
	return d
}

// detailed are the details of the effect's audit record.
func (e *effect) detailed(old *fleetv1.Device, reason string) map[string]string {
	all := map[string]string{"before": stateName(old.GetAsset().GetState()), "reason": reason}
	maps.Copy(all, e.details)
	return all
}
