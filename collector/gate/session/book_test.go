package session

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

var (
	begin   = time.Date(2026, 11, 21, 14, 5, 0, 0, time.UTC)
	key     = Key{"vpn", 1}
	someone = sum("someone")
	address = netip.MustParseAddr("10.8.0.2")
	since   = begin.Truncate(time.Second)
	errAway = errors.New("away")
)

const (
	ttl  = 15 * time.Second
	stay = time.Hour
)

func sum(name string) []byte {
	s := sha256.Sum256([]byte(name))
	return s[:]
}

// story is a book with a clock, and leases that are numbered as a collector
// would.
type story struct {
	*Book
	t        *testing.T
	now      time.Time
	sequence uint64
}

func tell(t *testing.T, change ...func(*Rules)) *story {
	n := 0
	r := Rules{Gateway: "g1", QuarantineFor: stay, NewID: func(k Key) string {
		n++
		return fmt.Sprintf("s%d", n)
	}}
	for _, c := range change {
		c(&r)
	}
	return &story{Book: NewBook(r), t: t, now: begin}
}

func (s *story) at() lease.Position {
	s.sequence++
	return lease.Position{Epoch: 1, Sequence: s.sequence}
}

func (s *story) lease(id string, v posturev1.Verdict) *gatev1.Lease {
	at := s.at()
	l := &gatev1.Lease{Gateway: "g1", SessionId: id, CertificateSha256: someone, Verdict: v, Epoch: at.Epoch, Sequence: at.Sequence}
	if v != deny {
		l.Ttl = durationpb.New(ttl)
	} else {
		l.Code = "7K4-QX2"
	}
	return l
}

func tried(k Key, again bool, fingerprint []byte) Tried {
	return Tried{Attempt: Attempt{Key: k, Handshake: 1}, Peer: Peer{Fingerprint: fingerprint, Name: "n", Outer: "1.2.3.4:5"}, Again: again}
}

func established(k Key) Established {
	return Established{Key: k, Peer: Peer{Fingerprint: someone, Name: "n", Outer: "1.2.3.4:5"},
		Addresses: []netip.Addr{address}, Since: since, Process: 4711}
}

func live(k Key) Live {
	return Live{Key: k, Name: "n", Outer: "1.2.3.4:5", Addresses: []netip.Addr{address}, Since: since}
}

// admitted tells how a session came up; it is "s1".
func (s *story) admitted(v posturev1.Verdict) {
	s.t.Helper()
	s.Happened(tried(key, false, someone), s.now)
	if todo := s.Answered(key, "s1", Answer{Lease: s.lease("s1", v)}, nil, s.now); len(todo.Allow) != 1 {
		s.t.Fatalf("not allowed: %+v", todo)
	}
	if todo := s.Happened(established(key), s.now); len(todo.Grants) != 1 || len(todo.Cut) != 0 {
		s.t.Fatalf("not up: %+v", todo)
	}
}

func (s *story) snapshot(list ...*gatev1.Standing) Todo { return s.Snapshot(s.at(), list, s.now) }
func (s *story) change(list ...*gatev1.Standing) Todo   { return s.Changed(s.at(), list, s.now) }

func stands(v posturev1.Verdict) *gatev1.Standing {
	return &gatev1.Standing{CertificateSha256: someone, Verdict: v, Code: "7K4-QX2"}
}

// isCut checks that a session loses everything, then is ended.
func isCut(t *testing.T, todo Todo) {
	t.Helper()
	if len(todo.Cut) != 1 || todo.Cut[0].Key != key || !slices.Contains(todo.Cut[0].Addresses, address) {
		t.Errorf("not cut: %+v", todo)
	}
	if !slices.Contains(todo.Grants, Grant{Address: address}) || len(todo.Allow) != 0 {
		t.Errorf("keeps its packets: %+v", todo)
	}
}

func alarms(todo Todo) (kinds []string) {
	for _, r := range todo.Reports {
		if a := r.GetAlarm(); a != nil {
			kinds = append(kinds, a.GetKind())
		}
	}
	return kinds
}

func TestAdmittedSessionGetsItsLeaseAndThenQuarantine(t *testing.T) {
	s := tell(t)
	if todo := s.Happened(tried(key, false, someone), s.now); len(todo.Ask) != 1 || todo.Ask[0].Facts.GetSessionId() != "s1" || len(todo.Allow) != 0 {
		t.Fatalf("%+v", todo)
	}
	todo := s.Answered(key, "s1", Answer{Lease: s.lease("s1", admitVerdict)}, nil, s.now)
	if len(todo.Allow) != 1 || len(todo.Grants) != 0 {
		t.Fatalf("answered: %+v", todo)
	}
	todo = s.Happened(established(key), s.now.Add(time.Second))
	want := Grant{Address: address, Admit: begin.Add(ttl), Quarantine: begin.Add(ttl + stay)}
	if !slices.Equal(todo.Grants, []Grant{want}) || !todo.Save || todo.Reports[0].GetUp().GetVerdict() != admitVerdict {
		t.Fatalf("established: %+v", todo)
	}
	if got := s.NextDeadline(); !got.Equal(begin.Add(ttl)) {
		t.Errorf("next deadline %s", got)
	}
	if ups := s.Ups(s.now); len(ups) != 1 || ups[0].GetUp().GetSession().GetTunnelAddresses()[0] != "10.8.0.2" {
		t.Errorf("%v", ups)
	}
}

func TestRefusalNamesReasonAndCode(t *testing.T) {
	s := tell(t)
	s.Happened(tried(key, false, someone), s.now)
	todo := s.Answered(key, "s1", Answer{Lease: s.lease("s1", deny), Message: &posturev1.LocalText{De: "Kein Zugang: zu alt."}}, nil, s.now)
	if len(todo.Deny) != 1 || todo.Deny[0].Text != "Kein Zugang: zu alt. Vorgangsnummer: 7K4-QX2" || len(todo.Allow) != 0 {
		t.Errorf("%+v", todo)
	}
	if todo := s.Happened(established(key), s.now); !slices.Equal(alarms(todo), []string{alarmUnadmitted}) {
		t.Errorf("a refused session came up: %+v", todo)
	}
}

func TestWithoutCertificateNobodyIsAsked(t *testing.T) {
	for _, f := range [][]byte{nil, {1, 2, 3}} {
		if todo := tell(t).Happened(tried(key, false, f), begin); len(todo.Deny) != 1 || len(todo.Ask) != 0 {
			t.Errorf("%x: %+v", f, todo)
		}
	}
}

func TestSessionThatNobodyAdmittedIsCut(t *testing.T) {
	for name, before := range map[string]func(*story){
		"never heard of": func(*story) {},
		"not answered":   func(s *story) { s.Happened(tried(key, false, someone), s.now) },
		"listed at attach": func(s *story) {
			isCut(t, s.Happened(Attached{Server: "vpn", Process: 4711, Live: []Live{live(key)}}, s.now))
			s.Gone(key, "s1", nil, s.now)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			before(s)
			todo := s.Happened(established(key), s.now)
			isCut(t, todo)
			if !slices.Equal(alarms(todo), []string{alarmUnadmitted}) {
				t.Errorf("alarms %v", alarms(todo))
			}
			if todo := s.Happened(tried(key, true, someone), s.now); len(todo.Deny) != 1 || len(todo.Ask) != 0 {
				t.Errorf("renegotiates: %+v", todo)
			}
		})
	}
}

func TestSessionIsCutWhenItIsNotWhatWasAdmitted(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Established)
		alarm  string
	}{
		"another certificate": {func(e *Established) { e.Fingerprint = sum("other") }, alarmIdentity},
		"no address":          {func(e *Established) { e.Addresses = nil }, alarmAddress},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			s.Happened(tried(key, false, someone), s.now)
			s.Answered(key, "s1", Answer{Lease: s.lease("s1", admitVerdict)}, nil, s.now)
			e := established(key)
			c.change(&e)
			todo := s.Happened(e, s.now)
			if len(todo.Cut) != 1 || !slices.Equal(alarms(todo), []string{c.alarm}) {
				t.Errorf("%+v", todo)
			}
			for _, g := range todo.Grants {
				if !g.Admit.IsZero() || !g.Quarantine.IsZero() {
					t.Errorf("granted %+v", g)
				}
			}
		})
	}
}

func TestStandingsLowerWhatIsUp(t *testing.T) {
	s := tell(t)
	s.snapshot(stands(admitVerdict))
	s.admitted(admitVerdict)
	todo := s.change(stands(quarantine))
	if len(todo.Flips) != 1 || todo.Flips[0].Cause.Sequence != s.sequence || !slices.Equal(todo.Forget, []netip.Addr{address}) ||
		!slices.Equal(todo.Grants, []Grant{{Address: address, Quarantine: begin.Add(ttl + stay)}}) {
		t.Fatalf("to quarantine: %+v", todo)
	}
	if todo := s.change(stands(admitVerdict)); len(todo.Grants) != 0 {
		t.Errorf("rose without a lease: %+v", todo)
	}
	if todo := s.Renewed([]*gatev1.Lease{s.lease("s1", admitVerdict)}, s.now); len(todo.Grants) != 1 || todo.Grants[0].Admit.IsZero() {
		t.Errorf("did not rise with its lease: %+v", todo)
	}
	todo = s.change(stands(deny))
	isCut(t, todo)
	if todo.Cut[0].Cause.Sequence != s.sequence || !strings.Contains(todo.Cut[0].Text, "7K4-QX2") {
		t.Errorf("%+v", todo.Cut)
	}
	todo = s.Gone(key, "s1", nil, s.now)
	if len(todo.Grants) != 0 || todo.Reports[0].GetDown().GetSessionId() != "s1" || len(s.Ups(s.now)) != 0 {
		t.Errorf("gone: %+v", todo)
	}
}

func TestRemovedAndForgottenIdentitiesAreCut(t *testing.T) {
	for name, how := range map[string]func(*story) Todo{
		"removed": func(s *story) Todo {
			return s.change(&gatev1.Standing{CertificateSha256: someone, Verdict: admitVerdict, Removed: true})
		},
		"not in the next snapshot": func(s *story) Todo { return s.snapshot() },
		"a verdict of the future":  func(s *story) Todo { return s.change(stands(7)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			s.snapshot(stands(admitVerdict))
			s.admitted(admitVerdict)
			isCut(t, how(s))
		})
	}
}

func TestStandingBetweenAnswerAndSession(t *testing.T) {
	s := tell(t)
	s.snapshot(stands(admitVerdict))
	s.Happened(tried(key, false, someone), s.now)
	s.Answered(key, "s1", Answer{Lease: s.lease("s1", admitVerdict)}, nil, s.now)
	s.change(stands(deny))
	isCut(t, s.Happened(established(key), s.now))

	// And one that overtakes the answer.
	s = tell(t)
	s.snapshot(stands(admitVerdict))
	s.Happened(tried(key, false, someone), s.now)
	old := s.lease("s1", admitVerdict)
	s.change(stands(deny))
	if todo := s.Answered(key, "s1", Answer{Lease: old}, nil, s.now); len(todo.Deny) != 1 || len(todo.Allow) != 0 {
		t.Errorf("%+v", todo)
	}
}

func TestOldNewsChangesNothing(t *testing.T) {
	s := tell(t)
	old := s.at()
	s.snapshot(stands(admitVerdict))
	s.admitted(admitVerdict)
	if todo := s.Changed(old, []*gatev1.Standing{stands(deny)}, s.now); len(todo.Cut) != 0 {
		t.Errorf("an old change: %+v", todo)
	}
	if todo := s.Snapshot(old, nil, s.now); len(todo.Cut) != 0 || !slices.Equal(alarms(todo), []string{alarmRollback}) {
		t.Errorf("an old snapshot: %+v", todo)
	}
}

func TestLeasesThatAreNotOursAreIgnored(t *testing.T) {
	for name, change := range map[string]func(*gatev1.Lease){
		"another gateway":     func(l *gatev1.Lease) { l.Gateway = "g2" },
		"another session":     func(l *gatev1.Lease) { l.SessionId = "s2" },
		"another certificate": func(l *gatev1.Lease) { l.CertificateSha256 = sum("other") },
		"the same again":      func(l *gatev1.Lease) { l.Sequence = 2 },
		"an older one":        func(l *gatev1.Lease) { l.Sequence = 1 },
		"an older epoch":      func(l *gatev1.Lease) { l.Epoch = 0; l.Sequence = 99 },
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			s.snapshot(stands(admitVerdict)) // sequence 1
			s.admitted(quarantine)           // sequence 2
			l := s.lease("s1", admitVerdict)
			change(l)
			if todo := s.Renewed([]*gatev1.Lease{l}, s.now); len(todo.Grants) != 0 {
				t.Errorf("renewed: %+v", todo)
			}
			s = tell(t)
			s.snapshot(stands(admitVerdict))
			s.Happened(tried(key, false, someone), s.now)
			l = s.lease("s1", admitVerdict)
			change(l)
			if l.GetEpoch() == 1 && l.GetGateway() == "g1" && l.GetSessionId() == "s1" && string(l.GetCertificateSha256()) == string(someone) {
				return // as a first lease it would be new
			}
			todo := s.Answered(key, "s1", Answer{Lease: l}, nil, s.now)
			if len(todo.Allow) != 0 || len(todo.Deny) != 1 || !slices.Equal(alarms(todo), []string{alarmRollback}) {
				t.Errorf("answered: %+v", todo)
			}
		})
	}
}

func TestLeaseWithoutTimeAdmitsNobody(t *testing.T) {
	s := tell(t)
	s.Happened(tried(key, false, someone), s.now)
	l := s.lease("s1", admitVerdict)
	l.Ttl = nil
	s.Answered(key, "s1", Answer{Lease: l}, nil, s.now)
	for _, g := range s.Happened(established(key), s.now).Grants {
		if g.Admit.After(s.now) {
			t.Errorf("%+v", g)
		}
	}
}

func TestRenewalExtends(t *testing.T) {
	s := tell(t)
	s.admitted(admitVerdict)
	later := s.now.Add(5 * time.Second)
	todo := s.Renewed([]*gatev1.Lease{s.lease("s1", admitVerdict)}, later)
	if !slices.Equal(todo.Grants, []Grant{{Address: address, Admit: later.Add(ttl), Quarantine: later.Add(ttl + stay)}}) || len(todo.Reports) != 0 {
		t.Errorf("%+v", todo)
	}
	isCut(t, s.Renewed([]*gatev1.Lease{s.lease("s1", deny)}, later))
}

// A collector may refuse one session of an identity that it admits: one that
// nobody has proven to be the notebook's own. The lease alone says so.
func TestALeaseSaysLessThanTheStanding(t *testing.T) {
	s := tell(t)
	s.snapshot(stands(admitVerdict))
	s.admitted(quarantine)
	for name, todo := range map[string]Todo{
		"the standing, once more": s.change(stands(admitVerdict)),
		"a snapshot":              s.snapshot(stands(admitVerdict)),
		"nobody answers":          s.Answered(key, "s1", Answer{}, errors.New("away"), s.now),
		"a renewal":               s.Renewed([]*gatev1.Lease{s.lease("s1", quarantine)}, s.now),
	} {
		for _, g := range todo.Grants {
			if !g.Admit.IsZero() {
				t.Errorf("%s lifts it: %+v", name, todo)
			}
		}
	}
	if todo := s.Renewed([]*gatev1.Lease{s.lease("s1", admitVerdict)}, s.now); len(todo.Grants) != 1 || todo.Grants[0].Admit.IsZero() {
		t.Errorf("not lifted by its lease: %+v", todo)
	}
	if todo := s.Renewed([]*gatev1.Lease{s.lease("s1", quarantine)}, s.now); len(todo.Flips) != 1 || todo.Flips[0].Cause.Sequence != s.sequence {
		t.Errorf("not lowered by its lease: %+v", todo)
	}
	todo := s.Renewed([]*gatev1.Lease{s.lease("s1", deny)}, s.now)
	isCut(t, todo)
	if todo.Cut[0].Cause.Sequence != s.sequence || !strings.Contains(todo.Cut[0].Text, "7K4-QX2") {
		t.Errorf("%+v", todo.Cut)
	}
	if todo := s.Renewed([]*gatev1.Lease{s.lease("s1", deny), s.lease("s1", admitVerdict)}, s.now); len(todo.Grants)+len(todo.Cut) != 0 {
		t.Errorf("a session that is cut takes leases: %+v", todo)
	}
}

// Refused between the answer and its first packet.
func TestALeaseThatRefusesASessionOnItsWay(t *testing.T) {
	s := tell(t)
	s.Happened(tried(key, false, someone), s.now)
	s.Answered(key, "s1", Answer{Lease: s.lease("s1", quarantine)}, nil, s.now)
	s.Renewed([]*gatev1.Lease{s.lease("s1", deny)}, s.now)
	isCut(t, s.Happened(established(key), s.now))
}

func TestLeaseEndIsQuarantineThenTheEnd(t *testing.T) {
	s := tell(t)
	s.admitted(admitVerdict)
	if todo := s.Tick(begin.Add(ttl - time.Millisecond)); len(todo.Grants) != 0 {
		t.Errorf("too early: %+v", todo)
	}
	todo := s.Tick(begin.Add(ttl))
	if !slices.Equal(todo.Grants, []Grant{{Address: address, Quarantine: begin.Add(ttl + stay)}}) || len(todo.Flips) != 1 || todo.Flips[0].Cause != (lease.Position{}) {
		t.Fatalf("at its end: %+v", todo)
	}
	if got := s.NextDeadline(); !got.Equal(begin.Add(ttl + stay)) {
		t.Errorf("next deadline %s", got)
	}
	isCut(t, s.Tick(begin.Add(ttl+stay)))
	if !s.NextDeadline().IsZero() {
		t.Error("a session that is being cut has a deadline")
	}

	s = tell(t, func(r *Rules) { r.QuarantineFor = 0 })
	s.admitted(admitVerdict)
	isCut(t, s.Tick(begin.Add(ttl)))
}

func TestNewSessionsWithoutACollector(t *testing.T) {
	known := func(r *Rules) { r.QuarantineKnown = true }
	for _, c := range []struct {
		name     string
		rules    []func(*Rules)
		standing []*gatev1.Standing
		snapshot bool
		want     posturev1.Verdict
	}{
		{"refused by default", nil, []*gatev1.Standing{stands(admitVerdict)}, true, deny},
		{"known", []func(*Rules){known}, []*gatev1.Standing{stands(admitVerdict)}, true, quarantine},
		{"known, in quarantine", []func(*Rules){known}, []*gatev1.Standing{stands(quarantine)}, true, quarantine},
		{"known, denied", []func(*Rules){known}, []*gatev1.Standing{stands(deny)}, true, deny},
		{"unknown", []func(*Rules){known}, nil, true, deny},
		{"no snapshot", []func(*Rules){known}, nil, false, deny},
		{"no quarantine", []func(*Rules){known, func(r *Rules) { r.QuarantineFor = 0 }}, []*gatev1.Standing{stands(admitVerdict)}, true, deny},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := tell(t, c.rules...)
			if c.snapshot {
				s.snapshot(c.standing...)
			}
			s.Happened(tried(key, false, someone), s.now)
			todo := s.Answered(key, "s1", Answer{}, errAway, s.now)
			if c.want == deny {
				if len(todo.Deny) != 1 || len(todo.Allow) != 0 || !strings.Contains(todo.Deny[0].Text, "nicht erreichbar") {
					t.Errorf("%+v", todo)
				}
				return
			}
			if len(todo.Allow) != 1 {
				t.Fatalf("%+v", todo)
			}
			todo = s.Happened(established(key), s.now)
			if !slices.Equal(todo.Grants, []Grant{{Address: address, Quarantine: begin.Add(stay)}}) {
				t.Errorf("%+v", todo.Grants)
			}
		})
	}
}

func TestRenegotiation(t *testing.T) {
	t.Run("asks again", func(t *testing.T) {
		s := tell(t)
		s.admitted(admitVerdict)
		if todo := s.Happened(tried(key, true, someone), s.now); len(todo.Ask) != 1 || len(todo.Allow) != 0 {
			t.Fatalf("%+v", todo)
		}
		if todo := s.Answered(key, "s1", Answer{Lease: s.lease("s1", admitVerdict)}, nil, s.now); len(todo.Allow) != 1 {
			t.Errorf("%+v", todo)
		}
	})
	t.Run("denied is cut", func(t *testing.T) {
		s := tell(t)
		s.admitted(admitVerdict)
		s.Happened(tried(key, true, someone), s.now)
		todo := s.Answered(key, "s1", Answer{Lease: s.lease("s1", deny)}, nil, s.now)
		isCut(t, todo)
		if len(todo.Deny) != 1 {
			t.Errorf("%+v", todo.Deny)
		}
	})
	t.Run("another certificate is cut", func(t *testing.T) {
		s := tell(t)
		s.admitted(admitVerdict)
		todo := s.Happened(tried(key, true, sum("other")), s.now)
		isCut(t, todo)
		if len(todo.Deny) != 1 || !slices.Equal(alarms(todo), []string{alarmIdentity}) {
			t.Errorf("%+v", todo)
		}
	})
	t.Run("without a collector the lease decides", func(t *testing.T) {
		s := tell(t)
		s.admitted(admitVerdict)
		s.Happened(tried(key, true, someone), s.now)
		if todo := s.Answered(key, "s1", Answer{}, errAway, s.now); len(todo.Allow) != 1 || len(todo.Grants) != 0 {
			t.Errorf("%+v", todo)
		}
	})
	t.Run("a renewal overtakes the answer", func(t *testing.T) {
		s := tell(t)
		s.admitted(admitVerdict)
		s.Happened(tried(key, true, someone), s.now)
		old := s.lease("s1", admitVerdict)
		s.Renewed([]*gatev1.Lease{s.lease("s1", quarantine)}, s.now)
		if todo := s.Answered(key, "s1", Answer{Lease: old}, nil, s.now); len(alarms(todo)) != 0 || len(todo.Grants) != 0 {
			t.Errorf("%+v", todo)
		}
	})
}

func TestAddressOfAnotherSession(t *testing.T) {
	s := tell(t)
	s.admitted(admitVerdict)
	second := Key{"vpn", 2}
	s.Happened(tried(second, false, someone), s.now)
	s.Answered(second, "s2", Answer{Lease: s.lease("s2", quarantine)}, nil, s.now)
	todo := s.Happened(established(second), s.now)
	if last := todo.Grants[len(todo.Grants)-1]; !last.Admit.IsZero() || todo.Reports[0].GetDown().GetSessionId() != "s1" {
		t.Errorf("%+v", todo)
	}
	// The end of the first, told late, takes nothing from the second.
	if todo := s.Happened(Ended{key}, s.now); len(todo.Grants) != 0 {
		t.Errorf("%+v", todo)
	}
}

func TestEndTakesTheAddressAtOnce(t *testing.T) {
	s := tell(t)
	s.admitted(admitVerdict)
	todo := s.Happened(Ended{key}, s.now)
	if !slices.Equal(todo.Grants, []Grant{{Address: address}}) || !slices.Equal(todo.Forget, []netip.Addr{address}) || !todo.Save {
		t.Errorf("%+v", todo)
	}
}

func TestListings(t *testing.T) {
	asked := begin.Add(time.Minute)
	t.Run("no longer listed is over", func(t *testing.T) {
		s := tell(t)
		s.admitted(admitVerdict)
		if todo := s.Listed("other", asked, nil, asked); len(todo.Reports) != 0 {
			t.Errorf("another server's listing: %+v", todo)
		}
		if todo := s.Listed("vpn", begin, nil, begin); len(todo.Reports) != 0 {
			t.Errorf("asked before it was up: %+v", todo)
		}
		if todo := s.Listed("vpn", asked, nil, asked); len(todo.Grants) != 1 || todo.Reports[0].GetDown() == nil {
			t.Errorf("%+v", todo)
		}
	})
	t.Run("unknown twice is cut", func(t *testing.T) {
		s := tell(t)
		if todo := s.Listed("vpn", asked, []Live{live(key)}, asked); len(todo.Cut) != 0 {
			t.Errorf("at once: %+v", todo)
		}
		isCut(t, s.Listed("vpn", asked, []Live{live(key)}, asked))
	})
	t.Run("roaming is reported", func(t *testing.T) {
		s := tell(t)
		s.admitted(admitVerdict)
		l := live(key)
		l.Outer = "5.6.7.8:9"
		todo := s.Listed("vpn", asked, []Live{l}, asked)
		if r := todo.Reports[0].GetRoamed(); r.GetOuterAddress() != l.Outer || len(r.GetTunnelAddresses()) != 1 || len(todo.Grants) != 0 {
			t.Errorf("%+v", todo)
		}
	})
	t.Run("what survives is cut again", func(t *testing.T) {
		s := tell(t)
		s.snapshot(stands(admitVerdict))
		s.admitted(admitVerdict)
		isCut(t, s.change(stands(deny)))
		if todo := s.Listed("vpn", asked, []Live{live(key)}, asked); len(todo.Cut) != 0 {
			t.Errorf("while it is being cut: %+v", todo)
		}
		if todo := s.Gone(key, "s1", errAway, asked); !slices.Equal(alarms(todo), []string{alarmSurvives}) {
			t.Errorf("%+v", todo)
		}
		isCut(t, s.Listed("vpn", asked, []Live{live(key)}, asked))
	})
	t.Run("handshakes that came to nothing are forgotten", func(t *testing.T) {
		s := tell(t)
		s.Happened(tried(key, false, someone), s.now)
		late := begin.Add(time.Hour)
		s.Listed("vpn", late, nil, late)
		if len(s.sessions) != 0 {
			t.Errorf("%v", s.sessions)
		}
	})
}

func TestRestartMatchesOrCuts(t *testing.T) {
	attached := Attached{Server: "vpn", Process: 4711, Live: []Live{live(key)}}
	for _, c := range []struct {
		name    string
		change  func(*Attached)
		matched bool
	}{
		{"the same session", func(*Attached) {}, true},
		{"the same, roamed", func(a *Attached) { a.Live[0].Outer = "5.6.7.8:9" }, true},
		{"another process", func(a *Attached) { a.Process++ }, false},
		{"another begin", func(a *Attached) { a.Live[0].Since = since.Add(time.Second) }, false},
		{"another name", func(a *Attached) { a.Live[0].Name = "m" }, false},
		{"another address", func(a *Attached) { a.Live[0].Addresses = []netip.Addr{netip.MustParseAddr("10.8.0.3")} }, false},
		{"another number", func(a *Attached) { a.Live[0].CID++ }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := tell(t)
			s.admitted(admitVerdict)
			path := t.TempDir() + "/sessions.json"
			if err := s.record(path); err != nil {
				t.Fatal(err)
			}
			next := tell(t)
			if err := next.restore(path, next.now); err != nil {
				t.Fatal(err)
			}
			a := attached
			a.Live = slices.Clone(a.Live)
			c.change(&a)
			todo := next.Happened(a, next.now)
			if c.matched {
				if len(todo.Cut) != 0 || len(todo.Ask) != 1 || len(todo.Grants) != 0 || todo.Ask[0].Facts.GetSessionId() != "s1" {
					t.Errorf("%+v", todo)
				}
				// The lease of before does not count again.
				old := s.lease("s1", admitVerdict)
				old.Sequence = 1
				if todo := next.Renewed([]*gatev1.Lease{old}, next.now); len(todo.Grants) != 0 {
					t.Errorf("an old lease: %+v", todo)
				}
				return
			}
			if len(todo.Cut) != 1 || !slices.Contains(todo.Grants, Grant{Address: address}) || !slices.Equal(alarms(todo), []string{alarmUnadmitted}) {
				t.Errorf("%+v", todo)
			}
		})
	}
}

func TestRestartWhileASessionIsCut(t *testing.T) {
	s := tell(t)
	s.snapshot(stands(admitVerdict))
	s.admitted(admitVerdict)
	s.change(stands(deny))
	path := t.TempDir() + "/sessions.json"
	if err := s.record(path); err != nil {
		t.Fatal(err)
	}
	next := tell(t)
	if err := next.restore(path, next.now); err != nil {
		t.Fatal(err)
	}
	todo := next.Happened(Attached{Server: "vpn", Process: 4711, Live: []Live{live(key)}}, next.now)
	isCut(t, todo)
	if len(alarms(todo)) != 0 {
		t.Errorf("alarms %v", alarms(todo))
	}
}

func TestTextsForUsers(t *testing.T) {
	long := strings.Repeat("Übergangsfrist abgelaufen, ", 20)
	for _, c := range []struct{ de, en, code, want string }{
		{"Kein Zugang.", "No access.", "7K4-QX2", "Kein Zugang. Vorgangsnummer: 7K4-QX2"},
		{"", "No access.", "7K4-QX2", "No access. Vorgangsnummer: 7K4-QX2"},
		{"", "", "7K4-QX2", refusedText + " Vorgangsnummer: 7K4-QX2"},
		{"Kein Zugang. Code 7K4-QX2.", "", "7K4-QX2", "Kein Zugang. Code 7K4-QX2."},
		{"Zwei\nZeilen", "", "", "Zwei Zeilen"},
	} {
		if got := refusalText(c.de, c.en, c.code); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	got := refusalText(long, "", "7K4-QX2")
	if len(got) > maxText || !strings.HasSuffix(got, " … Vorgangsnummer: 7K4-QX2") {
		t.Errorf("%d bytes: %q", len(got), got)
	}
	for _, own := range []string{unreachableText, noCertificateText, notAdmittedText, refusedText} {
		if len(own) > maxText {
			t.Errorf("%d bytes: %q", len(own), own)
		}
	}
}
