package status

import (
	"fmt"
	"strings"
	"time"
)

// silentAfter is how long after the last contact an "online" is not believed
// any more: the service reports several times an hour.
const silentAfter = 2 * time.Hour

// Show returns the summary for people, in the language of w, as it is at now,
// in now's time zone.
func Show(s Summary, w *Words, now time.Time) string {
	p := &page{words: w, now: now}
	p.connection(s)
	switch {
	case s.Judgement != nil:
		p.judgement(s.Judgement)
	case s.Connection == Online || s.Connection == Unreachable:
		p.heading(w.noneTitle, w.none)
	}
	p.contact(s)
	return strings.Join(p.paragraphs, "\n")
}

type page struct {
	words      *Words
	now        time.Time
	paragraphs []string
}

// paragraph adds the lines that are not empty.
func (p *page) paragraph(lines ...string) {
	var b strings.Builder
	for _, l := range lines {
		if l != "" {
			b.WriteString(l + "\n")
		}
	}
	if b.Len() > 0 {
		p.paragraphs = append(p.paragraphs, b.String())
	}
}

func (p *page) heading(title string, lines ...string) {
	rule := strings.Repeat("─", len([]rune(title)))
	p.paragraph(append([]string{title, rule}, lines...)...)
}

func (p *page) time(t time.Time) string { return p.words.time(t.In(p.now.Location())) }

// connection says first what only a person can mend: no judgement follows from
// it, and an old one would mislead.
func (p *page) connection(s Summary) {
	blocks := map[Connection]block{
		Refused: p.words.refused, Expired: p.words.expired, Untrusted: p.words.untrusted,
		NotEnrolled: p.words.notEnrolled, Pending: p.words.pending,
		NotConfigured: p.words.notConfigured, Broken: p.words.broken,
		NoTPM: p.words.noTPM, OtherProtection: p.words.otherProtection,
	}
	b, ok := blocks[s.Connection]
	if !ok {
		return
	}
	key, copied, foreign := "", "", ""
	if s.Fingerprint != "" {
		key = fmt.Sprintf(p.words.fingerprint, s.Fingerprint)
	}
	if s.Copied {
		copied = p.words.copied
	}
	if s.ForeignKeys {
		foreign = p.words.foreignKeys
	}
	p.heading(b.title, b.text, copied, foreign, p.obstacle(s.Obstacle), key)
}

func (p *page) obstacle(o Obstacle) string {
	switch o {
	case NoToken:
		return p.words.noToken
	case TokenRefused:
		return p.words.tokenRefused
	case NotReached:
		return p.words.notReached
	case WrongAuthority:
		return p.words.wrongAuthority
	case NotExpected:
		return p.words.notExpected
	case ForeignKeys:
		return p.words.foreignKeys
	}
	return ""
}

// judgement says what the verdict is, then what refuses access, then what else
// should be done.
func (p *page) judgement(j *Judgement) {
	ended := !j.ValidUntil.IsZero() && !p.now.Before(j.ValidUntil)
	switch {
	case ended && (j.Verdict == "admit" || j.Verdict == "quarantine"):
		p.heading(p.words.ended.title, fmt.Sprintf(p.words.ended.text, p.time(j.ValidUntil)))
	case j.Verdict == "admit":
		p.heading(p.words.admit.title, p.words.admit.text)
	case j.Verdict == "quarantine":
		p.heading(p.words.quarantine.title, p.words.quarantine.text)
	case len(j.Findings) == 0:
		p.heading(p.words.deny.title, p.words.deny.text)
	default:
		p.heading(p.words.deny.title)
	}
	for _, f := range j.Findings {
		if f.Effect != "warn" {
			p.finding(f, "")
		}
	}
	if j.Code != "" {
		p.paragraph(fmt.Sprintf(p.words.code, j.Code))
	}
	for _, f := range j.Findings {
		if f.Effect == "warn" {
			p.finding(f, p.words.warning)
		}
	}
}

// finding says what is wrong and what to do. A rule's title says how it should
// be: it is named where the reason alone does not tell what it is about.
func (p *page) finding(f Finding, prefix string) {
	title, reason := p.words.pick(f.Title), p.words.pick(f.Reason)
	lines := []string{prefix + reason}
	switch {
	case f.Unknown:
		lines = []string{prefix + fmt.Sprintf(p.words.unknown, title)}
		if reason != "" {
			lines = append(lines, "  "+reason)
		}
	case reason == "":
		lines = []string{prefix + fmt.Sprintf(p.words.unmet, title)}
	}
	if !f.FailingSince.IsZero() {
		lines = append(lines, "  "+fmt.Sprintf(p.words.since, p.words.day(f.FailingSince.In(p.now.Location()))))
	}
	if f.GraceUntil.After(p.now) {
		lines = append(lines, "  "+fmt.Sprintf(p.words.grace, p.time(f.GraceUntil)))
	}
	if remedy := p.words.pick(f.Remedy); remedy != "" {
		lines = append(lines, "  "+fmt.Sprintf(p.words.remedy, remedy))
	}
	p.paragraph(lines...)
}

// contact says how old all this is.
func (p *page) contact(s Summary) {
	switch {
	case s.LastContact.IsZero() && s.Connection == Unreachable:
		p.paragraph(p.words.neverReached)
	case s.LastContact.IsZero():
	case s.Connection == Unreachable:
		p.paragraph(fmt.Sprintf(p.words.lastContact, p.time(s.LastContact)), p.words.unreachable)
	case s.Connection == Online && p.now.Sub(s.LastContact) > silentAfter:
		p.paragraph(fmt.Sprintf(p.words.lastContact, p.time(s.LastContact)), p.words.silent)
	default:
		p.paragraph(fmt.Sprintf(p.words.lastContact, p.time(s.LastContact)))
	}
}
