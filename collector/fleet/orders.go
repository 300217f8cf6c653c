package fleet

import (
	"context"
	"strings"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Orders carries out what operators decide about an asset, or keeps it as a
// proposal until another operator gives the same order (enrolment.Registry). An
// unknown device or proposal is an error that wraps fs.ErrNotExist, an order
// that the asset's state does not allow enrolment.ErrTransition, one that makes
// no sense fs.ErrInvalid.
type Orders interface {
	GiveOrder(ctx context.Context, actor string, o *fleetv1.Order) (*fleetv1.GiveOrderResponse, error)
	// Proposals are those that wait, oldest first.
	Proposals() []*fleetv1.Proposal
	WithdrawProposal(ctx context.Context, actor, id string) error
}

type orderService struct {
	fleetv1.UnimplementedOrderServiceServer
	orders Orders
}

// GiveOrder gives an order in the name of the operator who calls. Whether that
// is enough, or a second one is needed, the inventory decides.
func (s *orderService) GiveOrder(ctx context.Context, req *fleetv1.GiveOrderRequest) (*fleetv1.GiveOrderResponse, error) {
	actor, err := operator(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkOrder(req.GetOrder()); err != nil {
		return nil, err
	}
	return s.orders.GiveOrder(ctx, actor, req.GetOrder())
}

// checkOrder refuses an order that says too little to be given.
func checkOrder(o *fleetv1.Order) error {
	if o.GetDevice() == "" {
		return invalid("no device named: an asset number or a device id is needed")
	}
	twoAlways := false
	switch a := o.GetAction().(type) {
	case nil:
		return invalid("the order for %s does not say what to do", o.GetDevice())
	case *fleetv1.Order_Approve:
		if strings.TrimSpace(a.Approve.GetFingerprint()) == "" {
			return invalid("no fingerprint: approve the one that `pfoertner-agent id` shows on the notebook")
		}
		twoAlways = true
	case *fleetv1.Order_OpenReimageWindow:
		if d := a.OpenReimageWindow.GetLifetime(); d != nil && d.CheckValid() != nil {
			return invalid("lifetime: %v", d.CheckValid())
		}
	case *fleetv1.Order_ExchangeTpm:
		twoAlways = true
	case *fleetv1.Order_AllowSoftwareKey:
		if err := a.AllowSoftwareKey.GetUntil().CheckValid(); err != nil {
			return invalid("until: an exception needs an end")
		}
		twoAlways = true
	}
	if twoAlways && strings.TrimSpace(o.GetReason()) == "" {
		return invalid("no reason: the second operator and the audit log need one")
	}
	return nil
}

func (s *orderService) ListProposals(context.Context, *fleetv1.ListProposalsRequest) (*fleetv1.ListProposalsResponse, error) {
	return &fleetv1.ListProposalsResponse{Proposals: s.orders.Proposals()}, nil
}

func (s *orderService) WithdrawProposal(ctx context.Context, req *fleetv1.WithdrawProposalRequest) (*fleetv1.WithdrawProposalResponse, error) {
	actor, err := operator(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetId() == "" {
		return nil, invalid("no proposal named: its id is needed, as the list of proposals shows it")
	}
	if err := s.orders.WithdrawProposal(ctx, actor, req.GetId()); err != nil {
		return nil, err
	}
	return &fleetv1.WithdrawProposalResponse{}, nil
}
