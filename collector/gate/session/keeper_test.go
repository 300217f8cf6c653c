package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

// stage is a keeper between a VPN server, a packet filter and a collector that
// the test plays. What they are told is written down in order.
type stage struct {
	t      *testing.T
	keeper *Keeper
	told   func(Event)

	mu        sync.Mutex
	said      []string
	listed    []Live
	obstinate int // how many times End does nothing
	broken    bool
	answer    func(*gatev1.SessionFacts) (Answer, error)
	events    []*gatev1.SessionEvent
}

func (s *stage) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, fmt.Sprintf(format, args...))
}

func (s *stage) Run(ctx context.Context, told func(Event)) error {
	s.told = told
	told(Attached{Server: "vpn", Process: 4711})
	<-ctx.Done()
	return ctx.Err()
}

func (s *stage) Allow(_ context.Context, a Attempt) error { s.say("allow %d", a.CID); return nil }
func (s *stage) Deny(_ context.Context, a Attempt, text string) error {
	s.say("deny %d %s", a.CID, text)
	return nil
}
func (s *stage) Dismiss(_ context.Context, k Key, text string) error {
	s.say("dismiss %d", k.CID)
	return nil
}

func (s *stage) End(_ context.Context, keys []Key, force bool) error {
	s.say("end %d force=%t", len(keys), force)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.obstinate--; s.obstinate >= 0 {
		return nil
	}
	s.listed = slices.DeleteFunc(s.listed, func(l Live) bool { return slices.Contains(keys, l.Key) })
	return nil
}

func (s *stage) Live(context.Context) ([]Live, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.listed), nil
}

func (s *stage) Apply(changes []Access) error {
	s.mu.Lock()
	broken := s.broken
	s.mu.Unlock()
	if broken {
		return errors.New("no netlink")
	}
	for _, c := range changes {
		s.say("access %s %s %s", c.Address, c.Admit, c.Quarantine)
	}
	return nil
}

func (s *stage) Forget(a []netip.Addr) error { s.say("forget %v", a); return nil }
func (s *stage) Addresses() ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("10.8.0.99")}, nil
}

func (s *stage) Admit(_ context.Context, facts *gatev1.SessionFacts) (Answer, error) {
	return s.answer(facts)
}

func (s *stage) Report(events ...*gatev1.SessionEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, events...)
}

func (s *stage) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// since returns what was said since the last call.
func (s *stage) since() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	said := s.said
	s.said = nil
	return said
}

func (s *stage) confirmed() *gatev1.CutConfirmed {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if c := e.GetCutConfirmed(); c != nil {
			return c
		}
	}
	return nil
}

// play runs fn with a keeper in a bubble with a clock of its own.
func play(t *testing.T, fn func(*testing.T, *stage)) {
	synctest.Test(t, func(t *testing.T) {
		s := &stage{t: t}
		sequence := uint64(0)
		s.answer = func(f *gatev1.SessionFacts) (Answer, error) {
			sequence++
			st := &story{sequence: sequence}
			return Answer{Lease: st.lease(f.GetSessionId(), admitVerdict)}, nil
		}
		s.keeper = NewKeeper(Options{
			Rules:   Rules{Gateway: "g1", QuarantineFor: stay, NewID: func(Key) string { return "s1" }},
			Drivers: map[string]Driver{"vpn": s}, Filter: s, Collector: s,
			Journal: t.TempDir() + "/state/sessions.json", Log: slog.New(slog.DiscardHandler),
			Metrics: NewMetrics(prometheus.NewRegistry()),
		})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { s.keeper.Run(ctx) })
		synctest.Wait()
		fn(t, s)
		cancel()
		running.Wait()
	})
}

// up brings a session up.
func (s *stage) up() {
	s.t.Helper()
	s.keeper.Tell(News{Snapshot: true, At: lease.Position{Epoch: 1, Sequence: 1}, Standings: []*gatev1.Standing{stands(admitVerdict)}, Received: time.Now()})
	s.told(tried(key, false, someone))
	synctest.Wait()
	s.mu.Lock()
	l := live(key)
	s.listed = []Live{l}
	s.mu.Unlock()
	s.told(established(key))
	want := []string{"access 10.8.0.99 0s 0s", "allow 1", "access 10.8.0.2 15s 1h0m15s"}
	if said := s.since(); !slices.Equal(said, want) {
		s.t.Fatalf("said %q, want %q", said, want)
	}
}

func (s *stage) stand(sequence uint64, list ...*gatev1.Standing) {
	s.keeper.Tell(News{At: lease.Position{Epoch: 1, Sequence: sequence}, Standings: list, Received: time.Now()})
}

func TestCutGoesPacketsConnectionsSessionProof(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.up()
		s.stand(100, stands(deny))
		time.Sleep(time.Second)
		want := []string{"access 10.8.0.2 0s 0s", "forget [10.8.0.2]", "dismiss 1", "end 1 force=false"}
		if said := s.since(); !slices.Equal(said, want) {
			t.Errorf("said %q, want %q", said, want)
		}
		c := s.confirmed()
		if c.GetSequence() != 100 || c.GetVerdict() != deny || c.GetPacketsCutAfter().AsDuration() != 0 || c.GetSessionGoneAfter().AsDuration() != lastWords {
			t.Errorf("confirmed %v", c)
		}
	})
}

// Saying that it ended is no proof: the server is asked, then the session is
// ended by force, and only then it counts.
func TestObstinateSessionIsEndedByForce(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.up()
		s.set(func() { s.obstinate = 1 })
		s.stand(100, stands(deny))
		s.told(Ended{key})
		time.Sleep(endWithin / 2)
		if c := s.confirmed(); c != nil {
			t.Fatalf("confirmed while it was listed: %v", c)
		}
		time.Sleep(endWithin)
		if said := s.since(); !slices.Contains(said, "end 1 force=true") {
			t.Errorf("said %q", said)
		}
		if s.confirmed() == nil {
			t.Error("not confirmed")
		}
	})
}

func TestSessionThatSurvivesIsAnAlarmAndTriedAgain(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.up()
		s.set(func() { s.obstinate = 2 })
		s.stand(100, stands(deny))
		time.Sleep(endWithin + forceWithin + listEvery + time.Second)
		s.since()
		s.mu.Lock()
		defer s.mu.Unlock()
		if !slices.ContainsFunc(s.events, func(e *gatev1.SessionEvent) bool { return e.GetAlarm().GetKind() == alarmSurvives }) {
			t.Errorf("no alarm: %v", s.events)
		}
		if len(s.listed) != 0 {
			t.Error("not tried again")
		}
	})
}

func TestPacketFilterThatFailsIsTriedAgain(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.up()
		s.set(func() { s.broken = true })
		s.stand(100, stands(deny))
		time.Sleep(lastWords + 10*time.Millisecond)
		// The session is ended all the same, and that is what cut its packets.
		if c := s.confirmed(); c == nil || c.GetPacketsCutAfter().AsDuration() != c.GetSessionGoneAfter().AsDuration() {
			t.Errorf("confirmed %v", c)
		}
		s.since()
		s.set(func() { s.broken = false })
		time.Sleep(2 * retryAfter)
		if said := s.since(); !slices.Equal(said, []string{"access 10.8.0.2 0s 0s"}) {
			t.Errorf("said %q", said)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0
		for _, e := range s.events {
			if e.GetAlarm().GetKind() == alarmFilter {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d alarms", n)
		}
	})
}

// Somebody flushed all rules: sessions get back what they had, not more.
func TestEmptiedPacketFilterIsFilledAgain(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.up()
		time.Sleep(time.Second)
		s.since()
		s.keeper.FilterLost(nil)
		if said := s.since(); !slices.Equal(said, []string{"access 10.8.0.2 14s 1h0m14s"}) {
			t.Errorf("said %q", said)
		}
		s.stand(100, stands(quarantine))
		s.since()
		s.keeper.FilterLost(nil)
		if said := s.since(); !slices.Equal(said, []string{"access 10.8.0.2 0s 1h0m14s"}) {
			t.Errorf("in quarantine said %q", said)
		}
		for range 3 { // said once
			s.keeper.FilterLost(errAway)
		}
		s.since()
		s.mu.Lock()
		defer s.mu.Unlock()
		alarms := slices.DeleteFunc(s.events, func(e *gatev1.SessionEvent) bool { return e.GetAlarm().GetKind() != alarmFilter })
		if len(alarms) != 3 {
			t.Errorf("alarms %v", alarms)
		}
	})
}

// Nothing is heard of a collector: the lease ends, quarantine ends, and the
// session is cut, each at its time.
func TestDeadlinesFireByThemselves(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.up()
		time.Sleep(ttl)
		if said := s.since(); !slices.Equal(said, []string{"access 10.8.0.2 0s 1h0m0s", "forget [10.8.0.2]"}) {
			t.Errorf("at the lease's end: %q", said)
		}
		if c := s.confirmed(); c.GetVerdict() != quarantine || c.GetSequence() != 0 {
			t.Errorf("confirmed %v", c)
		}
		time.Sleep(stay)
		time.Sleep(time.Second)
		if said := s.since(); len(said) == 0 || said[0] != "access 10.8.0.2 0s 0s" || !slices.Contains(said, "end 1 force=false") {
			t.Errorf("at the end of quarantine: %q", said)
		}
	})
}

func TestRefusalAndSilence(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.answer = func(*gatev1.SessionFacts) (Answer, error) { return Answer{}, errAway }
		s.told(tried(key, false, someone))
		said := s.since()
		if len(said) != 2 || !strings.HasPrefix(said[1], "deny 1 Kein Zugang: Die Zugangsprüfung ist zurzeit nicht erreichbar.") {
			t.Errorf("said %q", said)
		}
	})
}

func TestHoldsIsWhatAReportSays(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.up()
		at, ups, err := s.keeper.Holds(t.Context())
		if err != nil || at != (lease.Position{Epoch: 1, Sequence: 1}) || len(ups) != 1 || ups[0].GetUp().GetSession().GetSessionId() != "s1" {
			t.Errorf("%v %v %v", at, ups, err)
		}
		s.keeper.Tell(News{At: lease.Position{Epoch: 1, Sequence: 7}})
		if at, _, _ := s.keeper.Holds(t.Context()); at.Sequence != 7 {
			t.Errorf("after a heartbeat: %v", at)
		}
	})
}
