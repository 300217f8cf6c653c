package session

import (
	"time"

	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Answer is a collector's answer to a Question.
type Answer struct {
	Lease *gatev1.Lease
	// Message is what the user may read; nil when there is nothing to say.
	Message *posturev1.LocalText
}

// Answered takes a collector's answer to the question about a session. Err
// says that no collector answered.
func (b *Book) Answered(key Key, id string, answer Answer, err error, now time.Time) Todo {
	var todo Todo
	e := b.sessions[key]
	if e == nil || e.id != id || e.state == cutting {
		return todo // it is over
	}
	if err != nil {
		b.unanswered(&todo, e, now)
		return todo
	}
	l := answer.Lease
	switch {
	case b.fits(e, l) && b.newer(e, l):
		before := e.verdict
		b.take(e, l, now)
		text := refusalText(answer.Message.GetDe(), answer.Message.GetEn(), e.code)
		b.settle(&todo, e, before, text, now)
	case b.fits(e, l) && e.state == up: // a renewal has overtaken the answer
		b.allow(&todo, e)
	default:
		todo.Reports = append(todo.Reports, alarmEvent(alarmRollback, "an answer for another session, or older than what is held", e.id, now))
		b.unanswered(&todo, e, now)
	}
	return todo
}

// settle does what an entry's new verdict asks for. Before is the one it had.
func (b *Book) settle(todo *Todo, e *entry, before posturev1.Verdict, text string, now time.Time) {
	if e.verdict == deny {
		b.refuse(todo, e, text, now)
		return
	}
	if e.state == up {
		b.grant(todo, e)
		if e.verdict != before {
			todo.Save = true
		}
		if e.verdict < before {
			todo.Forget = append(todo.Forget, e.addresses...)
			todo.Flips = append(todo.Flips, Flip{ID: e.id, Cause: e.at, Since: now})
		}
	}
	b.allow(todo, e)
}

// unanswered decides without a collector: what is up goes on as long as its
// lease; new sessions get at most quarantine, if that is configured and the
// last snapshot knows them.
func (b *Book) unanswered(todo *Todo, e *entry, now time.Time) {
	if e.state == up {
		b.allow(todo, e)
		return
	}
	s, _ := b.standingOf(e.fingerprint)
	if !b.rules.QuarantineKnown || b.rules.QuarantineFor <= 0 || !b.known || s.verdict == deny {
		b.refuse(todo, e, unreachableText, now)
		return
	}
	e.verdict, e.code, e.at, e.until = quarantine, s.code, s.at, now
	b.allow(todo, e)
}

// allow lets the client in that waits, if one does.
func (b *Book) allow(todo *Todo, e *entry) {
	if e.state == asking {
		e.state = allowed
	}
	if e.attempt != nil {
		todo.Allow = append(todo.Allow, *e.attempt)
		e.attempt = nil
	}
}

// refuse sends the client away that waits, and cuts a session that is up.
func (b *Book) refuse(todo *Todo, e *entry, text string, now time.Time) {
	if e.attempt != nil {
		todo.Deny = append(todo.Deny, Denial{*e.attempt, text})
		e.attempt = nil
	}
	if e.state == up {
		b.cut(todo, e, text, e.at, now)
		return
	}
	delete(b.sessions, e.Key)
}

// fits says whether a lease is for this gateway, this session and this
// certificate.
func (b *Book) fits(e *entry, l *gatev1.Lease) bool {
	return l.GetGateway() == b.rules.Gateway && l.GetSessionId() == e.id &&
		string(l.GetCertificateSha256()) == string(e.fingerprint[:])
}

// newer says whether a lease may replace what the entry holds.
func (b *Book) newer(e *entry, l *gatev1.Lease) bool {
	return lease.At(l).After(e.at) && l.GetEpoch() >= b.position.Epoch
}

// take makes a lease the entry's own. A standing that is newer than the lease
// may lower it.
func (b *Book) take(e *entry, l *gatev1.Lease, now time.Time) {
	e.verdict, e.code, e.at = understood(l.GetVerdict()), l.GetCode(), lease.At(l)
	e.until = now.Add(max(0, l.GetTtl().AsDuration()))
	if s, ok := b.standingOf(e.fingerprint); ok && s.at.After(e.at) && s.verdict < e.verdict {
		e.verdict, e.code, e.at = s.verdict, s.code, s.at
	}
	if e.verdict == admitVerdict && !e.until.After(now) {
		e.verdict = quarantine // a lease that holds not at all
	}
}

// Renewed takes leases that a collector renewed; received is when they came.
func (b *Book) Renewed(leases []*gatev1.Lease, received time.Time) Todo {
	var todo Todo
	byID := map[string]*entry{}
	for _, e := range b.sessions {
		byID[e.id] = e
	}
	for _, l := range leases {
		e := byID[l.GetSessionId()]
		if e == nil || e.state == asking || e.state == cutting || e.adopted || !b.fits(e, l) || !b.newer(e, l) {
			continue
		}
		before := e.verdict
		b.take(e, l, received)
		if e.state == up {
			b.settle(&todo, e, before, refusalText("", "", e.code), received)
		}
	}
	return todo
}

// Snapshot replaces everything that is known of identities. An older one than
// what is held is refused.
func (b *Book) Snapshot(at lease.Position, list []*gatev1.Standing, received time.Time) Todo {
	var todo Todo
	if b.known && b.position.After(at) {
		todo.Reports = append(todo.Reports, alarmEvent(alarmRollback, "a snapshot that is older than what is held", "", received))
		return todo
	}
	b.standings, b.position, b.known = map[fingerprint]standing{}, at, true
	for _, s := range list {
		b.put(s, at)
	}
	for _, e := range b.ordered() {
		b.lower(&todo, e, received)
	}
	return todo
}

// Changed takes identities whose standing has changed.
func (b *Book) Changed(at lease.Position, list []*gatev1.Standing, received time.Time) Todo {
	var todo Todo
	if !b.known || !at.After(b.position) {
		return todo // without a snapshot a change says nothing
	}
	b.position = at
	concerned := map[fingerprint]bool{}
	for _, s := range list {
		if f, ok := b.put(s, at); ok {
			concerned[f] = true
		}
	}
	for _, e := range b.ordered() {
		if concerned[e.fingerprint] {
			b.lower(&todo, e, received)
		}
	}
	return todo
}

// Advanced says that everything up to a position has been told.
func (b *Book) Advanced(at lease.Position) {
	if b.known && at.After(b.position) {
		b.position = at
	}
}

func (b *Book) put(s *gatev1.Standing, at lease.Position) (fingerprint, bool) {
	var f fingerprint
	if len(s.GetCertificateSha256()) != len(f) {
		return f, false
	}
	f = fingerprint(s.GetCertificateSha256())
	v := understood(s.GetVerdict())
	if s.GetRemoved() {
		v = deny
	}
	b.standings[f] = standing{verdict: v, code: s.GetCode(), at: at}
	return f, true
}

// lower brings an entry down to its identity's standing. What rises waits for
// its new lease.
func (b *Book) lower(todo *Todo, e *entry, received time.Time) {
	s, ok := b.standingOf(e.fingerprint)
	if !ok || e.state == asking || e.state == cutting || !s.at.After(e.at) || s.verdict >= e.verdict {
		return
	}
	before := e.verdict
	e.verdict, e.code, e.at = s.verdict, s.code, s.at
	if e.state == up { // else it is decided when it comes up
		b.settle(todo, e, before, refusalText("", "", e.code), received)
	}
}

// understood maps verdicts that this build does not know to the zero one.
func understood(v posturev1.Verdict) posturev1.Verdict {
	if v == quarantine || v == admitVerdict {
		return v
	}
	return deny
}
