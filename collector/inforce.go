package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/appraisal"
	"pfoertner/collector/audit"
	"pfoertner/internal/signed"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// referencesInForce are the shipped values, with the newest imported file above
// them. It was verified when it was imported.
func (p *Program) referencesInForce(ctx context.Context) (*appraisal.References, error) {
	version, file, err := p.store.References(ctx, signed.References, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return p.shipped, nil
	}
	if err != nil {
		return nil, err
	}
	content, err := signed.ContentOf(file)
	if err != nil {
		return nil, fmt.Errorf("version %d: %w", version.GetVersion(), err)
	}
	references, faults := appraisal.ParseReferences(content)
	if len(faults) > 0 {
		return nil, fmt.Errorf("version %d does not check with this collector: line %d: %s",
			version.GetVersion(), faults[0].GetLine(), faults[0].GetMessage())
	}
	return references.Over(p.shipped), nil
}

// loadCatalogue puts the newest VPN catalogue in force.
func (p *Program) loadCatalogue(ctx context.Context) error {
	_, file, err := p.store.References(ctx, signed.VPNCatalogue, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("loading the VPN catalogue: %w", err)
	}
	p.intake.SetVPNCatalogue(file)
	return nil
}

// openSigned verifies a file by this collector's own CA.
func (p *Program) openSigned(kind string, file []byte) ([]byte, string, error) {
	return signed.Open(kind, file, p.keys.Servers(), time.Now())
}

// policyInForce is the newest policy in the store; a new collector starts with
// the shipped one.
func (p *Program) policyInForce(ctx context.Context) (*appraisal.Policy, error) {
	version, text, err := p.store.Policy(ctx, 0)
	if errors.Is(err, fs.ErrNotExist) {
		version, text, err = p.adoptDefault(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("loading the policy: %w", err)
	}
	policy, faults := appraisal.Compile(text)
	if len(faults) > 0 {
		return nil, fmt.Errorf("policy version %d does not check with this collector: line %d: %s",
			version.GetVersion(), faults[0].GetLine(), faults[0].GetMessage())
	}
	return policy.WithVersion(version.GetVersion()), nil
}

func (p *Program) adoptDefault(ctx context.Context) (*fleetv1.PolicyVersion, []byte, error) {
	text := appraisal.DefaultPolicy()
	policy, faults := appraisal.Compile(text)
	if len(faults) > 0 {
		return nil, nil, fmt.Errorf("shipped policy: line %d: %s", faults[0].GetLine(), faults[0].GetMessage())
	}
	sum := sha256.Sum256(text)
	version := &fleetv1.PolicyVersion{
		Name: policy.Name(), Operator: "collector", Comment: "shipped with this version",
		AppliedAt: timestamppb.Now(), Sha256: sum[:],
	}
	number, err := p.store.AddPolicy(ctx, version, text, audit.Record{
		At: time.Now(), Kind: "policy.applied", Actor: "collector",
		Details: map[string]string{"policy": policy.Name(), "sha256": fmt.Sprintf("%x", sum)},
	})
	version.Version = number
	return version, text, err
}
