// Package appraisal judges evidence: policy + references + inventory +
// evidence + what the TPM vouches for + now → result, with every value read, every reason and the moment
// from which on the same evidence may be judged otherwise (RFC 9334, 4.1).
//
// Rules. It is pure: no clock, file, network or database; the same input gives
// the same result. What could not be read is UNKNOWN with its reason and never
// passes; two readings that contradict each other are shown both and never
// resolved; a rule whose expression breaks off is UNKNOWN too. Results share
// texts with the policy they come from: nobody changes a result.
package appraisal

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/posture"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Input is everything that a result depends on.
type Input struct {
	// Policy must not be nil. References may be: then no reference value is
	// known, and rules that need one are UNKNOWN.
	Policy     *Policy
	References *References
	// Device is the notebook as the inventory knows it. Nil, or an asset that
	// is not active, is denied.
	Device *fleetv1.Device
	// Evidence may be nil: then nothing was ever read.
	Evidence *posturev1.Evidence
	// Attested is what the device's TPM vouches for; nil: it never did. It counts
	// as far as vouched says.
	Attested *posturev1.Attestation
	// EvidenceDigest is posture.Digest of Evidence when the caller has it
	// already; nil: it is computed.
	EvidenceDigest []byte
	// CollectedAt is when the evidence was collected, by the collector's clock.
	// Zero: never. A moment after Now counts as Now.
	CollectedAt time.Time
	Now         time.Time
	// Previous is the device's last result, from which failing_since is carried
	// on; nil when there is none.
	Previous *posturev1.Result
}

// How long a result holds at most when nothing in it ends earlier. Expressions
// may compare times in any way, so the moment at which one of them turns is not
// computed: a result of a policy that looks at the time is simply made anew.
// One that already keeps the device out can only be late in saying why.
const (
	recheckAfter        = time.Hour
	recheckRefusalAfter = 24 * time.Hour
)

// Appraise judges. It always returns a result; whatever is missing in the input
// denies.
func Appraise(in Input) *posturev1.Result {
	if in.CollectedAt.After(in.Now) {
		in.CollectedAt = in.Now
	}
	f := newFacts(in)
	p := in.Policy
	res := &posturev1.Result{
		Policy: p.name, PolicyVersion: p.version, Rollout: f.rollout,
		EvidenceDigest: in.EvidenceDigest, WithoutNotice: p.withoutNotice,
		AppraisedAt: timestamppb.New(in.Now),
		Findings:    make([]*posturev1.Finding, 0, len(p.rules)+3),
	}
	known := f.knownDevice()
	res.Findings = append(res.Findings, known, f.evidenceFresh(), f.hardwareBound())
	for i := range p.rules {
		res.Findings = append(res.Findings, p.rules[i].finding(p, f))
	}
	if known.GetOutcome() != posturev1.Outcome_OUTCOME_PASS {
		// No rollout softens this one: an unknown device is not ours.
		f.verdict, f.enforced = posturev1.Verdict_VERDICT_DENY, posturev1.Verdict_VERDICT_DENY
	}
	res.Verdict, res.EnforcedVerdict = f.verdict, f.enforced
	if f.states[sourceAttested].observed {
		res.QuotedAt = f.vouched.GetQuotedAt()
	}
	if !in.CollectedAt.IsZero() {
		res.CollectedAt = timestamppb.New(in.CollectedAt)
		res.FreshUntil = timestamppb.New(in.CollectedAt.Add(p.maxAge))
	}
	res.ExpiresAt = timestamppb.New(f.expiry())
	res.Code = refusalCode(in.Device.GetId(), res)
	if res.EvidenceDigest == nil && in.Evidence != nil {
		// Evidence that has no digest (texts that are not UTF-8) never gets
		// past CheckLimits; here it keeps an empty one.
		res.EvidenceDigest, _ = posture.Digest(in.Evidence)
	}
	return res
}

// knownDevice is the finding that every device needs to pass: in the inventory,
// and active.
func (f *facts) knownDevice() *posturev1.Finding {
	t := f.Policy.texts
	out := &posturev1.Finding{
		Rule: RuleKnownDevice, Outcome: posturev1.Outcome_OUTCOME_FAIL, Title: t.knownTitle, Remedy: t.knownRemedy,
		Reference: "SYS.3.1.A8", Origin: posturev1.Origin_ORIGIN_INVENTORY,
	}
	state := f.Device.GetAsset().GetState()
	switch {
	case state == fleetv1.AssetState_ASSET_STATE_ACTIVE && f.Device.GetId() != "":
		out.Outcome = posturev1.Outcome_OUTCOME_PASS
	case state == fleetv1.AssetState_ASSET_STATE_UNSPECIFIED || f.Device.GetId() == "":
		out.Reason = t.unknownDevice
	default:
		out.Reason = t.inactiveAsset
	}
	out.Values = []*posturev1.Value{{Path: "asset.state", Value: strings.TrimPrefix(state.String(), "ASSET_STATE_")}}
	f.weighAlways(out, posturev1.Effect_EFFECT_DENY)
	return out
}

// evidenceFresh is the finding about the age of the evidence.
func (f *facts) evidenceFresh() *posturev1.Finding {
	t := f.Policy.texts
	out := &posturev1.Finding{
		Rule: RuleEvidenceFresh, Outcome: posturev1.Outcome_OUTCOME_FAIL, Title: t.freshTitle, Remedy: t.freshRemedy,
		Reference: "SYS.2.1.A29", Origin: posturev1.Origin_ORIGIN_SELF_REPORTED,
	}
	age := f.Now.Sub(f.CollectedAt)
	switch {
	case f.CollectedAt.IsZero():
		out.Reason = t.neverReported
	case age < f.Policy.maxAge:
		out.Outcome = posturev1.Outcome_OUTCOME_PASS
	default:
		out.Reason = textStale(int(age / time.Minute))
	}
	if !f.CollectedAt.IsZero() {
		out.Values = []*posturev1.Value{{Path: "evidence_age", Value: age.Truncate(time.Second).String()}}
	}
	f.weigh(out, f.Policy.staleEffect, 0)
	return out
}

// expiry is the earliest moment from which on the same evidence may be judged
// otherwise.
func (f *facts) expiry() time.Time {
	stale := f.CollectedAt.IsZero() || f.Now.Sub(f.CollectedAt) >= f.Policy.maxAge
	end := f.Now.Add(recheckAfter)
	if f.verdict == posturev1.Verdict_VERDICT_DENY || stale && f.verdict == posturev1.Verdict_VERDICT_QUARANTINE {
		end = f.Now.Add(recheckRefusalAfter)
	}
	if fresh := f.CollectedAt.Add(f.Policy.maxAge); !stale && fresh.Before(end) {
		end = fresh
	}
	for _, at := range []time.Time{f.graceEnds, f.ends} {
		if !at.IsZero() && at.Before(end) {
			end = at
		}
	}
	return end
}
