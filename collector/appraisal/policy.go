package appraisal

import (
	_ "embed"
	"slices"
	"strings"
	"time"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

//go:embed dienstgeraete.yaml
var shippedPolicy []byte

// Policy is a compiled policy. It is immutable and safe for concurrent use.
type Policy struct {
	name    string
	version uint64
	maxAge  time.Duration
	// staleEffect is what evidence older than maxAge leads to.
	staleEffect posturev1.Effect
	// contradicted is what a rule becomes that reads contradicting readings:
	// UNKNOWN or FAIL.
	contradicted posturev1.Outcome
	rollout      posturev1.Rollout
	units        []unitRollout
	rules        []rule
	viewers      []viewer
	texts        *builtin
	// softwareKeys is what a key leads to that is not bound to the hardware.
	softwareKeys posturev1.Effect
	tunnelProof  tunnelProof
	// withoutNotice: refusals are not shown on the notebook's screen.
	withoutNotice bool
	language      *language
}

// unitRollout is how far the policy is in force below a unit.
type unitRollout struct {
	unit    string
	rollout posturev1.Rollout
}

// Compile reads a policy and checks it in full. The policy is nil exactly when
// there are errors; every error has its line and column in the file, from 1, in
// the order of the file.
func Compile(yaml []byte) (*Policy, []*fleetv1.PolicyError) {
	d, top := parseDocument(yaml)
	var p *Policy
	if top != nil {
		p = readPolicy(d, top)
	}
	if len(d.errs) > 0 {
		d.sortErrors()
		return nil, d.errs
	}
	return p, nil
}

// DefaultPolicy is the shipped policy "dienstgeraete" as its YAML file.
func DefaultPolicy() []byte { return slices.Clone(shippedPolicy) }

// Name is the policy's own name.
func (p *Policy) Name() string { return p.name }

// Version is the number the policy was stored under; zero when it was not.
func (p *Policy) Version() uint64 { return p.version }

// WithVersion returns the same policy under a version number, which its results
// then carry.
func (p *Policy) WithVersion(version uint64) *Policy {
	q := *p
	q.version = version
	return &q
}

// Rules is how many rules the policy has, the built-in ones not counted.
func (p *Policy) Rules() int { return len(p.rules) }

// Freshness is how old evidence may be.
func (p *Policy) Freshness() time.Duration { return p.maxAge }

// ReportInterval is how often agents have to report so that two lost reports
// do not make them stale: a third of the freshness, at most 15 minutes.
func (p *Policy) ReportInterval() time.Duration {
	return min(p.maxAge/3, 15*time.Minute)
}

// rolloutOf is how far the policy is in force for a unit: as the longest unit
// says that it lies in.
func (p *Policy) rolloutOf(unit string) posturev1.Rollout {
	longest, rollout := -1, p.rollout
	for _, u := range p.units {
		rest, inside := strings.CutPrefix(unit, u.unit)
		if inside && (rest == "" || rest[0] == '/') && len(u.unit) > longest {
			longest, rollout = len(u.unit), u.rollout
		}
	}
	return rollout
}
