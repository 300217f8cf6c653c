package intake

import (
	"crypto/rand"
	"time"

	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

const (
	// presenceTimeout is how long the first of two streams may take to show that
	// its notebook is still there.
	presenceTimeout = 10 * time.Second
	// presenceCapability is from which capability on agents answer.
	presenceCapability = 3
)

// meeting is two streams of one device at the same time. Mostly the first one
// is what is left of a connection that broke. Its notebook is asked: one that
// answers a nonce made after the second stream began, while the second one is
// used too, is another machine. The Service guards it.
type meeting struct {
	nonce         []byte
	first, second *session
	// answered: the first has sent the nonce back. used: the second has sent more
	// than its hello.
	answered, used bool
	over           bool
}

// begin makes the session its device's newest. Until it has said hello, and the
// one before has had its chance to answer, both are served.
func (s *Service) begin(st *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosing
	}
	before := s.live[st.deviceID]
	if before != nil && !before.greeted {
		before.end(errReplaced)
		before = before.before
	}
	if before != nil && before.meeting != nil {
		if before != before.meeting.first {
			return errMeeting
		}
		st.meeting, before.meeting.second = before.meeting, st // in place of one that has left
	}
	st.began, st.before = s.Now(), before
	s.live[st.deviceID] = st
	s.Metrics.streams(len(s.live))
	return nil
}

// greeted is told the hello of a stream: now it takes the place of the one
// before, or meets it.
func (s *Service) greeted(st *session, capability uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.greeted, st.capability = true, capability
	first := st.before
	switch {
	case first == nil || st.meeting != nil:
	case first.capability < presenceCapability:
		first.end(errReplaced)
	default:
		m := &meeting{nonce: make([]byte, nonceBytes), first: first, second: st}
		rand.Read(m.nonce) // never returns an error
		first.meeting, st.meeting = m, m
		first.order(func(o *orders) { o.presence = &agentv1.PresenceCheck{Nonce: m.nonce} })
		time.AfterFunc(presenceTimeout, func() { s.part(m) })
	}
}

// present takes an answer to PresenceCheck.
func (s *Service) present(st *session, p *agentv1.Presence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := st.meeting; m != nil && st == m.first && same(p.GetNonce(), m.nonce) {
		m.answered = true
		s.conclude(m)
	}
}

// alive is told that a stream has sent something after its hello. The caller
// has locked the Service.
func (s *Service) alive(st *session) {
	if m := st.meeting; m != nil && st == m.second {
		m.used = true
		s.conclude(m)
	}
}

// conclude ends a meeting of two machines.
func (s *Service) conclude(m *meeting) {
	if m.over || !m.answered || !m.used {
		return
	}
	m.close()
	m.first.end(errCloned)
	m.second.end(errCloned)
	s.raiseLocked(m.first.deviceID, alarmCloned, "two streams with this identity were used at the same time")
}

// part ends a meeting in which not both were there.
func (s *Service) part(m *meeting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.over {
		return
	}
	m.close()
	if m.answered {
		m.second.end(errAbsent)
	} else {
		m.first.end(errReplaced)
	}
}

func (m *meeting) close() {
	m.over = true
	m.first.meeting, m.second.meeting = nil, nil
}

// finish forgets a session that has ended.
func (s *Service) finish(st *session) {
	st.questions.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	// Of one that has answered it counts that it did.
	if m := st.meeting; m != nil && st == m.first && !m.answered {
		m.close()
	}
	switch newest := s.live[st.deviceID]; {
	case newest == nil:
	case newest != st:
		if newest.before == st {
			newest.before = st.before
		}
	case st.before != nil:
		s.live[st.deviceID] = st.before
	default:
		delete(s.live, st.deviceID)
	}
	s.Metrics.streams(len(s.live))
}
