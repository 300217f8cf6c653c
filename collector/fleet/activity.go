package fleet

import (
	"context"
	"time"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// ListSessions returns the live sessions as the gateways report them.
func (s *fleetService) ListSessions(_ context.Context, req *fleetv1.ListSessionsRequest) (*fleetv1.ListSessionsResponse, error) {
	return &fleetv1.ListSessionsResponse{Sessions: s.desk.Sessions(req.GetGateway())}, nil
}

// ListEvents returns what happened, newest first.
func (s *fleetService) ListEvents(ctx context.Context, req *fleetv1.ListEventsRequest) (*fleetv1.ListEventsResponse, error) {
	limit, err := pageLimit(req.GetLimit())
	if err != nil {
		return nil, invalid("limit: %v", err)
	}
	device := ""
	if req.GetDevice() != "" {
		dev, err := s.find(req.GetDevice())
		if err != nil {
			return nil, err
		}
		device = dev.GetAsset().GetAssetNumber()
	}
	since := time.Time{}
	if req.GetSince() != nil {
		if err := req.GetSince().CheckValid(); err != nil {
			return nil, invalid("since: %v", err)
		}
		since = req.GetSince().AsTime()
	}
	events, err := s.reports.Events(ctx, device, since, limit)
	if err != nil {
		return nil, err
	}
	return &fleetv1.ListEventsResponse{Events: events}, nil
}
