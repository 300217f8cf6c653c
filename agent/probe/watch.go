package probe

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"pfoertner/internal/posture"
)

const (
	// firstPause follows the notification that starts a burst of changes;
	// each pause in which more changes come is followed by one twice as long,
	// up to longestPause.
	firstPause   = 250 * time.Millisecond
	longestPause = 8 * time.Second
	// retryPause lies between two attempts of a source that broke.
	retryPause = time.Minute
)

// Watcher tells which sections of Evidence may have changed. It says so at
// once, and then again after pauses while changes go on: an upgrade touches
// the package database hundreds of times.
type Watcher struct {
	// Log takes what goes wrong with a source; nil drops it. The periodic
	// collection covers for a source that is down.
	Log *slog.Logger

	sources []source
}

// source is one thing that the operating system tells of.
type source struct {
	name string
	// watch calls changed with names of sections until ctx ends or it breaks.
	watch func(ctx context.Context, changed func(sections ...string)) error
	// covers are the sections that may have changed unseen while it was down.
	covers []string
}

// Watch calls notify with the names of sections that may have changed, from
// one goroutine, until ctx ends, and returns the cause of that end. Changes
// that come while notify runs are told after it. A source that breaks is
// started again; what it may have missed is told as changed.
func (w *Watcher) Watch(ctx context.Context, notify func(sections ...string)) error {
	changes := make(chan []string)
	changed := func(sections ...string) {
		select {
		case changes <- sections:
		case <-ctx.Done():
		}
	}
	var running sync.WaitGroup
	defer running.Wait()
	for _, s := range w.sources {
		running.Go(func() { w.keep(ctx, s, changed) })
	}
	coalesce(ctx, changes, notify)
	return context.Cause(ctx)
}

// keep runs a source until ctx ends.
func (w *Watcher) keep(ctx context.Context, s source, changed func(...string)) {
	for {
		err := s.watch(ctx, changed)
		if ctx.Err() != nil {
			return
		}
		if w.Log != nil {
			w.Log.WarnContext(ctx, "watching for changes broke", "source", s.name, "error", err, "retry_in", retryPause)
		}
		select {
		case <-time.After(retryPause):
			changed(s.covers...)
		case <-ctx.Done():
			return
		}
	}
}

// burst is a run of changes to one section.
type burst struct {
	pause time.Duration
	until time.Time // end of the pause
	dirty bool      // changed again since it was told
}

// coalesce passes the first change of a section on at once and those that
// follow once per pause.
func coalesce(ctx context.Context, changes <-chan []string, notify func(...string)) {
	bursts := map[string]*burst{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var due []string
		select {
		case <-ctx.Done():
			return
		case sections := <-changes:
			for _, s := range sections {
				if b := bursts[s]; b != nil {
					b.dirty = true
					continue
				}
				bursts[s] = &burst{pause: firstPause, until: time.Now().Add(firstPause)}
				due = append(due, s)
			}
		case now := <-timer.C:
			due = ended(bursts, now)
		}
		if len(due) > 0 {
			notify(due...)
		}
		if next, ok := earliest(bursts); ok {
			timer.Reset(time.Until(next))
		}
	}
}

// ended forgets bursts that have calmed down and returns the sections of those
// that have not, in the order of Evidence.
func ended(bursts map[string]*burst, now time.Time) []string {
	var due []string
	for _, s := range posture.Sections() {
		switch b := bursts[s]; {
		case b == nil || now.Before(b.until):
		case !b.dirty:
			delete(bursts, s)
		default:
			b.dirty = false
			b.pause = min(2*b.pause, longestPause)
			b.until = now.Add(b.pause)
			due = append(due, s)
		}
	}
	return due
}

func earliest(bursts map[string]*burst) (next time.Time, ok bool) {
	for _, b := range bursts {
		if !ok || b.until.Before(next) {
			next, ok = b.until, true
		}
	}
	return next, ok
}

// watchSleep tells of every section once the machine has slept. wait returns
// when the clock was set, which resuming does too; slept is how long the
// machine has been suspended since it booted.
func watchSleep(wait func() error, slept func() (time.Duration, error), changed func(...string)) error {
	before, err := slept()
	if err != nil {
		return err
	}
	for {
		if err := wait(); err != nil {
			return err
		}
		now, err := slept()
		if err != nil {
			return err
		}
		// The two clocks are read one after the other: a little is no sleep.
		if now-before > 100*time.Millisecond {
			changed(posture.Sections()...)
		}
		before = now
	}
}
