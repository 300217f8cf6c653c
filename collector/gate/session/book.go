package session

import (
	"cmp"
	"crypto/sha256"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	deny         = posturev1.Verdict_VERDICT_DENY
	quarantine   = posturev1.Verdict_VERDICT_QUARANTINE
	admitVerdict = posturev1.Verdict_VERDICT_ADMIT
)

// Rules are what is configured. Zero values are the strictest.
type Rules struct {
	// Gateway is our name: leases for others are refused.
	Gateway string
	// QuarantineFor is how long a session may stay in quarantine after its
	// lease has ended without a new one. Zero: it is cut at once.
	QuarantineFor time.Duration
	// QuarantineKnown lets new sessions of devices that were not denied in the
	// last signed snapshot into quarantine while no collector answers.
	QuarantineKnown bool
	// NewID names a new session, unique for ever.
	NewID func(Key) string
}

// Book knows every session and every identity, and decides what is to be done.
// It does nothing itself: each method returns what has to be done now. It is
// not safe for concurrent use.
type Book struct {
	rules    Rules
	sessions map[Key]*entry
	// standings holds where identities stand; known says that it is complete.
	standings map[fingerprint]standing
	known     bool
	// position is that of the newest standings.
	position lease.Position
	// suspects were listed by a server but are not in the book, with the time
	// of their beginning. Whoever is listed twice is cut.
	suspects map[Key]time.Time
}

type fingerprint [sha256.Size]byte

type standing struct {
	verdict posturev1.Verdict
	code    string
	at      lease.Position
}

// state of an entry.
type state uint8

const (
	asking  state = iota // waits for the collector's answer
	allowed              // was let in, is not up yet
	up
	cutting // no packets pass; the end is not verified yet
)

// entry is one session.
type entry struct {
	Key
	id          string
	fingerprint fingerprint
	name, outer string
	protocol    gatev1.Protocol
	state       state
	// attempt waits for an answer; nil when none does.
	attempt   *Attempt
	addresses []netip.Addr
	since     time.Time
	process   int
	// noted is when it was tried, then when it came up.
	noted time.Time
	// survives: it was cut and could not be ended.
	survives bool

	verdict posturev1.Verdict
	code    string
	at      lease.Position
	until   time.Time
	// adopted: taken over from the journal, not yet matched with what its
	// server lists. The packet filter still holds what the last gate put there.
	adopted bool
}

// Todo is what has to be done, in this order.
type Todo struct {
	// Grants change what addresses may do: packets first.
	Grants []Grant
	// Forget ends open connections of addresses that have lost something.
	Forget []netip.Addr
	// Save says that the journal has to be written.
	Save  bool
	Allow []Attempt
	Deny  []Denial
	Ask   []Question
	Cut   []Cut
	// Flips are sessions that fell to quarantine: reported with the time the
	// packet filter took.
	Flips   []Flip
	Reports []*gatev1.SessionEvent
}

// add appends what is to be done after what is to be done already.
func (t *Todo) add(more Todo) {
	t.Grants = append(t.Grants, more.Grants...)
	t.Forget = append(t.Forget, more.Forget...)
	t.Save = t.Save || more.Save
	t.Allow = append(t.Allow, more.Allow...)
	t.Deny = append(t.Deny, more.Deny...)
	t.Ask = append(t.Ask, more.Ask...)
	t.Cut = append(t.Cut, more.Cut...)
	t.Flips = append(t.Flips, more.Flips...)
	t.Reports = append(t.Reports, more.Reports...)
}

// Grant is what an address may do, and until when.
type Grant struct {
	Address           netip.Addr
	Admit, Quarantine time.Time
}

// Denial refuses an attempt with a text for the user.
type Denial struct {
	Attempt
	Text string
}

// Question is put to a collector; Answered takes the answer.
type Question struct {
	Session Key
	Facts   *gatev1.SessionFacts
}

// Cut ends a session whose packets no longer pass.
type Cut struct {
	Key
	ID        string
	Text      string
	Addresses []netip.Addr
	// Cause is the position of the standing that caused it; zero when a lease
	// ran out or nobody had admitted the session.
	Cause lease.Position
	// Since is when we learned of the cause.
	Since time.Time
}

// Flip is a session that fell to quarantine because of a standing.
type Flip struct {
	ID    string
	Cause lease.Position
	Since time.Time
}

// NewBook returns an empty book that admits nobody.
func NewBook(r Rules) *Book {
	return &Book{
		rules:     r,
		sessions:  map[Key]*entry{},
		standings: map[fingerprint]standing{},
		suspects:  map[Key]time.Time{},
	}
}

// Position is that of the newest standings; zero when there are none.
func (b *Book) Position() lease.Position {
	if !b.known {
		return lease.Position{}
	}
	return b.position
}

// Ups are the sessions that are up, as a full report names them.
func (b *Book) Ups(now time.Time) []*gatev1.SessionEvent {
	var out []*gatev1.SessionEvent
	for _, e := range b.ordered() {
		if (e.state == up || e.state == cutting) && !e.adopted {
			out = append(out, e.upEvent(now))
		}
	}
	return out
}

// ordered are the entries in the order of their keys, so that what has to be
// done does not depend on a map.
func (b *Book) ordered() []*entry {
	out := make([]*entry, 0, len(b.sessions))
	for _, e := range b.sessions {
		out = append(out, e)
	}
	slices.SortFunc(out, func(x, y *entry) int {
		return cmp.Or(cmp.Compare(x.Server, y.Server), cmp.Compare(x.CID, y.CID))
	})
	return out
}

// standingOf is where an identity stands. Once a snapshot is complete, who is
// not in it is denied; before that nothing is known (false).
func (b *Book) standingOf(f fingerprint) (standing, bool) {
	s, ok := b.standings[f]
	if !ok && b.known {
		return standing{at: b.position}, true
	}
	return s, ok
}

// NextDeadline is when Tick has something to do; zero when never.
func (b *Book) NextDeadline() time.Time {
	var next time.Time
	for _, e := range b.sessions {
		if e.state != up || e.adopted {
			continue
		}
		d := e.until
		if e.verdict == quarantine {
			d = d.Add(b.rules.QuarantineFor)
		}
		if next.IsZero() || d.Before(next) {
			next = d
		}
	}
	return next
}

// Tick acts on leases that have ended. The kernel has cut already; the book
// follows: what was admitted is quarantined, what was quarantined is cut.
func (b *Book) Tick(now time.Time) Todo {
	var todo Todo
	for _, e := range b.ordered() {
		if e.state != up || e.adopted || now.Before(e.until) {
			continue
		}
		if e.verdict == admitVerdict && b.rules.QuarantineFor > 0 {
			e.verdict = quarantine
			b.grant(&todo, e)
			todo.Forget = append(todo.Forget, e.addresses...)
			todo.Flips = append(todo.Flips, Flip{ID: e.id, Since: now})
			todo.Save = true
			continue
		}
		if !now.Before(e.until.Add(b.rules.QuarantineFor)) {
			b.cut(&todo, e, unreachableText, lease.Position{}, now)
		}
	}
	return todo
}

// grant puts what an entry may do into todo.
func (b *Book) grant(todo *Todo, e *entry) {
	g := Grant{}
	switch e.verdict {
	case admitVerdict:
		g.Admit = e.until
		g.Quarantine = e.until.Add(b.rules.QuarantineFor)
	case quarantine:
		g.Quarantine = e.until.Add(b.rules.QuarantineFor)
	}
	for _, a := range e.addresses {
		g.Address = a
		todo.Grants = append(todo.Grants, g)
	}
}

// Regrant gives every session that is up what it may do, once more: the packet
// filter has lost it.
func (b *Book) Regrant() Todo {
	var todo Todo
	for _, e := range b.ordered() {
		if e.state == up && !e.adopted {
			b.grant(&todo, e)
		}
	}
	return todo
}

// cut takes everything from an entry and has its session ended.
func (b *Book) cut(todo *Todo, e *entry, text string, cause lease.Position, now time.Time) {
	e.state, e.verdict, e.attempt, e.survives = cutting, deny, nil, false
	b.grant(todo, e)
	todo.Cut = append(todo.Cut, Cut{
		Key: e.Key, ID: e.id, Text: text, Addresses: e.addresses, Cause: cause, Since: now,
	})
	todo.Save = true
}

// drop removes an entry whose session is over.
func (b *Book) drop(todo *Todo, e *entry, reason string, now time.Time) {
	delete(b.sessions, e.Key)
	if e.state == asking || e.state == allowed {
		return // nobody was told that it is up
	}
	if e.state == up { // one that was cut has lost its access already
		e.verdict = deny
		b.grant(todo, e)
		todo.Forget = append(todo.Forget, e.addresses...)
	}
	todo.Save = true
	todo.Reports = append(todo.Reports, downEvent(e.id, reason, now))
}

func (e *entry) facts() *gatev1.SessionFacts {
	f := &gatev1.SessionFacts{
		SessionId:         e.id,
		CertificateSha256: e.fingerprint[:],
		PeerName:          e.name,
		OuterAddress:      e.outer,
		Protocol:          e.protocol,
	}
	for _, a := range e.addresses {
		f.TunnelAddresses = append(f.TunnelAddresses, a.String())
	}
	return f
}

func (e *entry) upEvent(now time.Time) *gatev1.SessionEvent {
	return &gatev1.SessionEvent{At: timestamppb.New(now), Event: &gatev1.SessionEvent_Up{Up: &gatev1.SessionUp{
		Session: e.facts(), Epoch: e.at.Epoch, Sequence: e.at.Sequence, Verdict: e.verdict,
	}}}
}

func downEvent(id, reason string, now time.Time) *gatev1.SessionEvent {
	return &gatev1.SessionEvent{At: timestamppb.New(now), Event: &gatev1.SessionEvent_Down{
		Down: &gatev1.SessionDown{SessionId: id, Reason: reason},
	}}
}

func alarmEvent(kind, detail, id string, now time.Time) *gatev1.SessionEvent {
	return &gatev1.SessionEvent{At: timestamppb.New(now), Event: &gatev1.SessionEvent_Alarm{
		Alarm: &gatev1.GateAlarm{Kind: kind, Detail: detail, SessionId: id},
	}}
}
