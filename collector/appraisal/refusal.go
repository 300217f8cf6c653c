package appraisal

import (
	"strings"
	"unicode"
	"unicode/utf8"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// maxRefusalBytes is what every gateway can show its user: OpenVPN passes on
// 256 bytes with its own words around ours.
const maxRefusalBytes = 200

// RefusalText is what is shown where there is room for one line: why, and the
// code. Each language has at most 200 bytes and no line breaks, quotation marks
// or backslashes. It is nil for a result that admits.
func RefusalText(res *posturev1.Result) *posturev1.LocalText {
	if res.GetVerdict() == posturev1.Verdict_VERDICT_ADMIT {
		return nil
	}
	de, en := "Kein Zugang: ", "No access: "
	if res.GetVerdict() == posturev1.Verdict_VERDICT_QUARANTINE {
		de, en = "Quarantäne: ", "Quarantine: "
	}
	why := local("Die Richtlinie ist nicht erfüllt.", "The policy is not met.")
	if cause := gravest(res); cause.GetReason() != nil {
		why = cause.GetReason()
	}
	return local(
		oneLine(de+why.GetDe(), " Vorgangsnummer: "+res.GetCode()),
		oneLine(en+why.GetEn(), " Reference: "+res.GetCode()))
}

// gravest is the finding that keeps the device out: the first of the worst
// effect.
func gravest(res *posturev1.Result) *posturev1.Finding {
	var worst *posturev1.Finding
	for _, f := range res.GetFindings() {
		if verdictOf(f.GetEffect()) != posturev1.Verdict_VERDICT_ADMIT &&
			(worst == nil || f.GetEffect() < worst.GetEffect()) {
			worst = f
		}
	}
	return worst
}

// oneLine shortens text so that it fits with what follows.
func oneLine(text, after string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '"' || r == '\\' || r == '\'':
			continue
		case r == '„' || r == '“' || r == '”':
			continue
		case !unicode.IsPrint(r):
			r = ' '
		}
		b.WriteRune(r)
	}
	s := strings.Join(strings.Fields(b.String()), " ")
	if room := maxRefusalBytes - len(after); len(s) > room {
		s = s[:room-len("…")]
		for !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
		s += "…"
	}
	return s + after
}
