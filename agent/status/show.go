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
		p.heading(w.noneTitle)
		p.line(w.none)
	}
	p.contact(s)
	return p.String()
}

type page struct {
	strings.Builder
	words *Words
	now   time.Time
}

func (p *page) heading(title string) {
	p.line(title)
	p.line(strings.Repeat("─", len([]rune(title))))
}

func (p *page) line(s string) { p.WriteString(s + "\n") }

func (p *page) linef(format string, args ...any) { p.line(fmt.Sprintf(format, args...)) }

// connection says first what only a person can mend: no judgement follows from
// it, and an old one would mislead.
func (p *page) connection(s Summary) {
	blocks := map[Connection]block{
		Refused: p.words.refused, Expired: p.words.expired,
		NotEnrolled: p.words.notEnrolled, Pending: p.words.pending,
	}
	b, ok := blocks[s.Connection]
	if !ok {
		return
	}
	p.heading(b.title)
	p.line(b.text)
	if s.Fingerprint != "" {
		p.linef(p.words.fingerprint, s.Fingerprint)
	}
	p.line("")
}

func (p *page) judgement(j *Judgement) {
	ended := !j.ValidUntil.IsZero() && !p.now.Before(j.ValidUntil)
	switch {
	case ended && j.Verdict != "deny":
		p.heading(p.words.ended.title)
		p.linef(p.words.ended.text, p.words.time(j.ValidUntil.In(p.now.Location())))
	case j.Verdict == "admit":
		p.heading(p.words.admit.title)
		p.line(p.words.admit.text)
	case j.Verdict == "quarantine":
		p.heading(p.words.quarantine.title)
		p.line(p.words.quarantine.text)
	default:
		p.heading(p.words.deny.title)
		if len(j.Findings) == 0 {
			p.line(p.words.deny.text)
		}
	}
	for _, f := range j.Findings {
		p.finding(f)
	}
	if j.Code != "" {
		p.line("")
		p.linef(p.words.code, j.Code)
	}
}

// finding says what is wrong and what to do. A rule's title says how it should
// be: it stands in only where there is no reason.
func (p *page) finding(f Finding) {
	p.line("")
	what := p.words.pick(f.Reason)
	if what == "" {
		what = fmt.Sprintf(p.words.unmet, p.words.pick(f.Title))
	}
	if f.Effect == "warn" {
		what = p.words.warning + what
	}
	p.line(what)
	if !f.FailingSince.IsZero() {
		p.linef("  "+p.words.since, p.words.day(f.FailingSince.In(p.now.Location())))
	}
	if f.GraceUntil.After(p.now) {
		p.linef("  "+p.words.grace, p.words.time(f.GraceUntil.In(p.now.Location())))
	}
	if remedy := p.words.pick(f.Remedy); remedy != "" {
		p.linef("  "+p.words.remedy, remedy)
	}
}

// contact says how old all this is.
func (p *page) contact(s Summary) {
	p.line("")
	if s.LastContact.IsZero() {
		if s.Connection == Unreachable {
			p.line(p.words.neverReached)
		}
		return
	}
	p.linef(p.words.lastContact, p.words.time(s.LastContact.In(p.now.Location())))
	switch {
	case s.Connection == Unreachable:
		p.line(p.words.unreachable)
	case s.Connection == Online && p.now.Sub(s.LastContact) > silentAfter:
		p.line(p.words.silent)
	}
}
