package admission

import (
	"errors"
	"iter"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Ends of a Watch that the Desk decides.
var (
	// ErrBehind: the gateway takes its messages too slowly; it has to begin
	// with a snapshot.
	ErrBehind = errors.New("gateway is too far behind to go on without a snapshot")
	// ErrReplaced: the gateway has opened another Watch.
	ErrReplaced = errors.New("gateway has opened another watch")
)

// chunk is the most standings, or leases, in one message.
const chunk = 1000

// changeLog keeps the newest changes of standings, oldest first, in a ring.
// Guarded by Desk.mu.
type changeLog struct {
	ring []change
	next uint64 // how many were ever written
	// floor is the sequence of the newest change that is no longer kept.
	floor uint64
}

type change struct {
	sequence uint64
	standing *standing
}

func newChangeLog(size int) changeLog { return changeLog{ring: make([]change, size)} }

// add keeps a change and says whether a quarter of the log has been written
// since it last said so.
func (l *changeLog) add(c change) bool {
	slot := &l.ring[l.next%uint64(len(l.ring))]
	if slot.standing != nil {
		l.floor = slot.sequence
	}
	*slot = c
	l.next++
	return l.next%uint64(max(1, len(l.ring)/4)) == 0
}

// since yields the changes after a sequence, newest first.
func (l *changeLog) since(sequence uint64) iter.Seq[change] {
	return func(yield func(change) bool) {
		for i := range min(l.next, uint64(len(l.ring))) {
			c := l.ring[(l.next-1-i)%uint64(len(l.ring))]
			if c.sequence <= sequence || !yield(c) {
				return
			}
		}
	}
}

// log numbers a change. Gateways without a session concerned hear of it with
// their next heartbeat, or before so many have gathered that they could fall
// behind.
func (d *Desk) log(st *standing) {
	if d.changes.add(change{d.sequence.Add(1), st}) {
		for _, g := range d.gates {
			g.wake()
		}
	}
}

// restate numbers a standing anew although it did not change, for a gateway
// that acts as if it did not know.
func (d *Desk) restate(st *standing) { d.log(st) }

// Watcher is one gateway's open Watch. It holds no queue: what is to be told
// follows from the change log and the live sessions, so a slow gateway costs
// nothing. Close it.
type Watcher struct {
	desk  *Desk
	gate  *gate
	woken chan struct{}

	resumed  bool
	start    lease.Position
	snapshot []*standing
	// cursor is up to where changes have been taken. Guarded by Desk.mu.
	cursor uint64
}

// Watch opens a gateway's Watch and closes the one that it had. from is what
// the gateway holds; zero: nothing. The only error is ErrNotReady: before the
// state is loaded nobody can be told where identities stand.
func (d *Desk) Watch(gateway string, from lease.Position) (*Watcher, error) {
	if !d.ready.Load() {
		return nil, ErrNotReady
	}
	now := d.options.Now()
	d.mu.Lock()
	defer d.unlock()
	g := d.gateOf(gateway)
	g.wake()
	w := &Watcher{desk: d, gate: g, woken: make(chan struct{}, 1)}
	g.watcher = w
	d.heardLocked(g, now)
	d.deadlines.set(&g.renewal, now.Add(d.options.LeaseTTL/3))

	sequence := d.sequence.Load()
	w.resumed = from.Epoch == d.options.Epoch && from.Sequence >= d.changes.floor && from.Sequence <= sequence && from.Sequence > 0
	if w.resumed {
		w.cursor = from.Sequence
	} else {
		w.snapshot = slices.Clone(d.standings)
		w.cursor = sequence
	}
	w.start = lease.Position{Epoch: d.options.Epoch, Sequence: w.cursor}
	wake(w.woken)
	return w, nil
}

// Close ends the Watch. Sessions stay listed.
func (w *Watcher) Close() {
	w.desk.mu.Lock()
	defer w.desk.mu.Unlock()
	if w.gate.watcher == w {
		w.gate.watcher = nil
		w.desk.deadlines.remove(&w.gate.renewal)
	}
}

// Start is the Watch's first message, but for the signer's certificate.
func (w *Watcher) Start() *gatev1.Start {
	return &gatev1.Start{
		Epoch:             w.start.Epoch,
		Sequence:          w.start.Sequence,
		Resumed:           w.resumed,
		HeartbeatInterval: durationpb.New(w.desk.options.Heartbeat),
		LeaseTtl:          durationpb.New(w.desk.options.LeaseTTL),
	}
}

// Snapshot yields where all identities stand, chunk by chunk, the last one
// marked; nothing when the Watch was resumed. It can be taken once.
func (w *Watcher) Snapshot() iter.Seq[*gatev1.Standings] {
	return func(yield func(*gatev1.Standings) bool) {
		if w.resumed {
			return
		}
		rest := w.snapshot
		w.snapshot = nil
		for last := false; !last; {
			n := min(chunk, len(rest))
			last = n == len(rest)
			m := w.standings(w.start.Sequence, rest[:n])
			m.Last = last
			if !yield(m) {
				return
			}
			rest = rest[n:]
		}
	}
}

func (w *Watcher) standings(sequence uint64, list []*standing) *gatev1.Standings {
	m := &gatev1.Standings{
		Gateway:   w.gate.name,
		Epoch:     w.desk.options.Epoch,
		Sequence:  sequence,
		Standings: make([]*gatev1.Standing, len(list)),
	}
	for i, st := range list {
		m.Standings[i] = &gatev1.Standing{
			CertificateSha256: st.certificate[:],
			Verdict:           st.verdict,
			Code:              st.code,
			Removed:           st.removed,
		}
		if st.facts != nil {
			m.Standings[i].DeviceId = st.facts.DeviceID
		}
	}
	return m
}

// Woken is signalled when something has to be told at once.
func (w *Watcher) Woken() <-chan struct{} { return w.woken }

// News is what a gateway has to be told, in this order: changes, then leases.
type News struct {
	// Position is where the gateway is once it has been told everything.
	Position lease.Position
	Changes  []*gatev1.Standings
	// Renewals are batches to be signed as one LeaseRenewal each.
	Renewals [][]*gatev1.Lease

	lowered []*session
}

// Take returns everything that is new since the last one. Errors: ErrBehind,
// ErrReplaced; then the Watch is over.
func (w *Watcher) Take() (News, error) {
	d, g := w.desk, w.gate
	now := d.options.Now()
	d.mu.Lock()
	if g.watcher != w {
		d.mu.Unlock()
		return News{}, ErrReplaced
	}
	if w.cursor < d.changes.floor {
		d.mu.Unlock()
		return News{}, ErrBehind
	}
	changes := w.changed()
	var news News
	for _, c := range changes {
		for _, s := range d.live[c.standing.certificate] {
			if s.gate == g && !s.loweredAt.IsZero() && s.toldAt.IsZero() {
				news.lowered = append(news.lowered, s)
			}
		}
	}
	renewals, lowered := d.renewals(g, now)
	news.lowered = append(news.lowered, lowered...)
	w.cursor = d.sequence.Load()
	d.mu.Unlock()

	news.Position = lease.Position{Epoch: d.options.Epoch, Sequence: w.cursor}
	for part := range slices.Chunk(changes, chunk) {
		list := make([]*standing, len(part))
		for i, c := range part {
			list[i] = c.standing
		}
		// Numbered by its last change: a gateway that got only this part resumes
		// with the next.
		news.Changes = append(news.Changes, w.standings(part[len(part)-1].sequence, list))
	}
	news.Renewals = renewals
	return news, nil
}

// changed are the changes since the cursor, oldest first, only the last one of
// each identity. Needs the lock.
func (w *Watcher) changed() []change {
	var changes []change
	seen := map[fingerprint]struct{}{}
	for c := range w.desk.changes.since(w.cursor) {
		if _, again := seen[c.standing.certificate]; !again {
			seen[c.standing.certificate] = struct{}{}
			changes = append(changes, c)
		}
	}
	slices.Reverse(changes)
	return changes
}

// renewals makes the leases of a gateway's sessions that are to be renewed, and
// names those that are lowered by them. A session that is denied though its
// identity is not gets a lease that says so: no standing would. Needs the lock.
func (d *Desk) renewals(g *gate, now time.Time) (batches [][]*gatev1.Lease, lowered []*session) {
	if len(g.renew) == 0 {
		return nil, nil
	}
	leases := make([]*gatev1.Lease, 0, len(g.renew))
	sequence := d.sequence.Add(1)
	issued := timestamppb.New(now)
	for s := range g.renew {
		st := d.standingOf(s.certificate)
		decision := decisionOf(st, now).limited(s.proof())
		denied := decision.Verdict == posturev1.Verdict_VERDICT_DENY
		if denied && decision.Cause != NotProven || s.cutPending && !denied {
			continue
		}
		ttl := decision.leaseTime(d.options.LeaseTTL, now)
		s.leaseEndsAt = now.Add(ttl)
		if !s.loweredAt.IsZero() && s.toldAt.IsZero() {
			lowered = append(lowered, s)
		}
		leases = append(leases, &gatev1.Lease{
			Gateway:           g.name,
			SessionId:         s.id,
			Verdict:           decision.Verdict,
			DeviceId:          st.facts.DeviceID,
			IssuedAt:          issued,
			Ttl:               durationpb.New(ttl),
			Epoch:             d.options.Epoch,
			Sequence:          sequence,
			Code:              s.code(st),
			CertificateSha256: s.certificate[:],
		})
	}
	clear(g.renew)
	d.options.Metrics.renewed.Add(float64(len(leases)))
	return slices.Collect(slices.Chunk(leases, chunk)), lowered
}

// renewAll puts all of a gateway's sessions into its next renewal, and says
// again what stands in the way of those that should be gone.
func (d *Desk) renewAll(g *gate, now time.Time) {
	if g.watcher == nil {
		return
	}
	for _, s := range g.sessions {
		if s.cutPending {
			if st := d.standingOf(s.certificate); st.verdict == posturev1.Verdict_VERDICT_DENY {
				d.restate(st)
				continue
			}
			// Its lease has to say it again.
		}
		g.renew[s] = struct{}{}
	}
	d.deadlines.set(&g.renewal, now.Add(d.options.LeaseTTL/3))
	g.wake()
}

// Told says that the gateway was sent the news: from now on its answer is
// awaited. Call it after each sending; with the zero News after a heartbeat.
func (w *Watcher) Told(n News) {
	now := w.desk.options.Now()
	w.desk.heard(w.gate, now)
	if len(n.lowered) == 0 {
		return
	}
	w.desk.mu.Lock()
	defer w.desk.mu.Unlock()
	for _, s := range n.lowered {
		if !s.loweredAt.IsZero() && s.toldAt.IsZero() {
			s.toldAt, s.ordered = now, s.cutPending
			s.metrics.part(partTold, s.loweredAt, now)
		}
	}
}
