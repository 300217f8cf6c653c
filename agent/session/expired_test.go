package session

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"pfoertner/agent/identity"
	"pfoertner/agent/status"
	"pfoertner/agent/testcollector"
	"pfoertner/agent/uplink"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// office is a collector that enrols with the token "new" alone.
type office struct {
	*testcollector.Collector
	asked   atomic.Int32
	pending atomic.Bool
}

func newOffice(t *testing.T) *office {
	o := &office{Collector: testcollector.New(t)}
	grant := o.Granting("new", "0f9a2c1e-7c55-4e1c-9a54-3f2f0a0c7d21")
	o.OnEnrol = func(s agentv1.EnrolmentService_EnrolServer) error {
		o.asked.Add(1)
		if !o.pending.Load() {
			return grant(s)
		}
		if _, err := s.Recv(); err != nil {
			return err
		}
		return s.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Pending{Pending: &agentv1.Pending{}}})
	}
	return o
}

// enrolment is with a token; empty: there is none.
func (o *office) enrolment(token string) func() (identity.Enrolment, error) {
	return func() (identity.Enrolment, error) {
		if token == "" {
			return identity.Enrolment{}, fmt.Errorf("%w: nobody brought one", identity.ErrNoToken)
		}
		return identity.Enrolment{Target: o.Target(), Pin: uplink.Pin{Fingerprint: o.Servers.Fingerprint()}, Token: token, Machine: &agentv1.Machine{}}, nil
	}
}

// withToken lets the agent enrol with a token. Refused attempts follow quickly.
func (o *office) withToken(token string) func(*agent) {
	return func(a *agent) {
		a.refused = &uplink.Backoff{Base: time.Millisecond, Cap: 10 * time.Millisecond}
		a.Enrolment = o.enrolment(token)
	}
}

// A notebook comes back after months: software distribution has brought a new
// token, and nobody sits in front of it.
func TestExpiredCertificateIsReplacedWithANewToken(t *testing.T) {
	o := newOffice(t)
	o.Listen()
	a := start(t, o.Collector, o.Enrolled(t, -time.Minute), o.withToken("new"))
	opened(t, o.Collector)
	a.board.shows(t, status.Online)
}

func TestExpiredCertificateStaysWithoutAGoodToken(t *testing.T) {
	for name, c := range map[string]struct {
		token string
		spent bool
		asked int32
	}{
		"no token":                        {"", false, 0},
		"the token of the last enrolment": {"new", true, 0},
		"a token that is refused":         {"old", false, 1}, // not again and again
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			o.Listen()
			state := o.Enrolled(t, -time.Minute)
			before, err := state.Load()
			if err != nil {
				t.Fatal(err)
			}
			if c.spent {
				if err := state.Spend(c.token); err != nil {
					t.Fatal(err)
				}
			}
			a := start(t, o.Collector, state, o.withToken(c.token))
			a.board.await(t, "five attempts", func() bool { return len(a.board.connections) >= 5 })
			a.board.shows(t, status.Expired)
			if n := o.asked.Load(); n != c.asked {
				t.Errorf("the collector was asked to enrol %d times, want %d", n, c.asked)
			}
			if now, err := state.Load(); err != nil || !now.Chain[0].Equal(before.Chain[0]) {
				t.Errorf("the identity has changed: %v", err)
			}
		})
	}
}

// The notebook's clock is ahead: the certificate is good, and a token would be
// lost with it.
func TestWrongClockCostsNoCertificate(t *testing.T) {
	for name, check := range map[string]func(*x509.Certificate) error{
		"the collector takes the certificate":         nil,
		"the collector refuses it for another reason": func(*x509.Certificate) error { return errors.New("suspended") },
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			o.Clock = func() time.Time { return time.Now().Add(-30 * time.Minute) }
			o.Check = check
			o.Listen()
			a := start(t, o.Collector, o.Enrolled(t, -time.Minute), o.withToken("new"))
			for range 3 {
				if check == nil {
					o.Next(t).End(errors.New("no more of this test"))
				}
			}
			a.board.await(t, "three attempts", func() bool { return len(a.board.connections) >= 3 })
			a.board.shows(t, status.Expired)
			if n := o.asked.Load(); n != 0 {
				t.Errorf("asked to enrol %d times", n)
			}
		})
	}
}

func TestCollectorThatIsAwayCostsNoCertificate(t *testing.T) {
	o := newOffice(t)
	o.Listen()
	state := o.Enrolled(t, -time.Minute)
	o.Stop()
	a := start(t, o.Collector, state, o.withToken("new"))
	a.board.await(t, "five attempts", func() bool { return len(a.board.connections) >= 5 })
	a.board.shows(t, status.Expired)
}

func TestReplacementThatWaitsForApprovalIsShown(t *testing.T) {
	o := newOffice(t)
	o.pending.Store(true)
	o.Listen()
	a := start(t, o.Collector, o.Enrolled(t, -time.Minute), o.withToken("new"))
	a.board.shows(t, status.Pending)
	o.pending.Store(false)
	opened(t, o.Collector)
}

// A person has removed a broken or wrong identity, as the messages say; the
// service runs meanwhile.
func TestRemovedIdentityIsObtainedAgain(t *testing.T) {
	o := newOffice(t)
	o.Listen()
	m, b, state := newMachine(), newBoard(), o.Enrolled(t, time.Hour)
	options := Options{
		Target: o.Target(), State: state, Collector: m, Watcher: m, Board: b,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	options.Enrolment = o.enrolment("new")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, options) }()
	first, _ := opened(t, o.Collector)
	if _, err := state.Remove(); err != nil {
		t.Fatal(err)
	}
	first.End(errors.New("the collector starts anew"))
	opened(t, o.Collector)
	if n := o.asked.Load(); n != 1 {
		t.Errorf("enrolled %d times", n)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
