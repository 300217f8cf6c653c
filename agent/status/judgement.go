package status

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// judgement reduces a result to what its reader can act on: rules that are not
// met and have an effect, without the values that were read.
func judgement(r *posturev1.Result) *Judgement {
	j := &Judgement{
		Verdict: verdictWord(r.GetVerdict()), Code: r.GetCode(),
		At: moment(r.GetAppraisedAt()), ValidUntil: moment(r.GetExpiresAt()),
	}
	for _, f := range r.GetFindings() {
		unmet := f.GetOutcome() == posturev1.Outcome_OUTCOME_FAIL || f.GetOutcome() == posturev1.Outcome_OUTCOME_UNKNOWN
		if !unmet || f.GetEffect() == posturev1.Effect_EFFECT_NONE {
			continue
		}
		j.Findings = append(j.Findings, Finding{
			Effect: effectWord(f.GetEffect()), Unknown: f.GetOutcome() == posturev1.Outcome_OUTCOME_UNKNOWN,
			Title: text(f.GetTitle()), Reason: text(f.GetReason()), Remedy: text(f.GetRemedy()),
			FailingSince: moment(f.GetFailingSince()), GraceUntil: moment(f.GetGraceUntil()),
		})
	}
	slices.SortStableFunc(j.Findings, func(a, b Finding) int { return cmp.Compare(gravity(a.Effect), gravity(b.Effect)) })
	return j
}

func verdictWord(v posturev1.Verdict) string {
	switch v {
	case posturev1.Verdict_VERDICT_ADMIT:
		return "admit"
	case posturev1.Verdict_VERDICT_QUARANTINE:
		return "quarantine"
	}
	return "deny"
}

func effectWord(e posturev1.Effect) string {
	switch e {
	case posturev1.Effect_EFFECT_WARN:
		return "warn"
	case posturev1.Effect_EFFECT_QUARANTINE:
		return "quarantine"
	}
	return "deny"
}

// gravity orders effects, the gravest first; an unknown word is grave.
func gravity(effect string) int {
	switch effect {
	case "warn":
		return 2
	case "quarantine":
		return 1
	}
	return 0
}

func text(t *posturev1.LocalText) Text { return Text{De: t.GetDe(), En: t.GetEn()} }

func moment(t *timestamppb.Timestamp) time.Time {
	if !t.IsValid() {
		return time.Time{}
	}
	return t.AsTime().Truncate(time.Second)
}
