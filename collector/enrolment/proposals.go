package enrolment

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// ProposalLifetime is how long an order waits for a second operator.
const ProposalLifetime = 72 * time.Hour

// maxProposals is how many orders for one asset may wait. No operator needs
// more than one of each kind, and none may fill the store.
const maxProposals = 16

// Proposals returns the orders that wait for a second operator, oldest first.
func (r *Registry) Proposals() []*fleetv1.Proposal {
	all := r.open()
	slices.SortFunc(all, func(a, b *fleetv1.Proposal) int {
		return cmp.Or(a.GetProposedAt().AsTime().Compare(b.GetProposedAt().AsTime()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return all
}

// open are the orders that wait, in no particular order.
func (r *Registry) open() []*fleetv1.Proposal {
	now := r.now()
	r.mu.RLock()
	defer r.mu.RUnlock()
	var all []*fleetv1.Proposal
	for _, p := range r.proposals {
		if now.Before(p.GetExpiresAt().AsTime()) {
			all = append(all, p)
		}
	}
	return all
}

// WithdrawProposal ends a proposal; any operator may. The error wraps
// fs.ErrNotExist for one that does not wait.
func (r *Registry) WithdrawProposal(ctx context.Context, actor, id string) error {
	r.change.Lock()
	defer r.change.Unlock()
	r.mu.RLock()
	p := r.proposals[id]
	r.mu.RUnlock()
	if p == nil || !r.now().Before(p.GetExpiresAt().AsTime()) {
		return fmt.Errorf("proposal %q: %w", id, fs.ErrNotExist)
	}
	return r.settle(ctx, p, r.withdrawn(actor, p, "withdrawn"))
}

// settle ends a proposal that nobody has confirmed. The caller holds r.change.
func (r *Registry) settle(ctx context.Context, p *fleetv1.Proposal, record audit.Record) error {
	if err := r.commit(ctx, decision{settled: []string{p.GetId()}, records: []audit.Record{record}}); err != nil {
		return fmt.Errorf("withdrawing proposal %s: %w", p.GetId(), err)
	}
	return nil
}

// withdrawn is the audit record for a proposal that ended without being carried
// out: "withdrawn" by an operator, "expired", or "overtaken" by a change.
func (r *Registry) withdrawn(actor string, p *fleetv1.Proposal, why string) audit.Record {
	record := r.record("order.withdrawn", actor, nil, map[string]string{
		"proposal": p.GetId(), "order": actionName(p.GetOrder()), "proposed_by": p.GetProposedBy(), "why": why,
	})
	record.AssetNumber = p.GetAssetNumber()
	return record
}

// waiting returns the proposal of the same order that waits; nil: none does.
func (r *Registry) waiting(o *fleetv1.Order) *fleetv1.Proposal {
	for _, p := range r.open() {
		if sameOrder(p.GetOrder(), o) {
			return p
		}
	}
	return nil
}

// propose keeps an order for a second operator. The caller holds r.change.
func (r *Registry) propose(ctx context.Context, actor string, o *fleetv1.Order, d *fleetv1.Device) (*fleetv1.Proposal, error) {
	waiting := 0
	for _, p := range r.open() {
		if p.GetAssetNumber() == o.GetDevice() {
			waiting++
		}
	}
	if waiting >= maxProposals {
		return nil, fmt.Errorf("%d orders wait for a second operator, withdraw some first: %w", waiting, ErrTransition)
	}
	now := r.now()
	p := &fleetv1.Proposal{
		Id: uuid.NewString(), Order: o, AssetNumber: o.GetDevice(), ProposedBy: actor,
		ProposedAt: timestamppb.New(now), ExpiresAt: timestamppb.New(now.Add(ProposalLifetime)),
	}
	details := map[string]string{
		"proposal": p.GetId(), "order": actionName(o), "reason": o.GetReason(), "expires": timeText(p.GetExpiresAt()),
	}
	if a := o.GetApprove(); a != nil {
		details["fingerprint"] = a.GetFingerprint()
	}
	if a := o.GetAllowSoftwareKey(); a != nil {
		details["until"] = timeText(a.GetUntil())
	}
	if err := r.store.SaveProposal(ctx, p, r.record("order.proposed", actor, d, details)); err != nil {
		return nil, fmt.Errorf("proposing: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.proposals[p.GetId()] = p
	r.awake()
	return p, nil
}

// overtaken returns the proposals that a decision leaves without what they were
// made about: the notebook that waits is another one, the alarm is over, the
// asset is retired. They do not come back to life when the like comes again.
func (r *Registry) overtaken(d decision) []*fleetv1.Proposal {
	open := map[string][]*fleetv1.Proposal{}
	for _, p := range r.open() {
		if !slices.Contains(d.settled, p.GetId()) {
			open[p.GetAssetNumber()] = append(open[p.GetAssetNumber()], p)
		}
	}
	if len(open) == 0 {
		return nil
	}
	var ended []*fleetv1.Proposal
	for _, after := range d.devices {
		for _, p := range open[after.GetAsset().GetAssetNumber()] {
			if e, err := r.effectOf(p.GetOrder(), after); err != nil || proto.Equal(after, e.device) {
				ended = append(ended, p)
			}
		}
	}
	return ended
}
