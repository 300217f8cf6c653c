package intake

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Collect asks a device to collect and report now, and to quote its TPM if it
// has one and quote is set. It returns false when the device is not online. It
// does not wait.
func (s *Service) Collect(deviceID, reason string, quote bool) bool {
	st := s.session(deviceID)
	if st != nil {
		st.order(func(o *orders) { o.ask(reason, quote && st.quotes()) })
	}
	return st != nil
}

// CollectAndWait asks like Collect, and returns when a report of what was read
// after the request is stored and, if quote is set, a quote was judged: one that
// is on its way already counts. The error is the context's, or a status: the
// device is not or no longer online, has nothing to quote with, or did not
// quote.
func (s *Service) CollectAndWait(ctx context.Context, deviceID string, quote bool) error {
	st := s.session(deviceID)
	if st == nil {
		return status.Error(codes.Unavailable, "the device is not connected")
	}
	if quote && !st.quotes() {
		return status.Error(codes.FailedPrecondition, "the device cannot quote: its key is not in a TPM, or its agent is too old")
	}
	w := &waiter{since: s.Now(), report: true, quote: quote, done: make(chan error, 1)}
	st.wait(w)
	defer st.leave(w)
	st.order(func(o *orders) { o.ask("asked for by an operator", quote) })
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-st.done:
		return status.Error(codes.Unavailable, "the device has gone")
	}
}

// collection is what a device is asked for.
type collection struct {
	reason string
	quote  bool
}

// ask adds to what the device is asked for.
func (o *orders) ask(reason string, quote bool) {
	o.collect = &collection{reason, quote || o.collect != nil && o.collect.quote}
}

// waiter waits for what a device was asked for.
type waiter struct {
	since         time.Time
	report, quote bool       // still waited for
	done          chan error // takes one
}

func (st *session) wait(w *waiter) {
	st.waiting.Lock()
	defer st.waiting.Unlock()
	st.waiters = append(st.waiters, w)
}

func (st *session) leave(w *waiter) {
	st.waiting.Lock()
	defer st.waiting.Unlock()
	st.waiters = slices.DeleteFunc(st.waiters, func(x *waiter) bool { return x == w })
}

// reported tells who waits that a report of what was read then is stored.
func (st *session) reported(collectedAt time.Time) {
	st.tellWaiters(func(w *waiter) error {
		w.report = w.report && collectedAt.Before(w.since)
		return nil
	})
}

// quoted tells who waits how a quote ended.
func (st *session) quoted(err error) {
	st.tellWaiters(func(w *waiter) error {
		if !w.quote {
			return nil
		}
		w.quote = false
		return err
	})
}

func (st *session) tellWaiters(tell func(*waiter) error) {
	st.waiting.Lock()
	defer st.waiting.Unlock()
	st.waiters = slices.DeleteFunc(st.waiters, func(w *waiter) bool {
		err := tell(w)
		if err == nil && (w.report || w.quote) {
			return false
		}
		w.done <- err
		return true
	})
}
