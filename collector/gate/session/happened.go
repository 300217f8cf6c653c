package session

import (
	"crypto/sha256"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

// Kinds of alarms.
const (
	alarmUnadmitted = "unadmitted_session"  // a session that nobody admitted
	alarmIdentity   = "identity_changed"    // another certificate inside a session
	alarmAddress    = "no_tunnel_address"   // a session that the packet filter can't guard
	alarmSurvives   = "session_survives"    // a session that could not be ended
	alarmFilter     = "packet_filter_fails" // the packet filter does not take changes
	alarmRollback   = "rollback"            // something older than what is held
)

// handshakeFor is longer than any VPN server waits for a client to finish its
// handshake.
const handshakeFor = 5 * time.Minute

// Happened takes an event of a VPN server.
func (b *Book) Happened(e Event, now time.Time) Todo {
	var todo Todo
	switch e := e.(type) {
	case Tried:
		b.tried(&todo, e, now)
	case Established:
		b.established(&todo, e, now)
	case Ended:
		b.ended(&todo, e, now)
	case Attached:
		b.attached(&todo, e, now)
	case Detached:
		b.detached(e.Server)
	}
	return todo
}

func (b *Book) tried(todo *Todo, t Tried, now time.Time) {
	e := b.sessions[t.Key]
	if t.Again {
		b.renegotiates(todo, e, t, now)
		return
	}
	if e != nil { // the server counts anew: its old sessions are over
		b.drop(todo, e, "replaced", now)
	}
	if len(t.Fingerprint) != sha256.Size {
		todo.Deny = append(todo.Deny, Denial{t.Attempt, noCertificateText})
		return
	}
	e = &entry{
		Key: t.Key, id: b.rules.NewID(t.Key), fingerprint: fingerprint(t.Fingerprint),
		name: t.Name, outer: t.Outer, protocol: t.Protocol, attempt: &t.Attempt, noted: now,
	}
	b.sessions[t.Key] = e
	todo.Ask = append(todo.Ask, Question{Session: t.Key, Facts: e.facts()})
}

// renegotiates handles new keys inside a session: the same certificate, asked
// about again.
func (b *Book) renegotiates(todo *Todo, e *entry, t Tried, now time.Time) {
	switch {
	case e == nil:
		todo.Deny = append(todo.Deny, Denial{t.Attempt, notAdmittedText})
		b.stranger(todo, Live{Key: t.Key, Name: t.Name, Outer: t.Outer}, now)
	case e.state == cutting:
		todo.Deny = append(todo.Deny, Denial{t.Attempt, notAdmittedText})
	case !slices.Equal(e.fingerprint[:], t.Fingerprint):
		todo.Deny = append(todo.Deny, Denial{t.Attempt, notAdmittedText})
		todo.Reports = append(todo.Reports, alarmEvent(alarmIdentity, "another certificate at renegotiation", e.id, now))
		b.cut(todo, e, notAdmittedText, lease.Position{}, now)
	default:
		e.attempt = &t.Attempt
		todo.Ask = append(todo.Ask, Question{Session: t.Key, Facts: e.facts()})
	}
}

func (b *Book) established(todo *Todo, s Established, now time.Time) {
	e := b.sessions[s.Key]
	if e == nil || e.state != allowed {
		b.stranger(todo, Live{Key: s.Key, Name: s.Name, Outer: s.Outer, Addresses: s.Addresses, Since: s.Since}, now)
		return
	}
	e.addresses, e.since, e.process, e.noted = s.Addresses, s.Since, s.Process, now
	switch {
	case !slices.Equal(e.fingerprint[:], s.Fingerprint):
		todo.Reports = append(todo.Reports, alarmEvent(alarmIdentity, "another certificate than the one admitted", e.id, now))
		b.cut(todo, e, notAdmittedText, lease.Position{}, now)
		return
	case len(s.Addresses) == 0:
		todo.Reports = append(todo.Reports, alarmEvent(alarmAddress, "a session without a tunnel address", e.id, now))
		b.cut(todo, e, notAdmittedText, lease.Position{}, now)
		return
	case e.verdict == deny: // a standing came between answer and session
		b.cut(todo, e, refusalText("", "", e.code), e.at, now)
		return
	}
	// Who had one of these addresses before is over, even if we were not told.
	for _, other := range b.ordered() {
		if other != e && other.state != asking && shareAddress(other, e) {
			b.drop(todo, other, "address given to another session", now)
		}
	}
	e.state = up
	b.grant(todo, e)
	todo.Save = true
	todo.Reports = append(todo.Reports, e.upEvent(now))
}

func shareAddress(a, b *entry) bool {
	return slices.ContainsFunc(a.addresses, func(x netip.Addr) bool { return slices.Contains(b.addresses, x) })
}

func (b *Book) ended(todo *Todo, s Ended, now time.Time) {
	delete(b.suspects, s.Key)
	e := b.sessions[s.Key]
	if e == nil || e.state == cutting { // the end of a cut is verified, not believed
		return
	}
	b.drop(todo, e, "disconnected", now)
}

// stranger cuts a session that nobody admitted, and raises an alarm.
func (b *Book) stranger(todo *Todo, l Live, now time.Time) {
	e := b.sessions[l.Key]
	if e == nil {
		e = &entry{Key: l.Key, id: b.rules.NewID(l.Key), name: l.Name, outer: l.Outer, since: l.Since}
		b.sessions[l.Key] = e
	}
	for _, a := range l.Addresses { // beside those that it had
		if !slices.Contains(e.addresses, a) {
			e.addresses = append(e.addresses, a)
		}
	}
	todo.Reports = append(todo.Reports, alarmEvent(alarmUnadmitted, "a session is up that was never admitted", e.id, now))
	b.cut(todo, e, notAdmittedText, lease.Position{}, now)
}

// attached matches what is in the book, from before or from the journal, with
// what the server says is up. Nothing else survives.
func (b *Book) attached(todo *Todo, a Attached, now time.Time) {
	live := map[Key]Live{}
	for _, l := range a.Live {
		live[l.Key] = l
	}
	for _, e := range b.ordered() {
		l, listed := live[e.Key]
		if e.Server != a.Server {
			continue
		}
		switch {
		case listed && e.state == cutting && e.is(l, a.Process):
			e.adopted = false
			b.cut(todo, e, notAdmittedText, lease.Position{}, now)
		case listed && e.state == up && e.is(l, a.Process):
			b.moved(todo, e, l, now)
			if e.adopted {
				e.adopted, e.until = false, now.Add(adoptFor)
				todo.Ask = append(todo.Ask, Question{Session: e.Key, Facts: e.facts()})
				todo.Reports = append(todo.Reports, e.upEvent(now))
			}
		default:
			b.drop(todo, e, "gone while the gate was away", now)
			continue
		}
		delete(live, e.Key)
	}
	for _, l := range a.Live {
		if _, left := live[l.Key]; left {
			b.stranger(todo, l, now)
		}
	}
}

// is says whether a session that a server lists is this one. Numbers begin
// again when the server does; begin, name and addresses do not repeat with
// them.
func (e *entry) is(l Live, process int) bool {
	return e.process == process && e.since.Equal(l.Since) && e.name == l.Name && slices.Equal(e.addresses, l.Addresses)
}

// detached forgets attempts: their handshakes fail without us.
func (b *Book) detached(server string) {
	for key, e := range b.sessions {
		if key.Server == server && (e.state == asking || e.state == allowed) {
			delete(b.sessions, key)
		}
	}
}

// Listed compares the book with what a server listed when asked at the given
// time. Who is listed twice and not known is cut; who is no longer listed is
// over.
func (b *Book) Listed(server string, asked time.Time, list []Live, now time.Time) Todo {
	var todo Todo
	live := map[Key]Live{}
	suspects := map[Key]time.Time{}
	for _, l := range list {
		live[l.Key] = l
		switch e := b.sessions[l.Key]; {
		case e != nil && e.state == up:
			b.moved(&todo, e, l, now)
		case e != nil && e.survives:
			b.cut(&todo, e, notAdmittedText, lease.Position{}, now)
		case e == nil:
			if before, twice := b.suspects[l.Key]; twice && before.Equal(l.Since) {
				b.stranger(&todo, l, now)
			} else {
				suspects[l.Key] = l.Since
			}
		}
	}
	for key, since := range b.suspects {
		if key.Server != server {
			suspects[key] = since
		}
	}
	b.suspects = suspects
	for _, e := range b.ordered() {
		if _, listed := live[e.Key]; listed || e.Server != server {
			continue
		}
		switch e.state {
		case up:
			if e.noted.Before(asked) {
				b.drop(&todo, e, "no longer listed", now)
			}
		case asking, allowed: // a client that gave up during its handshake
			if now.Sub(e.noted) > handshakeFor {
				delete(b.sessions, e.Key)
			}
		}
	}
	return todo
}

// moved takes note of a new outer address.
func (b *Book) moved(todo *Todo, e *entry, l Live, now time.Time) {
	if l.Outer == "" || e.outer == l.Outer {
		return
	}
	e.outer = l.Outer
	todo.Save = true
	todo.Reports = append(todo.Reports, &gatev1.SessionEvent{At: timestamppb.New(now), Event: &gatev1.SessionEvent_Roamed{
		Roamed: &gatev1.SessionRoamed{SessionId: e.id, OuterAddress: e.outer, TunnelAddresses: e.facts().TunnelAddresses},
	}})
}

// Gone takes the verified end of a session that was cut, or (survives) that it
// could not be ended.
func (b *Book) Gone(key Key, id string, survives error, now time.Time) Todo {
	var todo Todo
	e := b.sessions[key]
	if e == nil || e.id != id {
		return todo
	}
	if survives != nil {
		e.survives = true
		todo.Reports = append(todo.Reports, alarmEvent(alarmSurvives, survives.Error(), id, now))
		return todo // still cut; the next listing tries again
	}
	b.drop(&todo, e, "cut", now)
	return todo
}
