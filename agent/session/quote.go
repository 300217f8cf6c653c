package session

import (
	"time"

	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// quoteFirst is how long the first report waits for the quote that Welcome asks
// for, so that it is judged together with it. A slow TPM holds nothing up for
// longer.
const quoteFirst = 10 * time.Second

// beside does what takes a TPM seconds beside the stream, which goes on; what it
// returns then runs in the goroutine of serve. A TPM cannot be interrupted: the
// work belongs to the agent, which does one at a time, and its result is lost
// when the stream has ended meanwhile.
func (s *stream) beside(work func() (then func() error)) {
	ctx := s.rpc.Context()
	s.slow.Go(func() {
		select {
		case s.turn <- struct{}{}:
			defer func() { <-s.turn }()
		case <-ctx.Done():
			return
		}
		if ctx.Err() != nil {
			return
		}
		then := work()
		select {
		case s.worked <- then:
		case <-ctx.Done():
		}
	})
}

// quote answers a question to the TPM. While it works on one, only the newest
// waits: the collector has one at a time, and no number of them piles up here.
func (s *stream) quote(nonce []byte) error {
	s.question = nonce
	if s.answering {
		return nil
	}
	exporter, err := mtls.Exporter(s.rpc.Context())
	if err != nil {
		return err
	}
	s.question, s.answering = nil, true
	s.beside(func() func() error {
		q, err := s.id.Quote(nonce, exporter)
		if err != nil {
			q = &agentv1.Quote{Nonce: nonce, Failure: err.Error()}
		}
		return func() error { return s.answer(q) }
	})
	return nil
}

// answer sends a quote, and goes on with the question that came meanwhile.
func (s *stream) answer(q *agentv1.Quote) error {
	s.answering = false
	if q.GetFailure() != "" {
		s.Log.Warn("the TPM does not quote", "reason", q.GetFailure())
	}
	if err := s.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Quote{Quote: q}}); err != nil {
		return err
	}
	if s.question != nil {
		if err := s.quote(s.question); err != nil {
			return err
		}
	}
	return s.quoted()
}

// quoted lets the first report go.
func (s *stream) quoted() error {
	s.quoting = nil
	return s.report()
}

// present shows the collector that this notebook is still there.
func (s *stream) present(c *agentv1.PresenceCheck) error {
	return s.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Presence{Presence: &agentv1.Presence{Nonce: c.GetNonce()}}})
}
