package intake

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/collector/attestation"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

const (
	// quoteCapability is from which capability on agents quote.
	quoteCapability = 3
	// A TPM has this long to quote, longer when a notebook has just started.
	quoteTimeout        = time.Minute
	connectQuoteTimeout = 2 * time.Minute
	// quoteEvery is when the next quote is asked for, quoteRetry after one that
	// did not come; both a tenth sooner or later, so that a fleet that came
	// together does not stay together.
	quoteEvery = 8 * time.Hour
	quoteRetry = 10 * time.Minute
)

// questions are what a stream's TPM is asked: one at a time, each answered once.
// Between them there is a timer, no goroutine.
type questions struct {
	mu      sync.Mutex
	quotes  bool // the device has a TPM, and an agent that quotes
	stopped bool
	open    []byte    // nonce of the one to be answered; nil: there is none
	asked   time.Time // of the newest question
	missed  []byte    // of the newest that was not answered in time
	timer   *time.Timer
}

func (q *questions) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopped, q.open = true, nil
	if q.timer != nil {
		q.timer.Stop()
	}
}

// quotes says whether this stream can be asked for quotes.
func (st *session) quotes() bool {
	st.questions.mu.Lock()
	defer st.questions.mu.Unlock()
	return st.questions.quotes
}

// firstQuestion is the nonce for Welcome: empty when there is nothing to quote
// with.
func (st *session) firstQuestion(ctx context.Context, capability uint32) []byte {
	if _, known := st.service.TPMs.Known(st.deviceID); !known {
		return nil
	}
	if capability < quoteCapability {
		st.unquoted(ctx, st.service.Now(), "the agent is too old to quote")
		return nil
	}
	st.questions.mu.Lock()
	st.questions.quotes = true
	st.questions.mu.Unlock()
	return st.question(ctx, connectQuoteTimeout)
}

// question makes the nonce of a question that has to be answered in time. It is
// nil while another is open: that one will do.
func (st *session) question(ctx context.Context, within time.Duration) []byte {
	q := &st.questions
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stopped || !q.quotes || q.open != nil {
		return nil
	}
	nonce := make([]byte, attest.NonceBytes)
	rand.Read(nonce) // never returns an error
	q.open, q.asked = nonce, st.service.Now()
	if q.timer != nil {
		q.timer.Stop()
	}
	q.timer = time.AfterFunc(within, func() { st.late(ctx, nonce, within) })
	return nonce
}

// askAgain lets the next question be asked after about so long.
func (st *session) askAgain(after time.Duration) {
	q := &st.questions
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stopped || q.open != nil {
		return
	}
	if q.timer != nil {
		q.timer.Stop()
	}
	jitter := time.Duration(mathrand.Int64N(int64(after / 5)))
	q.timer = time.AfterFunc(after-after/10+jitter, func() {
		st.order(func(o *orders) { o.ask("a quote is due", true) })
	})
}

// late ends a question that nobody has answered.
func (st *session) late(ctx context.Context, nonce []byte, within time.Duration) {
	q := &st.questions
	q.mu.Lock()
	missed := !q.stopped && same(q.open, nonce)
	if missed {
		q.open, q.missed = nil, nonce
	}
	asked := q.asked
	q.mu.Unlock()
	if missed {
		st.unquoted(ctx, asked, fmt.Sprintf("no quote within %s", within))
		st.askAgain(quoteRetry)
	}
}

// answer takes the nonce of an answer: it says whether the question was open,
// and closes it. asked is when it was asked.
func (q *questions) answer(nonce []byte) (asked time.Time, open, tooLate bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if same(nonce, q.open) {
		q.open = nil
		q.timer.Stop()
		return q.asked, true, false
	}
	if same(nonce, q.missed) {
		q.missed = nil
		return time.Time{}, false, true
	}
	return time.Time{}, false, false
}

// quote takes the answer to a question. A TPM that does not quote has proven
// nothing; one that quotes something wrong ends the stream; one that contradicts
// what it stated before is a copy.
func (st *session) quote(ctx context.Context, m *agentv1.Quote) error {
	asked, open, tooLate := st.questions.answer(m.GetNonce())
	switch {
	case tooLate:
		return nil
	case !open:
		return invalid("a quote that nobody asked for")
	}
	if len(m.GetMessage()) == 0 {
		st.unquoted(ctx, asked, "the notebook does not quote: "+cmp.Or(m.GetFailure(), "no reason given"))
		st.askAgain(quoteRetry)
		return nil
	}
	err := st.judge(ctx, m, asked)
	st.quoted(err)
	if err == nil {
		st.askAgain(quoteEvery)
	}
	return err
}

// judge has a quote judged when it is its turn: it may come with a long event
// log.
func (st *session) judge(ctx context.Context, m *agentv1.Quote, asked time.Time) error {
	exporter, err := mtls.Exporter(st.stream.Context())
	if err != nil {
		return err
	}
	release, err := st.turn(ctx)
	if err != nil {
		return err
	}
	defer release()
	_, err = st.service.TPMs.Judge(ctx, st.deviceID, attestation.Question{Nonce: m.GetNonce(), Exporter: exporter, Asked: asked}, m)
	return st.stated(ctx, asked, err)
}

// stated says what becomes of a stream whose TPM has stated something that it
// was asked at a moment; err is what was wrong with it.
func (st *session) stated(ctx context.Context, asked time.Time, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, attestation.ErrCloned):
		st.service.raise(st.deviceID, alarmCloned, err.Error())
		return errCloned
	case errors.Is(err, attestation.ErrOvertaken):
		return errOvertaken
	case errors.Is(err, attestation.ErrRefused):
		st.service.note(ctx, st.deviceID, "alarm.attestation", err.Error())
		st.unquoted(ctx, asked, "the TPM's statement does not verify")
		return status.Error(codes.PermissionDenied, "the TPM's statement does not verify")
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	}
	st.service.Log.ErrorContext(ctx, "statement of a TPM not stored", "device_id", st.deviceID, "error", err)
	return errNotStored
}

// unquoted notes that a quote was asked for at a moment and there is none.
func (st *session) unquoted(ctx context.Context, asked time.Time, reason string) {
	if err := st.service.TPMs.Failed(ctx, st.deviceID, asked, reason); err != nil && ctx.Err() == nil {
		st.service.Log.ErrorContext(ctx, "missing quote not stored", "device_id", st.deviceID, "error", err)
	}
	st.quoted(status.Error(codes.FailedPrecondition, reason))
}
