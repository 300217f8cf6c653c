package session

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// FuzzBook lets anything happen in any order, and holds the packet filter that
// would come of it against what was signed: an address has full access only
// under an ADMIT lease that has not ended, and no access at all unless an
// identity's newest verdict was more than DENY.
func FuzzBook(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3})
	f.Add([]byte{10, 2, 0, 0, 1, 2, 2, 0, 30, 3, 50, 60, 7, 4, 0})
	f.Add([]byte{0, 0, 1, 2, 2, 0, 6, 200, 7, 0, 8, 1, 9, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		m := &model{story: tell(t, func(r *Rules) { r.QuarantineKnown = len(script)%2 == 0 }),
			filter: map[netip.Addr]Grant{}}
		for i := 0; i+1 < len(script) && i < 400; i += 2 {
			m.step(script[i], script[i+1])
			m.check(t, i)
		}
	})
}

type model struct {
	*story
	filter map[netip.Addr]Grant
}

func (m *model) step(what, with byte) {
	k := Key{"vpn", uint64(with % 3)}
	id := func() string {
		if e := m.sessions[k]; e != nil {
			return e.id
		}
		return "s1"
	}()
	a := netip.AddrFrom4([4]byte{10, 8, 0, with % 2})
	v := posturev1.Verdict(with>>2) % 3
	var todo Todo
	switch what % 11 {
	case 0:
		todo = m.Happened(tried(k, with&128 != 0, someone), m.now)
	case 1:
		l := m.signed(id, v, with)
		todo = m.Answered(k, id, Answer{Lease: l}, nil, m.now)
	case 2:
		e := established(k)
		e.Addresses = []netip.Addr{a}
		todo = m.Happened(e, m.now)
	case 3:
		todo = m.Happened(Ended{k}, m.now)
	case 4:
		todo = m.change(stands(v))
	case 5:
		todo = m.snapshot(stands(v))
	case 6:
		m.now = m.now.Add(time.Duration(with) * 100 * time.Millisecond)
		todo = m.Tick(m.now)
	case 7:
		todo = m.Renewed([]*gatev1.Lease{m.signed(id, v, with)}, m.now)
	case 8:
		l := live(k)
		l.Addresses = []netip.Addr{a}
		todo = m.Listed("vpn", m.now, []Live{l}, m.now)
	case 9:
		todo = m.Gone(k, id, nil, m.now)
	case 10:
		todo = m.Answered(k, id, Answer{}, errAway, m.now)
	}
	for _, g := range todo.Grants {
		m.filter[g.Address] = g
	}
}

// signed is a lease as the collector would sign it; sometimes an old one.
func (m *model) signed(id string, v posturev1.Verdict, with byte) *gatev1.Lease {
	l := m.lease(id, v)
	if with&64 != 0 {
		l.Sequence = uint64(with % 8)
		l.Ttl = durationpb.New(time.Hour)
	}
	return l
}

func (m *model) check(t *testing.T, step int) {
	owner := map[netip.Addr]*entry{}
	for _, e := range m.sessions {
		for _, a := range e.addresses {
			if e.state == up {
				if owner[a] != nil {
					t.Fatalf("step %d: two sessions are up with %s", step, a)
				}
				owner[a] = e
			}
		}
	}
	for a, g := range m.filter {
		e := owner[a]
		if e == nil && (g.Admit.After(m.now) || g.Quarantine.After(m.now)) {
			t.Fatalf("step %d: %s has access and no session", step, a)
		}
		if e != nil && g.Admit.After(m.now) && e.verdict != admitVerdict {
			t.Fatalf("step %d: %s is admitted, its session is not: %s", step, a, e.verdict)
		}
		if s, ok := m.standingOf(fingerprint(someone)); e != nil && ok && s.at.After(e.at) && s.verdict < e.verdict {
			t.Fatalf("step %d: %s stands at %s by a newer word, and has %s", step, a, s.verdict, e.verdict)
		}
	}
}

func FuzzJournal(f *testing.F) {
	s := NewBook(Rules{})
	s.sessions[key] = &entry{Key: key, id: "s1", state: up, verdict: admitVerdict, addresses: []netip.Addr{address}, since: since}
	path := f.TempDir() + "/sessions.json"
	if err := s.record(path); err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(text[:len(text)/2])
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := parseJournal(text, begin)
		if err != nil && entries != nil {
			t.Fatal("an error came with sessions")
		}
		for _, e := range entries {
			if e.id == "" || !e.adopted || !e.until.IsZero() || (e.verdict == deny) != (e.state == cutting) {
				t.Fatalf("%+v", e)
			}
		}
	})
}
