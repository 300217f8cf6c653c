package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/appraisal"
	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Policies keeps every version of the policy (store.Store).
type Policies interface {
	AddPolicy(ctx context.Context, p *fleetv1.PolicyVersion, yaml []byte, records ...audit.Record) (uint64, error)
	Policies(ctx context.Context) ([]*fleetv1.PolicyVersion, error)
	// Policy returns a version; 0 is the newest.
	Policy(ctx context.Context, version uint64) (*fleetv1.PolicyVersion, []byte, error)
}

// Verifier puts policies and reference values in force (collector/verifier).
type Verifier interface {
	// Adopt judges the whole fleet by the policy from now on and tells how far it
	// is. It returns when every device has been judged. progress is not called
	// concurrently.
	Adopt(ctx context.Context, policy *appraisal.Policy, progress func(*fleetv1.ApplyResponse)) error
	// AdoptReferences does the same for reference values.
	AdoptReferences(ctx context.Context, references *appraisal.References, progress func(*fleetv1.ApplyResponse)) error
	// References are the reference values in force.
	References() *appraisal.References
}

type policyService struct {
	fleetv1.UnimplementedPolicyServiceServer
	// life ends what an operator has ordered; his own hanging up does not.
	life     context.Context
	policies Policies
	verifier Verifier
	now      func() time.Time
	// applying lets one policy at a time be put in force.
	applying sync.Mutex
}

// Check compiles a policy; nothing is changed.
func (s *policyService) Check(_ context.Context, req *fleetv1.CheckRequest) (*fleetv1.CheckResponse, error) {
	policy, faults := appraisal.Compile(req.GetYaml())
	if policy == nil {
		return &fleetv1.CheckResponse{Errors: faults}, nil
	}
	return &fleetv1.CheckResponse{Name: policy.Name(), Rules: uint32(policy.Rules())}, nil
}

// Apply keeps a policy as the newest version and puts it in force for the whole
// fleet. One that does not compile changes nothing. Once the version is kept,
// the operator may hang up: it is put in force all the same.
func (s *policyService) Apply(req *fleetv1.ApplyRequest, stream grpc.ServerStreamingServer[fleetv1.ApplyResponse]) error {
	actor, err := operator(stream.Context())
	if err != nil {
		return err
	}
	policy, faults := appraisal.Compile(req.GetYaml())
	if policy == nil {
		return stream.Send(&fleetv1.ApplyResponse{Errors: faults, Done: true})
	}
	if !s.applying.TryLock() {
		return status.Error(codes.Aborted, "another policy is being applied just now: look at it first (policy show)")
	}
	defer s.applying.Unlock()

	version, err := s.keep(stream.Context(), actor, policy, req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(stream.Context()))
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	last := &fleetv1.ApplyResponse{}
	err = s.verifier.Adopt(ctx, policy.WithVersion(version), func(step *fleetv1.ApplyResponse) {
		last = step
		step.Version, step.Done = version, false
		// A broken stream is found at the end; the work goes on without it.
		_ = stream.Send(step)
	})
	if err != nil {
		return err
	}
	last.Version, last.Done = version, true
	return stream.Send(last)
}

func (s *policyService) keep(ctx context.Context, actor string, policy *appraisal.Policy, req *fleetv1.ApplyRequest) (uint64, error) {
	sum := sha256.Sum256(req.GetYaml())
	now := s.now()
	return s.policies.AddPolicy(ctx, &fleetv1.PolicyVersion{
		Name: policy.Name(), Operator: actor, AppliedAt: timestamppb.New(now), Comment: req.GetComment(), Sha256: sum[:],
	}, req.GetYaml(), audit.Record{
		At: now, Kind: "policy.applied", Actor: actor,
		Details: map[string]string{"name": policy.Name(), "comment": req.GetComment(), "sha256": hex.EncodeToString(sum[:])},
	})
}

// Show returns a version with its text.
func (s *policyService) Show(ctx context.Context, req *fleetv1.ShowRequest) (*fleetv1.ShowResponse, error) {
	version, yaml, err := s.policies.Policy(ctx, req.GetVersion())
	if err != nil {
		return nil, err
	}
	return &fleetv1.ShowResponse{Policy: version, Yaml: yaml}, nil
}

// History returns all versions, newest first.
func (s *policyService) History(ctx context.Context, _ *fleetv1.HistoryRequest) (*fleetv1.HistoryResponse, error) {
	versions, err := s.policies.Policies(ctx)
	if err != nil {
		return nil, err
	}
	return &fleetv1.HistoryResponse{Versions: versions}, nil
}
