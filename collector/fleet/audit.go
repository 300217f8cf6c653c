package fleet

import (
	"context"
	"crypto/sha256"
	"errors"

	"google.golang.org/grpc"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// AuditLog is the stored audit log (store.Store).
type AuditLog interface {
	// AuditHead is the newest record; its sequence and hash are kept apart from
	// the records.
	AuditHead(ctx context.Context) (audit.Sealed, error)
	EachAudit(ctx context.Context, from uint64, fn func(audit.Sealed) error) error
}

// progressRecords is how many records are checked between two answers.
const progressRecords = 20_000

type auditService struct {
	fleetv1.UnimplementedAuditServiceServer
	log AuditLog
}

// Verify checks the whole log, up to its newest record.
func (s *auditService) Verify(req *fleetv1.VerifyRequest, stream grpc.ServerStreamingServer[fleetv1.VerifyResponse]) error {
	ctx := stream.Context()
	verifier := audit.NewVerifier()
	if noted := req.GetNotedHead(); len(noted) > 0 {
		if len(noted) != sha256.Size {
			return invalid("the noted head has %d bytes, %d are needed", len(noted), sha256.Size)
		}
		verifier.Note(noted)
	}
	begin, err := s.log.AuditHead(ctx)
	if err != nil {
		return err
	}
	check := func(r audit.Sealed) error {
		verifier.Next(r)
		if verifier.Checked()%progressRecords != 0 {
			return nil
		}
		return stream.Send(&fleetv1.VerifyResponse{Checked: verifier.Checked(), Total: max(begin.Sequence, verifier.Checked())})
	}
	if err := s.log.EachAudit(ctx, 1, check); err != nil {
		return err
	}
	// Records were written meanwhile: the head is read behind all that was
	// checked, so it can only be ahead of that, and the way up to it is checked
	// too.
	head, err := s.log.AuditHead(ctx)
	if err != nil {
		return err
	}
	err = s.log.EachAudit(ctx, verifier.Sequence()+1, func(r audit.Sealed) error {
		if r.Sequence > head.Sequence {
			return errHeadReached
		}
		return check(r)
	})
	if err != nil && !errors.Is(err, errHeadReached) {
		return err
	}
	last := &fleetv1.VerifyResponse{Checked: verifier.Checked(), Total: verifier.Checked(), Done: true, Head: head.Hash}
	for _, f := range verifier.Finish(head.Head()) {
		last.Faults = append(last.Faults, &fleetv1.AuditFault{Sequence: f.Sequence, Kind: string(f.Kind), Message: f.Message})
	}
	return stream.Send(last)
}

var errHeadReached = errors.New("the head is reached")
