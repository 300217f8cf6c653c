package enrolment

import (
	"context"
	"errors"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

var errNotBuilt = errors.New("not built yet")

// GiveOrder carries out what an operator decides about one asset.
func (r *Registry) GiveOrder(ctx context.Context, actor string, o *fleetv1.Order) (*fleetv1.GiveOrderResponse, error) {
	return nil, errNotBuilt
}
