package enrolment

import (
	"context"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Proposals returns the orders that wait for a second operator, oldest first.
func (r *Registry) Proposals() []*fleetv1.Proposal { return nil }

// WithdrawProposal ends a proposal. The error wraps fs.ErrNotExist.
func (r *Registry) WithdrawProposal(ctx context.Context, actor, id string) error { return errNotBuilt }
