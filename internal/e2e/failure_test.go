//go:build linux

package e2e_test

import (
	"testing"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// lease is short where tests wait for its end.
	lease = 4 * time.Second
	// late is how much later a busy machine may see it.
	late = 5 * time.Second
)

// fallsToQuarantine waits until the live session has nothing but quarantine
// left, and returns when the last packet got past it.
func (s *site) fallsToQuarantine(t testing.TB) (last time.Time) {
	t.Helper()
	for _, p := range s.guarded() {
		if at := p.AwaitSilence(t, still, 2*soon, s.quarantined()...); at.After(last) {
			last = at
		}
	}
	flows(t, s.quarantined()...)
	closed(t, s.guarded()...)
	return last
}

// Case 8.
func TestDeadCollectorAdmitsNobodyAndComesBack(t *testing.T) {
	s := newSite(t, setting{lease: lease.String()})
	s.startAgent(t, admit)
	client := s.admitted(t)
	killed := time.Now()
	s.collector.Kill()
	held := s.fallsToQuarantine(t).Sub(killed)
	t.Logf("held %s with a lease of %s", held, lease)
	if held < lease/3 || held > lease+late {
		t.Errorf("the session held its access for %s, the lease is %s", held, lease)
	}

	s.leave(t, client)
	refused(t, s.dialVPN(t))
	closed(t, s.all()...)

	// Neither gate nor agent is started again: new sessions are admitted, and
	// what the agent sees counts.
	s.startCollector(t)
	s.admitted(t, "auth-retry nointeract")
	s.change(t, "unencrypted")
	for _, p := range s.all() {
		p.AwaitSilence(t, still, soon)
	}
	closed(t, s.all()...)
}

// Case 8, for the session that stays up meanwhile.
func TestSessionRisesAgainWhenTheCollectorIsBack(t *testing.T) {
	s := newSite(t, setting{lease: lease.String()})
	s.startAgent(t, admit)
	client := s.admitted(t)
	s.collector.Kill()
	s.fallsToQuarantine(t)
	s.startCollector(t)
	flows(t, s.all()...)
	if n := connections(client); n != 1 {
		t.Errorf("the client has connected %d times", n)
	}
}

// Case 9.
func TestDeadGateClosesByItselfAndComesBack(t *testing.T) {
	s := newSite(t, setting{lease: lease.String()})
	s.startAgent(t, admit)
	client := s.admitted(t)
	killed := time.Now()
	s.gate.Kill()
	held := s.fallsToQuarantine(t).Sub(killed)
	t.Logf("held %s with a lease of %s", held, lease)
	if held > lease+late {
		t.Errorf("the kernel held access open for %s, the lease is %s", held, lease)
	}

	s.startGate(t)
	flows(t, s.all()...)
	if n := connections(client); n != 1 {
		t.Errorf("the client has connected %d times: the session was not matched", n)
	}
}

// Case 10.
func TestSilentNotebookFallsAtTheFreshnessDeadline(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{})
	s.startAgent(t, admit)
	s.admitted(t)

	// A notebook that was connected before the policy hears of it too: it goes
	// on reporting in time.
	before := s.result(t).GetCollectedAt().AsTime()
	s.shortenFreshness(t)
	s.awaitResult(t, "a report within the new freshness", func(r *posturev1.Result) bool {
		if r.GetVerdict() != admit {
			t.Fatalf("a notebook that reports is judged %s", r.GetVerdict())
		}
		return r.GetCollectedAt().AsTime().After(before)
	})

	s.agent.Kill()
	deadline := s.result(t).GetFreshUntil().AsTime()
	last := s.fallsToQuarantine(t)
	t.Logf("the last packet came %s after the deadline", last.Sub(deadline))
	if after := last.Sub(deadline); after < -time.Second || after > late {
		t.Errorf("the session fell %s after the freshness deadline", after)
	}
}
