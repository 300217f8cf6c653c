package appraisal

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"google.golang.org/protobuf/types/known/timestamppb"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// rule is one compiled rule of a policy.
type rule struct {
	id, reference string
	title, remedy *posturev1.LocalText
	// reason is nil when the policy gives none.
	reason *reason
	// when are conditions that all have to hold for the rule to apply; none: it
	// always does.
	when              []*condition
	require           *condition
	onFail, onUnknown posturev1.Effect
	// grace is for a rule that fails, graceUnknown for one that cannot be told.
	grace, graceUnknown time.Duration
	mustApply           bool

	origin posturev1.Origin
	// attested: it reads what the TPM vouches for.
	attested bool
	// shown are the values that explain the rule, as places in the policy's
	// viewers.
	shown []int
}

// condition is one compiled expression with the readings it depends on.
type condition struct {
	program cel.Program
	// constant is the value when it is the same for all evidence, else nil.
	constant ref.Val
	needs    []need
}

// need is a reading that has to be there before a condition may be trusted.
type need struct {
	source source
	// handled: the expression looks at the reading itself, so that one that
	// does not apply is its own affair.
	handled bool
}

// judgement is what a rule says of one input.
type judgement struct {
	outcome        posturev1.Outcome
	reason         *posturev1.LocalText
	section        string
	contradictions []*posturev1.Contradiction
}

func unknown(reason *posturev1.LocalText, section string) judgement {
	return judgement{outcome: posturev1.Outcome_OUTCOME_UNKNOWN, reason: reason, section: section}
}

// judge says what the rule makes of the facts. Whatever is in doubt is UNKNOWN.
func (r *rule) judge(p *Policy, f *facts) judgement {
	if j, applies := r.applies(p, f); !applies {
		return j
	}
	holds, j, ok := r.evaluate(r.require, p, f)
	switch {
	case !ok:
		return j
	case holds:
		j.outcome = posturev1.Outcome_OUTCOME_PASS
		return j
	}
	j.outcome = posturev1.Outcome_OUTCOME_FAIL
	if j.reason = r.reason.say(f); j.reason == nil {
		j.reason = p.texts.conditionFails
	}
	return j
}

// applies says whether the rule applies. One condition that surely does not hold
// is enough that it does not, whatever cannot be told of the others.
func (r *rule) applies(p *Policy, f *facts) (j judgement, applies bool) {
	applies = true
	for _, c := range r.when {
		holds, doubt, ok := r.evaluate(c, p, f)
		switch {
		case ok && !holds:
			return judgement{outcome: posturev1.Outcome_OUTCOME_NOT_APPLICABLE}, false
		case !ok && applies:
			j, applies = doubt, false
		}
	}
	return j, applies
}

// evaluate runs a condition. When ok is false the judgement is final.
func (r *rule) evaluate(c *condition, p *Policy, f *facts) (holds bool, j judgement, ok bool) {
	if c.constant != nil {
		return c.constant == types.True, judgement{}, true
	}
	if j, ok := r.readable(c, f); !ok {
		return false, j, false
	}
	for _, n := range c.needs {
		j.contradictions = append(j.contradictions, f.states[n.source].contradictions...)
	}
	out, _, err := c.program.Eval(f)
	if err != nil {
		return false, judgement{reason: reasonOf(err), contradictions: j.contradictions}, false
	}
	value, isBool := out.(types.Bool)
	if !isBool {
		return false, judgement{reason: textBrokeOff(cannotTell("", "no yes or no")), contradictions: j.contradictions}, false
	}
	if len(j.contradictions) > 0 {
		// A contradicted section proves neither that a rule applies nor that it
		// holds. That it fails is kept.
		j.outcome, j.reason = p.contradicted, p.texts.contradicted
		if c == r.require && !bool(value) {
			j.outcome = posturev1.Outcome_OUTCOME_FAIL
		}
		return false, j, false
	}
	return bool(value), j, true
}

// readable says whether every reading that a condition needs is there.
func (r *rule) readable(c *condition, f *facts) (judgement, bool) {
	for _, n := range c.needs {
		if s := &f.states[n.source]; !s.observed && !s.notApplicable {
			return unknown(textNotRead(n.source.section(), s.reason), n.source.section()), false
		}
	}
	for _, n := range c.needs {
		switch s := &f.states[n.source]; {
		case !s.notApplicable || n.handled:
		case r.mustApply:
			return unknown(textDoesNotApply(n.source.section(), s.reason), n.source.section()), false
		default:
			return judgement{outcome: posturev1.Outcome_OUTCOME_NOT_APPLICABLE, section: n.source.section()}, false
		}
	}
	return judgement{}, true
}

// finding is the judgement with everything that explains it.
func (r *rule) finding(p *Policy, f *facts) *posturev1.Finding {
	j := r.judge(p, f)
	out := &posturev1.Finding{
		Rule: r.id, Outcome: j.outcome, Title: r.title, Remedy: r.remedy, Reason: j.reason, Reference: r.reference,
		Contradictions: j.contradictions, Origin: r.origin, FailedSection: j.section,
	}
	if j.outcome == posturev1.Outcome_OUTCOME_NOT_APPLICABLE {
		out.FailedSection = ""
	} else {
		for _, i := range r.shown {
			out.Values = append(out.Values, f.view(i)...)
		}
	}
	demanded, grace := r.consequence(out, f)
	f.weigh(out, demanded, grace)
	return out
}

// consequence is what the outcome leads to, and after how long. Facts that the
// TPM vouches for can be withheld by whoever rules the notebook: once they were
// seen to fail, not to be known is no better until they are seen to be good.
func (r *rule) consequence(out *posturev1.Finding, f *facts) (posturev1.Effect, time.Duration) {
	switch out.GetOutcome() {
	case posturev1.Outcome_OUTCOME_FAIL:
		if r.attested {
			out.FailedSince = cmp.Or(f.failedSince(r.id), timestamppb.New(f.Now))
		}
		return r.onFail, r.grace
	case posturev1.Outcome_OUTCOME_UNKNOWN:
		if out.FailedSince = f.failedSince(r.id); r.attested && out.FailedSince != nil {
			return min(r.onFail, r.onUnknown), min(r.grace, r.graceUnknown)
		}
	}
	return r.onUnknown, r.graceUnknown
}

// reason is a text with expressions in braces: "Seit {…} Tagen …".
type reason struct{ de, en []piece }

// piece is a literal text, or an expression whose value stands in its place.
type piece struct {
	literal string
	value   *condition
}

// say fills the text in, nil when a value in it cannot be told.
func (r *reason) say(f *facts) *posturev1.LocalText {
	if r == nil {
		return nil
	}
	de, okDe := fill(r.de, f)
	en, okEn := fill(r.en, f)
	if !okDe || !okEn {
		return nil
	}
	return local(de, en)
}

func fill(pieces []piece, f *facts) (string, bool) {
	var b strings.Builder
	for _, p := range pieces {
		if p.value == nil {
			b.WriteString(p.literal)
			continue
		}
		if slices.ContainsFunc(p.value.needs, func(n need) bool { return !f.states[n.source].observed }) {
			return "", false
		}
		out, _, err := p.value.program.Eval(f)
		if err != nil {
			return "", false
		}
		s, isString := out.ConvertToType(types.StringType).(types.String)
		if !isString {
			return "", false
		}
		b.WriteString(short(string(s)))
	}
	return b.String(), true
}
