package enrolment

import (
	"context"
	"testing"
	"time"

	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// A connection that breaks after the proof costs nobody a token, and hides no
// copy: what was decided is done.
func TestEnrolmentThatIsProvenEndsWithoutTheNotebook(t *testing.T) {
	h := newHouse(t)
	o := h.open(t, DefaultLimits(), ServerOptions{})
	h.stock(t, "NB-1;;;;;;;\n")
	o.permit(t, "NB-1")
	ctx, leave := context.WithCancel(o.overTLS(t))
	h.Registry.store = &left{Store: h.Registry.store, leave: leave}
	stream := &answering{rawStream: rawStream{ctx: ctx}, attempt: newAttempt(t, o.token(t, "NB-1"), "")}
	server := NewServer(ServerOptions{Registry: o.Registry, Issuer: o.authority, Now: o.clock.Now})
	if err := server.Enrol(stream); err != nil {
		t.Error(err)
	}
	if d := h.device(t, "NB-1"); ctx.Err() == nil || d.GetAsset().GetState() != active {
		t.Errorf("the token is spent, and the asset %s", stateName(d.GetAsset().GetState()))
	}
}

// left is a store whose caller leaves once its token is spent.
type left struct {
	Store
	leave func()
}

func (l *left) UseToken(ctx context.Context, hash []byte, now time.Time) (string, error) {
	asset, err := l.Store.UseToken(ctx, hash, now)
	l.leave()
	return asset, err
}

// answering is the stream of an attempt.
type answering struct {
	rawStream
	attempt   *attempt
	challenge *agentv1.Challenge
}

func (s *answering) Send(m *agentv1.EnrolResponse) error {
	s.challenge = m.GetChallenge()
	return nil
}

func (s *answering) Recv() (*agentv1.EnrolRequest, error) {
	if s.challenge == nil {
		return helloMessage(s.attempt.hello), nil
	}
	return s.attempt.prove(s.ctx, s.challenge)
}
