package fleet

import (
	"context"
	"crypto/sha256"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/enrolment"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Inventory changes what the inventory knows and audits it under the actor's
// name (enrolment.Registry). An unknown device is an error that wraps
// fs.ErrNotExist, a certificate of another one fs.ErrExist.
type Inventory interface {
	// PlanImport says what Import would do.
	PlanImport(csv []byte) *fleetv1.ImportResponse
	Import(ctx context.Context, actor string, csv []byte) (*fleetv1.ImportResponse, error)
	Bind(ctx context.Context, actor, key string, sha256 []byte, remove bool) error
	CreateToken(ctx context.Context, actor, assetNumber string, lifetime time.Duration) (token string, expires time.Time, err error)
	SetState(ctx context.Context, actor, key string, state fleetv1.AssetState, reason string) (*fleetv1.Device, error)
}

type inventoryService struct {
	fleetv1.UnimplementedInventoryServiceServer
	inventory Inventory
}

func (s *inventoryService) Import(ctx context.Context, req *fleetv1.ImportRequest) (*fleetv1.ImportResponse, error) {
	actor, err := operator(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetDryRun() {
		return s.inventory.PlanImport(req.GetCsv()), nil
	}
	return s.inventory.Import(ctx, actor, req.GetCsv())
}

func (s *inventoryService) Bind(ctx context.Context, req *fleetv1.BindRequest) (*fleetv1.BindResponse, error) {
	actor, err := operator(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetDevice() == "" {
		return nil, invalid("no device named: an asset number or a device id is needed")
	}
	if n := len(req.GetCertificateSha256()); n != sha256.Size {
		return nil, invalid("the certificate's SHA-256 has %d bytes, %d are needed", n, sha256.Size)
	}
	if err := s.inventory.Bind(ctx, actor, req.GetDevice(), req.GetCertificateSha256(), req.GetRemove()); err != nil {
		return nil, err
	}
	return &fleetv1.BindResponse{}, nil
}

func (s *inventoryService) CreateToken(ctx context.Context, req *fleetv1.CreateTokenRequest) (*fleetv1.CreateTokenResponse, error) {
	actor, err := operator(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetAssetNumber() == "" {
		return nil, invalid("no asset named: its asset number is needed")
	}
	lifetime := enrolment.MaxTokenLifetime
	if req.GetLifetime() != nil {
		if err := req.GetLifetime().CheckValid(); err != nil {
			return nil, invalid("lifetime: %v", err)
		}
		if asked := req.GetLifetime().AsDuration(); asked != 0 {
			lifetime = asked
		}
	}
	token, expires, err := s.inventory.CreateToken(ctx, actor, req.GetAssetNumber(), lifetime)
	if err != nil {
		return nil, err
	}
	return &fleetv1.CreateTokenResponse{Token: token, ExpiresAt: timestamppb.New(expires)}, nil
}

func (s *inventoryService) SetState(ctx context.Context, req *fleetv1.SetStateRequest) (*fleetv1.SetStateResponse, error) {
	actor, err := operator(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetDevice() == "" {
		return nil, invalid("no device named: an asset number or a device id is needed")
	}
	if req.GetState() == fleetv1.AssetState_ASSET_STATE_UNSPECIFIED {
		return nil, invalid("no state named: suspended, active or retired")
	}
	dev, err := s.inventory.SetState(ctx, actor, req.GetDevice(), req.GetState(), req.GetReason())
	if err != nil {
		return nil, err
	}
	return &fleetv1.SetStateResponse{Device: dev}, nil
}
