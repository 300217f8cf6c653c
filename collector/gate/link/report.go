package link

import (
	"context"
	"slices"
	"sync"
	"time"

	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

const (
	// reportSize is how many events one report has, reportWithin how long it
	// may take.
	reportSize   = 1000
	reportWithin = 5 * time.Second
	// outboxSize is how many events wait for a collector that is away.
	outboxSize = 10_000
)

// outbox holds what one collector has not yet been told.
type outbox struct {
	mu     sync.Mutex
	events []*gatev1.SessionEvent
	// full: it has to be told first how things stand.
	full  bool
	ready chan struct{}
}

func newOutbox() *outbox { return &outbox{ready: make(chan struct{}, 1)} }

func (o *outbox) put(events ...*gatev1.SessionEvent) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, events...)
	if len(o.events) > outboxSize {
		o.full, o.events = true, lasting(o.events)
		o.events = o.events[max(0, len(o.events)-outboxSize):]
	}
	o.wake()
}

// putBack returns what could not be told to the front.
func (o *outbox) putBack(full bool, events []*gatev1.SessionEvent) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(events, o.events...)
	o.full = o.full || full
	o.wake()
}

// restate makes the next report a full one.
func (o *outbox) restate() { o.putBack(true, nil) }

func (o *outbox) take() (full bool, events []*gatev1.SessionEvent) {
	o.mu.Lock()
	defer o.mu.Unlock()
	full = o.full
	n := len(o.events)
	if !full {
		n = min(n, reportSize)
	}
	events, o.events = o.events[:n:n], o.events[n:]
	o.full = false
	if len(o.events) > 0 {
		o.wake()
	}
	return full, events
}

func (o *outbox) wake() {
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// lasting are the events that how things stand does not replace.
func lasting(events []*gatev1.SessionEvent) []*gatev1.SessionEvent {
	return slices.DeleteFunc(slices.Clone(events), func(e *gatev1.SessionEvent) bool {
		return e.GetCutConfirmed() == nil && e.GetAlarm() == nil
	})
}

// report tells the collector what is in the outbox until ctx ends.
func (l *link) report(ctx context.Context, k Keeper) {
	pause := firstPause
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.out.ready:
		}
		full, events := l.out.take()
		if full {
			events = lasting(events)
		} else if len(events) == 0 {
			continue
		}
		if err := l.tell(ctx, k, full, events); err == nil {
			pause = firstPause
			continue
		} else if ctx.Err() == nil {
			l.o.Log.Warn("report not taken", "collector", l.address, "events", len(events), "error", err)
		}
		l.out.putBack(full, events)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

func (l *link) tell(ctx context.Context, k Keeper, full bool, events []*gatev1.SessionEvent) error {
	ctx, cancel := context.WithTimeout(ctx, reportWithin)
	defer cancel()
	req := &gatev1.ReportRequest{Full: full, Events: events}
	if full {
		_, ups, err := k.Holds(ctx)
		if err != nil {
			return err
		}
		// Events come first: what was cut is no longer up.
		req.Events = append(slices.Clone(events), ups...)
	}
	_, err := l.client.Report(ctx, req)
	return err
}
