package appraisal

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Explain renders an explanation as a person wants to read it: the verdict in
// words, since when, then rule by rule, the gravest first. lang is "de" or
// "en"; times are shown in zone (nil: UTC).
func Explain(x *fleetv1.Explanation, lang string, zone *time.Location) string {
	if zone == nil {
		zone = time.UTC
	}
	e := &explainer{de: lang == "de", zone: zone}
	e.head(x)
	if res := x.GetResult(); res != nil {
		e.circumstances(res)
		e.findings(res)
	}
	e.sessions(x.GetSessions())
	return e.b.String()
}

// explainer writes an explanation in one language.
type explainer struct {
	b    strings.Builder
	de   bool
	zone *time.Location
}

// word picks the language.
func (e *explainer) word(de, en string) string {
	if e.de {
		return de
	}
	return en
}

func (e *explainer) text(t *posturev1.LocalText) string { return e.word(t.GetDe(), t.GetEn()) }

func (e *explainer) line(format string, args ...any) { fmt.Fprintf(&e.b, format+"\n", args...) }

func (e *explainer) head(x *fleetv1.Explanation) {
	if a := x.GetDevice().GetAsset(); a != nil {
		var parts []string
		for _, p := range []string{a.GetAssetNumber(), a.GetVendor() + " " + a.GetModel(), a.GetUnit()} {
			if p = short(p); p != "" {
				parts = append(parts, p)
			}
		}
		e.line("%s", strings.Join(parts, " · "))
	} else if id := x.GetDevice().GetId(); id != "" {
		e.line("%s %s", e.word("Gerät", "Device"), id)
	} else {
		e.line("%s", e.word("Gerät, das nicht verzeichnet ist", "Device that is not on record"))
	}
	verdict := x.GetVerdict()
	if x.GetOutdated() {
		verdict = x.GetResult().GetVerdict()
	}
	e.line("%s: %s", e.word("Entscheidung", "Verdict"), e.verdict(verdict))
	if why := e.text(x.GetReason()); why != "" {
		e.line("  %s", why)
	}
	if code := x.GetResult().GetCode(); code != "" && !strings.Contains(e.text(x.GetReason()), code) {
		e.line("%s: %s", e.word("Vorgangsnummer", "Reference"), code)
	}
	if x.GetOutdated() {
		e.line("%s", e.word("Diese Entscheidung galt, als die Vorgangsnummer vergeben wurde. Inzwischen gibt es eine neuere.",
			"This verdict held when the reference was given. There is a newer one by now."))
	}
	if at := x.GetRefusedAt(); at != nil {
		e.line("%s: %s", e.word("Abgewiesen am", "Refused on"), e.time(at))
	}
	if x.GetGateway() != "" {
		e.line("%s: %s", e.word("An der Einwahlstelle", "At the gateway"), short(x.GetGateway()))
	}
	if sum := x.GetCertificateSha256(); len(sum) > 0 {
		e.line("%s: %s", e.word("Zertifikat (SHA-256)", "Certificate (SHA-256)"), hex.EncodeToString(sum))
	}
}

// circumstances says what was judged, when, and by what.
func (e *explainer) circumstances(res *posturev1.Result) {
	if at := res.GetCollectedAt(); at != nil {
		e.line(e.word("Nachweis vom %s, aktuell bis %s", "Evidence of %s, fresh until %s"), e.time(at), e.time(res.GetFreshUntil()))
	} else {
		e.line("%s", e.word("Es liegt noch kein Nachweis vor.", "There is no evidence yet."))
	}
	if at := res.GetQuotedAt(); at != nil {
		e.line(e.word("Vom Sicherheitschip (TPM) bestätigt am %s", "Vouched for by the security chip (TPM) on %s"), e.time(at))
	}
	e.line(e.word("Richtlinie: %s, Version %d", "Policy: %s, version %d"), res.GetPolicy(), res.GetPolicyVersion())
	if res.GetRollout() == posturev1.Rollout_ROLLOUT_ENFORCE {
		return
	}
	stage := e.word("beobachten", "observe")
	if res.GetRollout() == posturev1.Rollout_ROLLOUT_WARN {
		stage = e.word("warnen", "warn")
	}
	e.line(e.word("Stufe für diese Organisationseinheit: %s. Durchgesetzt hieße die Entscheidung: %s",
		"Rollout for this unit: %s. Enforced, the verdict would be: %s"), stage, e.verdict(res.GetEnforcedVerdict()))
}

// findings lists what did not pass, the gravest first, and then by name what
// did.
func (e *explainer) findings(res *posturev1.Result) {
	var bad []*posturev1.Finding
	var passed, attested, inapplicable []string
	for _, f := range res.GetFindings() {
		switch f.GetOutcome() {
		case posturev1.Outcome_OUTCOME_PASS:
			if f.GetOrigin() == posturev1.Origin_ORIGIN_ATTESTED {
				attested = append(attested, e.text(f.GetTitle()))
				continue
			}
			passed = append(passed, e.text(f.GetTitle()))
		case posturev1.Outcome_OUTCOME_NOT_APPLICABLE:
			inapplicable = append(inapplicable, e.text(f.GetTitle()))
		default:
			bad = append(bad, f)
		}
	}
	slices.SortStableFunc(bad, func(a, b *posturev1.Finding) int {
		return cmp.Or(cmp.Compare(a.GetEffect(), b.GetEffect()), cmp.Compare(a.GetEffectAfterGrace(), b.GetEffectAfterGrace()))
	})
	for _, f := range bad {
		e.finding(f, res.GetRollout())
	}
	e.names(e.word("Erfüllt, vom Sicherheitschip (TPM) bestätigt", "Passed, attested by the security chip (TPM)"), attested)
	e.names(e.word("Erfüllt", "Passed"), passed)
	e.names(e.word("Trifft nicht zu", "Does not apply"), inapplicable)
}

func (e *explainer) names(heading string, names []string) {
	if len(names) == 0 {
		return
	}
	e.line("\n%s:", heading)
	for _, n := range names {
		e.line("  %s", n)
	}
}

func (e *explainer) finding(f *posturev1.Finding, rollout posturev1.Rollout) {
	outcome := e.word("nicht erfüllt", "not met")
	if f.GetOutcome() == posturev1.Outcome_OUTCOME_UNKNOWN {
		outcome = e.word("nicht feststellbar", "unknown")
	}
	e.line(e.word("\n%s, weil %s: %s", "\n%s, because %s: %s"), e.effect(f.GetEffect()), outcome, e.text(f.GetTitle()))
	reference := ""
	if f.GetReference() != "" {
		reference = " · IT-Grundschutz " + f.GetReference()
	}
	e.line("  %s %s%s", e.word("Regel", "Rule"), f.GetRule(), reference)
	if who := e.origin(f.GetOrigin()); who != "" && len(f.GetValues()) > 0 {
		e.line("  %s: %s", e.word("Grundlage", "Based on"), who)
	}
	if why := e.text(f.GetReason()); why != "" {
		e.line("  %s", why)
	}
	if since := f.GetFailingSince(); since != nil {
		e.line(e.word("  Nicht erfüllt seit %s", "  Failing since %s"), e.time(since))
	}
	if until := f.GetGraceUntil(); until != nil {
		if f.GetEffect() > f.GetEffectAfterGrace() && rollout == posturev1.Rollout_ROLLOUT_ENFORCE {
			e.line(e.word("  Übergangsfrist bis %s, danach: %s", "  Grace period until %s, then: %s"), e.time(until), e.effect(f.GetEffectAfterGrace()))
		} else {
			e.line(e.word("  Übergangsfrist bis %s", "  Grace period until %s"), e.time(until))
		}
	}
	for _, c := range f.GetContradictions() {
		e.line(e.word("  Widerspruch bei %s: %s sagt %s, %s sagt %s", "  Contradiction about %s: %s says %s, %s says %s"),
			short(c.GetSubject()), short(c.GetSourceA()), short(c.GetSaysA()), short(c.GetSourceB()), short(c.GetSaysB()))
	}
	for _, v := range f.GetValues() {
		e.line("    %s = %s", v.GetPath(), v.GetValue())
	}
	if remedy := e.text(f.GetRemedy()); remedy != "" {
		e.line("  %s: %s", e.word("So beheben Sie es", "What to do"), remedy)
	}
}

// origin says who vouches for what a rule read.
func (e *explainer) origin(o posturev1.Origin) string {
	switch o {
	case posturev1.Origin_ORIGIN_ATTESTED:
		return e.word("Bestätigung durch den Sicherheitschip (TPM)", "attestation by the security chip (TPM)")
	case posturev1.Origin_ORIGIN_INVENTORY:
		return e.word("Geräteverzeichnis", "the inventory")
	case posturev1.Origin_ORIGIN_SELF_REPORTED:
		return e.word("eigene Angaben des Geräts", "what the device says of itself")
	}
	return ""
}

func (e *explainer) sessions(list []*fleetv1.Session) {
	for i, s := range list {
		if i == 0 {
			e.line("\n%s:", e.word("Bestehende Einwahlen", "Live sessions"))
		}
		state := e.verdict(s.GetVerdict())
		if s.GetCutPending() {
			state += e.word(", Trennung noch nicht bestätigt", ", cut not confirmed yet")
		}
		e.line(e.word("  %s seit %s: %s", "  %s since %s: %s"), short(s.GetGateway()), e.time(s.GetSince()), state)
	}
}

func (e *explainer) verdict(v posturev1.Verdict) string {
	switch v {
	case posturev1.Verdict_VERDICT_ADMIT:
		return e.word("zugelassen", "admitted")
	case posturev1.Verdict_VERDICT_QUARANTINE:
		return e.word("Quarantäne (erreichbar sind nur die Server für Updates und Nachweise)", "quarantine (only the servers for updates and evidence are reachable)")
	}
	return e.word("abgelehnt", "denied")
}

func (e *explainer) effect(f posturev1.Effect) string {
	switch f {
	case posturev1.Effect_EFFECT_NONE:
		return e.word("Beobachtet", "Observed")
	case posturev1.Effect_EFFECT_WARN:
		return e.word("Hinweis", "Warning")
	case posturev1.Effect_EFFECT_QUARANTINE:
		return e.word("Quarantäne", "Quarantine")
	}
	return e.word("Kein Zugang", "No access")
}

// time is a moment as people write it.
func (e *explainer) time(t *timestamppb.Timestamp) string {
	if t == nil {
		return e.word("unbekannt", "unknown")
	}
	if e.de {
		return t.AsTime().In(e.zone).Format("02.01.2006, 15:04 Uhr")
	}
	return t.AsTime().In(e.zone).Format("2 January 2006, 15:04 MST")
}
