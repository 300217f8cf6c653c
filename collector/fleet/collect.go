package fleet

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Collector asks a notebook that is connected to read and report now, and waits
// until the report, and the quote if wanted, were judged (intake.Service).
type Collector interface {
	CollectAndWait(ctx context.Context, deviceID string, quote bool) error
}

// collectPatience is how long Collect waits for a notebook.
const collectPatience = 30 * time.Second

// Collect lets a notebook report now and returns what it then stands at.
func (s *fleetService) Collect(ctx context.Context, req *fleetv1.CollectRequest) (*fleetv1.CollectResponse, error) {
	dev, err := s.find(req.GetDevice())
	if err != nil {
		return nil, err
	}
	asset := dev.GetAsset().GetAssetNumber()
	switch {
	case dev.GetId() == "":
		return nil, unmet("%s has not enrolled yet", asset)
	case req.GetQuote() && dev.GetKey().GetProtection() == fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE:
		return nil, unmet("%s has a key that is not in a TPM: there is nothing to quote", asset)
	}
	if online, _, _ := s.presence.Online(dev.GetId()); !online {
		return nil, unmet("%s is not connected: it reports when it is", asset)
	}
	waiting, cancel := context.WithTimeout(ctx, collectPatience)
	defer cancel()
	if err := s.collector.CollectAndWait(waiting, dev.GetId(), req.GetQuote()); err != nil {
		switch {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			return nil, status.Errorf(codes.DeadlineExceeded, "%s has not answered within %s", asset, collectPatience)
		case status.Code(err) == codes.Unavailable: // the notebook is, not we
			return nil, unmet("%s is no longer connected: it reports when it is again", asset)
		}
		return nil, err
	}
	// What the notebook stands at may have changed with its report.
	if dev, err = s.find(req.GetDevice()); err != nil {
		return nil, err
	}
	view, err := s.look(ctx, dev)
	if err != nil {
		return nil, err
	}
	return &fleetv1.CollectResponse{Device: view}, nil
}

func unmet(format string, args ...any) error {
	return status.Errorf(codes.FailedPrecondition, format, args...)
}
