package fleet

import (
	"context"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Authorities are the certificate authorities by which genuine TPMs are known.
type Authorities interface {
	// List is all that are believed.
	List() []*fleetv1.EndorsementAuthority
	// Add takes those of a file that are new and returns them: all or none. A
	// dry run only says which it would take. What is not to be believed is an
	// error that wraps fs.ErrInvalid and says why.
	Add(ctx context.Context, actor string, certificates []byte, dryRun bool) ([]*fleetv1.EndorsementAuthority, error)
}

type endorsementService struct {
	fleetv1.UnimplementedEndorsementServiceServer
	authorities Authorities
}

func (s *endorsementService) ListAuthorities(context.Context, *fleetv1.ListAuthoritiesRequest) (*fleetv1.ListAuthoritiesResponse, error) {
	return &fleetv1.ListAuthoritiesResponse{Authorities: s.authorities.List()}, nil
}

func (s *endorsementService) AddAuthorities(ctx context.Context, req *fleetv1.AddAuthoritiesRequest) (*fleetv1.AddAuthoritiesResponse, error) {
	actor, err := operator(ctx)
	if err != nil {
		return nil, err
	}
	added, err := s.authorities.Add(ctx, actor, req.GetCertificates(), req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &fleetv1.AddAuthoritiesResponse{Added: added}, nil
}
