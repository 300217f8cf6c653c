package fleet

import (
	"context"
	"crypto/sha256"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// BootReferences are the PCR values that notebooks of each model have quoted,
// and what was decided about them (attestation.Book).
type BootReferences interface {
	// BootReferences lists those of a model, of all when it is empty.
	BootReferences(model string) []*fleetv1.BootReference
	// SetBootReference decides about a value, also before any notebook quotes it.
	// A decision that cannot be taken back, because there is none, is an error
	// that wraps fs.ErrNotExist.
	SetBootReference(ctx context.Context, actor string, r *fleetv1.BootReference) (*fleetv1.BootReference, error)
}

// lastPCR is the highest register of a PC's TPM.
const lastPCR = 23

type bootReferenceService struct {
	fleetv1.UnimplementedBootReferenceServiceServer
	references BootReferences
}

func (s *bootReferenceService) ListBootReferences(_ context.Context, req *fleetv1.ListBootReferencesRequest) (*fleetv1.ListBootReferencesResponse, error) {
	return &fleetv1.ListBootReferencesResponse{References: s.references.BootReferences(req.GetModel())}, nil
}

func (s *bootReferenceService) SetBootReference(ctx context.Context, req *fleetv1.SetBootReferenceRequest) (*fleetv1.SetBootReferenceResponse, error) {
	actor, err := operator(ctx)
	if err != nil {
		return nil, err
	}
	if n := len(req.GetSha256()); n != sha256.Size {
		return nil, invalid("the value has %d bytes, %d are needed", n, sha256.Size)
	}
	if req.GetPcr() > lastPCR {
		return nil, invalid("PCR %d: a TPM has 0 to %d", req.GetPcr(), lastPCR)
	}
	switch req.GetState() {
	case posturev1.PcrReference_PCR_REFERENCE_LEARNED, posturev1.PcrReference_PCR_REFERENCE_APPROVED, posturev1.PcrReference_PCR_REFERENCE_REJECTED:
	default:
		return nil, invalid("no decision named: approved, rejected, or learned to take one back")
	}
	r, err := s.references.SetBootReference(ctx, actor, &fleetv1.BootReference{
		Vendor: req.GetVendor(), Model: req.GetModel(), Pcr: req.GetPcr(), Sha256: req.GetSha256(), State: req.GetState(),
	})
	if err != nil {
		return nil, err
	}
	return &fleetv1.SetBootReferenceResponse{Reference: r}, nil
}
