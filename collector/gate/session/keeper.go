package session

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// askFor is how long a question may take; VPN servers wait longer.
	askFor = 5 * time.Second
	// listEvery is how often servers are asked what is up.
	listEvery = 10 * time.Second
	// retryAfter is the pause before the packet filter is tried again.
	retryAfter = 100 * time.Millisecond
)

// Collector is the side that decides.
type Collector interface {
	// Admit asks about one session. The answer's lease is verified to be the
	// collector's own; nothing else about it is.
	Admit(ctx context.Context, facts *gatev1.SessionFacts) (Answer, error)
	// Report tells what happened; it never waits and loses nothing.
	Report(events ...*gatev1.SessionEvent)
}

// Options of a Keeper. All are needed.
type Options struct {
	Rules     Rules
	Drivers   map[string]Driver
	Filter    Filter
	Collector Collector
	// Journal is the path of the file that outlives the gate.
	Journal string
	Log     *slog.Logger
	Metrics *Metrics
}

// Keeper does what the Book decides.
type Keeper struct {
	o    Options
	book *Book
	in   mailbox
	// pending are grants that the packet filter did not take.
	pending map[netip.Addr]Grant
	failing bool
	work    sync.WaitGroup
}

// News is what a collector told. Received is when it came.
type News struct {
	At       lease.Position
	Received time.Time
	// Snapshot: Standings are all there are. Otherwise they have changed.
	Snapshot  bool
	Standings []*gatev1.Standing
	// Leases are renewed.
	Leases []*gatev1.Lease
}

type (
	answered struct {
		Question
		answer Answer
		err    error
	}
	listed struct {
		server string
		asked  time.Time
		list   []Live
	}
	gone struct {
		Cut
		packets, after time.Duration
		survives       error
	}
	// filterLost: the packet filter holds nothing any more, or (err) may be gone.
	filterLost struct{ err error }
	// question is a function that looks at the book.
	question func(*Book)
)

// NewKeeper returns a Keeper that knows what the journal says.
func NewKeeper(o Options) *Keeper {
	k := &Keeper{o: o, book: NewBook(o.Rules), in: newMailbox(), pending: map[netip.Addr]Grant{}}
	if err := k.book.restore(o.Journal, time.Now()); err != nil {
		// What is up will not be recognised, and cut. That is safe, and said.
		o.Log.Error("journal lost, live sessions will be cut", "error", err)
	}
	return k
}

// Tell hands over what a collector told.
func (k *Keeper) Tell(n News) { k.in.put(n) }

// FilterLost says that somebody emptied the packet filter: what sessions may do
// is applied again. With an error it is not known whether it is there.
func (k *Keeper) FilterLost(err error) { k.in.put(filterLost{err}) }

// Holds is the position up to which standings are held, and the sessions that
// are up: what a Watch resumes from and a full report says.
func (k *Keeper) Holds(ctx context.Context) (lease.Position, []*gatev1.SessionEvent, error) {
	type held struct {
		at  lease.Position
		ups []*gatev1.SessionEvent
	}
	answer := make(chan held, 1)
	k.in.put(question(func(b *Book) { answer <- held{b.Position(), b.Ups(time.Now())} }))
	select {
	case h := <-answer:
		return h.at, h.ups, nil
	case <-ctx.Done():
		return lease.Position{}, nil, ctx.Err()
	}
}

// Run serves until ctx ends. The packet filter stays as it is: its time-outs
// close it.
func (k *Keeper) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range k.o.Drivers {
		g.Go(func() error { return d.Run(ctx, func(e Event) { k.in.put(e) }) })
	}
	g.Go(func() error {
		defer k.work.Wait()
		return k.loop(ctx)
	})
	return g.Wait()
}

func (k *Keeper) loop(ctx context.Context) error {
	listing := time.NewTicker(listEvery)
	defer listing.Stop()
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-k.in.filled:
			// What came together is done together: one change of the packet
			// filter costs as much as a hundred.
			var todo Todo
			for _, m := range k.in.take() {
				todo.add(k.decide(m))
			}
			k.do(ctx, todo)
		case <-listing.C:
			k.list(ctx)
		case <-alarm.C:
			k.do(ctx, k.book.Tick(time.Now()))
		}
		next := k.book.NextDeadline()
		if len(k.pending) > 0 {
			next = time.Now().Add(retryAfter)
		}
		if !next.IsZero() {
			alarm.Reset(time.Until(next))
		}
	}
}

// decide asks the book what a message means.
func (k *Keeper) decide(m any) Todo {
	now := time.Now()
	switch m := m.(type) {
	case Event:
		k.note(m)
		todo := k.book.Happened(m, now)
		if _, ok := m.(Attached); ok {
			todo.Grants = append(k.strays(), todo.Grants...)
		}
		return todo
	case answered:
		return k.book.Answered(m.Session, m.Facts.GetSessionId(), m.answer, m.err, now)
	case listed:
		return k.book.Listed(m.server, m.asked, m.list, now)
	case gone:
		return k.confirm(m, now)
	case filterLost:
		if m.err != nil {
			k.filterFails(m.err, now)
			return Todo{}
		}
		todo := k.book.Regrant()
		todo.Reports = append(todo.Reports, alarmEvent(alarmFilter, "somebody deleted the table; it is back", "", now))
		return todo
	case News:
		switch {
		case m.Snapshot:
			return k.book.Snapshot(m.At, m.Standings, m.Received)
		case m.Standings != nil:
			return k.book.Changed(m.At, m.Standings, m.Received)
		case m.Leases != nil:
			return k.book.Renewed(m.Leases, m.Received)
		}
		k.book.Advanced(m.At)
	case question:
		m(k.book)
	}
	return Todo{}
}

func (k *Keeper) note(e Event) {
	switch e := e.(type) {
	case Attached:
		k.o.Log.Info("vpn server attached", "server", e.Server, "process", e.Process, "sessions", len(e.Live))
	case Detached:
		k.o.Log.Warn("vpn server lost", "server", e.Server, "error", e.Cause)
	}
}

// strays takes access from addresses that no session has: what a gate left
// behind whose sessions are gone.
func (k *Keeper) strays() []Grant {
	held, err := k.o.Filter.Addresses()
	if err != nil {
		k.o.Log.Error("packet filter not listed, its time-outs will clean it", "error", err)
		return nil
	}
	owned := map[netip.Addr]bool{}
	for _, e := range k.book.sessions {
		for _, a := range e.addresses {
			owned[a] = true
		}
	}
	var out []Grant
	for _, a := range held {
		if !owned[a] {
			out = append(out, Grant{Address: a})
		}
	}
	return out
}

// do does what is to be done. Packets are cut before anything else; but what
// only gains something is in the journal before its first packet passes, so
// that the next gate knows it.
func (k *Keeper) do(ctx context.Context, todo Todo) {
	lowers := len(todo.Cut)+len(todo.Flips) > 0
	if !lowers {
		k.save(todo)
	}
	filtered := k.apply(todo.Grants)
	packets := time.Now()
	if lowers {
		k.save(todo)
	}
	if len(todo.Forget) > 0 {
		k.work.Go(func() { k.forget(todo.Forget) })
	}
	for _, a := range todo.Allow {
		k.work.Go(func() { k.told(a.Key, k.o.Drivers[a.Server].Allow(ctx, a)) })
	}
	for _, d := range todo.Deny {
		k.work.Go(func() { k.told(d.Key, k.o.Drivers[d.Server].Deny(ctx, d.Attempt, d.Text)) })
	}
	for _, q := range todo.Ask {
		k.work.Go(func() { k.ask(ctx, q) })
	}
	k.cut(ctx, todo.Cut, packets, filtered)
	for _, f := range todo.Flips {
		k.o.Metrics.cut(quarantine, packets.Sub(f.Since))
		todo.Reports = append(todo.Reports, cutEvent(f.ID, f.Cause, quarantine, packets.Sub(f.Since), 0, packets))
	}
	for _, r := range todo.Reports {
		if a := r.GetAlarm(); a != nil {
			k.o.Metrics.alarm(a.GetKind())
			k.o.Log.Warn("alarm", "kind", a.GetKind(), "detail", a.GetDetail(), "session", a.GetSessionId())
		}
	}
	if len(todo.Reports) > 0 {
		k.o.Collector.Report(todo.Reports...)
	}
	k.o.Metrics.sessions(k.book)
}

func (k *Keeper) save(todo Todo) {
	if !todo.Save {
		return
	}
	if err := k.book.record(k.o.Journal); err != nil {
		k.o.Log.Error("journal not written, a restart will cut sessions", "error", err)
	}
}

// apply changes the packet filter, and tries again what it did not take.
func (k *Keeper) apply(grants []Grant) bool {
	for _, g := range grants {
		k.pending[g.Address] = g // the last word on an address counts
	}
	if len(k.pending) == 0 {
		return true
	}
	now := time.Now()
	changes := make([]Access, 0, len(k.pending))
	for _, g := range slices.SortedFunc(maps.Values(k.pending), func(x, y Grant) int { return x.Address.Compare(y.Address) }) {
		changes = append(changes, Access{Address: g.Address, Admit: max(0, g.Admit.Sub(now)), Quarantine: max(0, g.Quarantine.Sub(now))})
	}
	if err := k.o.Filter.Apply(changes); err != nil {
		k.filterFails(err, now)
		return false
	}
	k.failing = false
	clear(k.pending)
	return true
}

// filterFails is said once until the packet filter takes changes again.
func (k *Keeper) filterFails(err error, now time.Time) {
	if k.failing {
		return
	}
	k.failing = true
	k.o.Log.Error("packet filter fails", "error", err)
	k.o.Metrics.alarm(alarmFilter)
	k.o.Collector.Report(alarmEvent(alarmFilter, err.Error(), "", now))
}

func (k *Keeper) forget(addresses []netip.Addr) {
	if err := k.o.Filter.Forget(addresses); err != nil {
		k.o.Log.Warn("open connections not forgotten", "error", err)
	}
}

func (k *Keeper) ask(ctx context.Context, q Question) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	begin := time.Now()
	answer, err := k.o.Collector.Admit(ctx, q.Facts)
	k.o.Metrics.asked(answer, err, time.Since(begin))
	if err != nil {
		k.o.Log.Warn("no answer from a collector", "session", q.Facts.GetSessionId(), "error", err)
	}
	k.in.put(answered{Question: q, answer: answer, err: err})
}

// told logs what a driver did not do. The client gives up by itself, and what
// is up is found at the next listing.
func (k *Keeper) told(key Key, err error) {
	if err != nil {
		k.o.Log.Warn("vpn server did not obey", "server", key.Server, "error", err)
	}
}

// list asks every server what is up.
func (k *Keeper) list(ctx context.Context) {
	for name, d := range k.o.Drivers {
		k.work.Go(func() {
			asked := time.Now()
			live, err := d.Live(ctx)
			if err != nil {
				return // it is away; Attached says what is up when it is back
			}
			k.in.put(listed{server: name, asked: asked, list: live})
		})
	}
}

func cutEvent(id string, cause lease.Position, v posturev1.Verdict, packets, after time.Duration, at time.Time) *gatev1.SessionEvent {
	return &gatev1.SessionEvent{At: timestamppb.New(at), Event: &gatev1.SessionEvent_CutConfirmed{CutConfirmed: &gatev1.CutConfirmed{
		SessionId: id, Epoch: cause.Epoch, Sequence: cause.Sequence, Verdict: v,
		PacketsCutAfter: durationpb.New(packets), SessionGoneAfter: durationpb.New(after),
	}}}
}

// mailbox is a queue without a limit: who puts something in never waits, so a
// driver that reads can't be held up by a keeper that talks to it.
type mailbox struct {
	mu     *sync.Mutex
	held   *[]any
	filled chan struct{}
}

func newMailbox() mailbox {
	return mailbox{mu: &sync.Mutex{}, held: new([]any), filled: make(chan struct{}, 1)}
}

func (b mailbox) put(m any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*b.held = append(*b.held, m)
	select {
	case b.filled <- struct{}{}:
	default:
	}
}

func (b mailbox) take() []any {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := *b.held
	*b.held = nil
	return all
}
