package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/appraisal"
	"pfoertner/collector/audit"
	"pfoertner/internal/posture"
	"pfoertner/internal/signed"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// References keeps every signed file that was imported (store.Store).
type References interface {
	AddReferences(ctx context.Context, v *fleetv1.ReferenceVersion, file []byte, records ...audit.Record) (uint64, error)
	// References returns a version of a kind; 0 is the newest.
	References(ctx context.Context, kind string, version uint64) (*fleetv1.ReferenceVersion, []byte, error)
	ReferenceVersions(ctx context.Context) ([]*fleetv1.ReferenceVersion, error)
}

// referenceService takes signed files. Nothing of a file is looked at before
// its signature holds.
type referenceService struct {
	fleetv1.UnimplementedReferenceServiceServer
	life      context.Context
	files     References
	verifier  Verifier
	shipped   *appraisal.References
	open      func(kind string, file []byte) (content []byte, signer string, err error)
	catalogue func(signedFile []byte)
	now       func() time.Time
	// importing lets one file at a time be put in force.
	importing sync.Mutex
}

// imported is a file whose signature holds and whose content makes sense.
type imported struct {
	version    *fleetv1.ReferenceVersion
	references *appraisal.References // nil for a catalogue
}

// ImportReferences keeps a file as the newest of its kind and puts it in force.
// With anything wrong nothing is changed. Once it is kept, the operator may hang
// up: it is put in force all the same.
func (s *referenceService) ImportReferences(req *fleetv1.ImportReferencesRequest, stream grpc.ServerStreamingServer[fleetv1.ImportReferencesResponse]) error {
	actor, err := operator(stream.Context())
	if err != nil {
		return err
	}
	if !s.importing.TryLock() {
		return status.Error(codes.Aborted, "another file is being imported just now: look at it first (references show)")
	}
	defer s.importing.Unlock()
	file, faults, err := s.read(req.GetSignedFile())
	if err != nil {
		return err
	}
	if len(faults) > 0 {
		return stream.Send(&fleetv1.ImportReferencesResponse{Errors: faults, Done: true})
	}
	if err := s.newer(stream.Context(), file, req); err != nil {
		return err
	}
	if err := s.keep(stream.Context(), actor, file, req); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(stream.Context()))
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	last := &fleetv1.ImportReferencesResponse{}
	if file.references == nil {
		s.catalogue(req.GetSignedFile())
	} else if err := s.verifier.AdoptReferences(ctx, file.references.Over(s.shipped), func(step *fleetv1.ApplyResponse) {
		last = &fleetv1.ImportReferencesResponse{
			Appraised: step.GetAppraised(), Total: step.GetTotal(),
			NowAdmitted: step.GetNowAdmitted(), NowQuarantined: step.GetNowQuarantined(), NowDenied: step.GetNowDenied(),
		}
		// A broken stream is found at the end; the work goes on without it.
		_ = stream.Send(last)
	}); err != nil {
		return err
	}
	last.Imported, last.Done = file.version, true
	return stream.Send(last)
}

// read opens a file and checks its content. Faults are the author's to mend,
// with their places.
func (s *referenceService) read(file []byte) (*imported, []*fleetv1.PolicyError, error) {
	kind, err := signed.KindOf(file)
	if err != nil {
		return nil, nil, invalid("%v", err)
	}
	content, signer, err := s.open(kind, file)
	if err != nil {
		return nil, nil, invalid("%v", err)
	}
	sum := sha256.Sum256(file)
	out := &imported{version: &fleetv1.ReferenceVersion{Kind: kind, Signer: signer, Sha256: sum[:]}}
	if kind == signed.VPNCatalogue {
		if len(file) > posture.MaxBytesBytes {
			return nil, nil, invalid("the catalogue has %d bytes with its signature, agents take at most %d", len(file), posture.MaxBytesBytes)
		}
		_, err := catalogueSequence(content)
		if err != nil {
			return nil, nil, invalid("%v", err)
		}
		return out, nil, nil
	}
	references, faults := appraisal.ParseReferences(content)
	if references == nil {
		return nil, faults, nil
	}
	if err := references.CheckDates(s.now()); err != nil {
		return nil, nil, invalid("%v", err)
	}
	out.references = references
	out.version.IssuedAt = timestamppb.New(references.Issued())
	if asOf, _ := references.WindowsAsOf(); !asOf.IsZero() {
		out.version.WindowsAsOf = timestamppb.New(asOf)
	}
	return out, nil, nil
}

// catalogueSequence is the number that rises with every catalogue. The rest of
// its content is the agents' affair.
func catalogueSequence(content []byte) (uint64, error) {
	var head struct {
		Format   uint64 `yaml:"format"`
		Sequence uint64 `yaml:"sequence"`
	}
	// JSON is YAML.
	if err := yaml.Unmarshal(content, &head); err != nil {
		return 0, fmt.Errorf("the catalogue is no JSON: %w", err)
	}
	if head.Format == 0 || head.Sequence == 0 {
		return 0, errors.New("the catalogue has no format or no sequence: agents would not take it")
	}
	return head.Sequence, nil
}

// newer makes sure that nobody brings back an old file by mistake, or on
// purpose.
func (s *referenceService) newer(ctx context.Context, file *imported, req *fleetv1.ImportReferencesRequest) error {
	version, before, err := s.files.References(ctx, file.version.GetKind(), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if string(version.GetSha256()) == string(file.version.GetSha256()) {
		return status.Errorf(codes.AlreadyExists, "this very file is in force already, as version %d", version.GetVersion())
	}
	if file.references == nil {
		return successor(version.GetVersion(), before, req.GetSignedFile())
	}
	if now, in := file.version.GetIssuedAt().AsTime(), version.GetIssuedAt().AsTime(); !req.GetAllowOlder() && !now.After(in) {
		return status.Errorf(codes.FailedPrecondition, "the file was issued on %s, version %d in force on %s: an older one is taken only with --allow-older",
			day(now), version.GetVersion(), day(in))
	}
	return nil
}

// successor makes sure that agents take a catalogue after the one in force,
// whatever the operator allows: one with a higher sequence, or the same content
// signed anew.
func successor(version uint64, before, after []byte) error {
	old, errOld := signed.ContentOf(before)
	fresh, errFresh := signed.ContentOf(after)
	if err := errors.Join(errOld, errFresh); err != nil {
		return err
	}
	if bytes.Equal(old, fresh) {
		return nil
	}
	was, errWas := catalogueSequence(old)
	is, errIs := catalogueSequence(fresh)
	if err := errors.Join(errWas, errIs); err != nil {
		return err
	}
	if is <= was {
		return status.Errorf(codes.FailedPrecondition, "the catalogue has the sequence %d, version %d in force has %d: agents never go back", is, version, was)
	}
	return nil
}

// day is a moment in short: the day alone, if that is all that was said.
func day(t time.Time) string {
	if t.Equal(t.Truncate(24 * time.Hour)) {
		return t.Format(time.DateOnly)
	}
	return t.Format(time.RFC3339)
}

// keep stores the file and completes its version.
func (s *referenceService) keep(ctx context.Context, actor string, file *imported, req *fleetv1.ImportReferencesRequest) error {
	v, now := file.version, s.now()
	v.Operator, v.Comment, v.ImportedAt = actor, req.GetComment(), timestamppb.New(now)
	details := map[string]string{
		"kind": v.GetKind(), "signer": v.GetSigner(), "comment": v.GetComment(), "sha256": hex.EncodeToString(v.GetSha256()),
		"allow_older": strconv.FormatBool(req.GetAllowOlder()),
	}
	number, err := s.files.AddReferences(ctx, v, req.GetSignedFile(), audit.Record{
		At: now, Kind: "references.imported", Actor: actor, Details: details,
	})
	v.Version = number
	return err
}

// ShowReferences returns a version with its file, and what is in force.
func (s *referenceService) ShowReferences(ctx context.Context, req *fleetv1.ShowReferencesRequest) (*fleetv1.ShowReferencesResponse, error) {
	kind := req.GetKind()
	switch kind {
	case "":
		kind = signed.References
	case signed.References, signed.VPNCatalogue:
	default:
		return nil, invalid("%q is no kind of file: known are %s, %s", kind, signed.References, signed.VPNCatalogue)
	}
	answer := &fleetv1.ShowReferencesResponse{}
	var err error
	answer.Version, answer.SignedFile, err = s.files.References(ctx, kind, req.GetVersion())
	switch {
	case errors.Is(err, fs.ErrNotExist) && req.GetVersion() == 0:
		answer.Version = &fleetv1.ReferenceVersion{Kind: kind}
		if kind == signed.References {
			answer.SignedFile = appraisal.DefaultReferencesFile()
			answer.Version.IssuedAt = timestamppb.New(s.shipped.Issued())
		}
	case err != nil:
		return nil, err
	}
	if kind == signed.References {
		answer.InForce = inForce(s.verifier.References())
	}
	return answer, nil
}

func inForce(r *appraisal.References) *fleetv1.ReferencesInForce {
	f := r.Size()
	if asOf, until := r.WindowsAsOf(); !asOf.IsZero() {
		f.WindowsAsOf, f.WindowsUsableUntil = timestamppb.New(asOf), timestamppb.New(until)
	}
	return f
}

// ListReferences returns all versions of all kinds, newest first.
func (s *referenceService) ListReferences(ctx context.Context, _ *fleetv1.ListReferencesRequest) (*fleetv1.ListReferencesResponse, error) {
	versions, err := s.files.ReferenceVersions(ctx)
	if err != nil {
		return nil, err
	}
	return &fleetv1.ListReferencesResponse{Versions: versions}, nil
}
