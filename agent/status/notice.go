package status

import (
	"fmt"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// maxNoticeFindings is how many causes a notice names; `status` shows all.
const maxNoticeFindings = 3

// Refusal returns title and text of the notice for a result that refuses
// access, in the language of w. ok is false for a result that needs none:
// warnings and observations are no refusal.
func Refusal(r *posturev1.Result, w *Words) (title, text string, ok bool) {
	j := judgement(r)
	if j.Code == "" || j.Verdict == "admit" {
		return "", "", false
	}
	b := w.deny
	if j.Verdict == "quarantine" {
		b = w.quarantine
	}
	var lines []string
	more := 0
	for _, f := range j.Findings {
		switch {
		case f.Effect == "warn":
		case len(lines) == maxNoticeFindings:
			more++
		default:
			lines = append(lines, w.cause(f))
		}
	}
	if len(lines) == 0 {
		lines = []string{b.text}
	}
	if more > 0 {
		lines = append(lines, fmt.Sprintf(w.more, more))
	}
	lines = append(lines, fmt.Sprintf(w.code, j.Code))
	return b.title, strings.Join(lines, "\n\n"), true
}

// cause is one finding: what is wrong, and what to do.
func (w *Words) cause(f Finding) string {
	title, reason := w.pick(f.Title), w.pick(f.Reason)
	line := reason
	switch {
	case f.Unknown:
		line = fmt.Sprintf(w.unknown, title)
	case reason == "":
		line = fmt.Sprintf(w.unmet, title)
	}
	if remedy := w.pick(f.Remedy); remedy != "" {
		line += "\n" + fmt.Sprintf(w.remedy, remedy)
	}
	return line
}
