package admission

import (
	"cmp"
	"encoding/hex"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/audit"
	"pfoertner/internal/lease"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// missedHeartbeats is how many heartbeats a gateway may miss before it counts
// as lost.
const missedHeartbeats = 3

// gate is one gateway and its live sessions. Guarded by Desk.mu but for seen.
type gate struct {
	name     string
	sessions map[string]*session
	// watcher is the gateway's open Watch; nil when there is none.
	watcher *Watcher
	// renew holds the sessions that get a new lease with the next Take.
	renew   map[*session]struct{}
	renewal deadline
	// tunnel is what policy says of tunnel proofs here.
	tunnel tunnelRule
	// seen is the last sign of life, Unix nanoseconds.
	seen atomic.Int64
}

// session is one live session. Guarded by Desk.mu.
type session struct {
	gate        *gate
	metrics     *Metrics
	id          string
	certificate fingerprint
	addresses   []string
	since       time.Time
	// verdict is what the session was last decided to, or reported with.
	verdict     posturev1.Verdict
	leaseEndsAt time.Time
	// cutPending: denied while it was live, its end not confirmed.
	cutPending bool
	// ordered: the gateway knows that the session has to end. From then on only
	// the gateway can say that it lives.
	ordered bool
	// The last lowering of its verdict: when the evidence for it was at hand,
	// when it was decided, when the gateway was told. Zero where not known.
	appraisedAt, loweredAt, toldAt time.Time

	tunnel tunnelState
}

// Report takes what happened on a gateway, in order. It returns what has to be
// in the audit log before the gateway gets its answer. The only error is
// ErrNotReady.
func (d *Desk) Report(gateway string, req *gatev1.ReportRequest) ([]audit.Record, error) {
	if !d.ready.Load() {
		return nil, ErrNotReady
	}
	now := d.options.Now()
	var records []audit.Record
	d.mu.Lock()
	defer d.unlock()
	g := d.gateOf(gateway)
	d.heardLocked(g, now)
	named := map[string]bool{}
	for _, e := range req.GetEvents() {
		switch what := e.GetEvent().(type) {
		case *gatev1.SessionEvent_Up:
			id := what.Up.GetSession().GetSessionId()
			named[id] = true
			d.up(g, what.Up, timeOf(e.GetAt()), req.GetFull(), now)
		case *gatev1.SessionEvent_Down:
			d.over(g.sessions[what.Down.GetSessionId()])
		case *gatev1.SessionEvent_Roamed:
			if s := g.sessions[what.Roamed.GetSessionId()]; s != nil {
				d.roamed(s, what.Roamed.GetTunnelAddresses(), now)
			}
		case *gatev1.SessionEvent_CutConfirmed:
			records = append(records, d.confirmed(g, what.CutConfirmed, now))
		case *gatev1.SessionEvent_Alarm:
			records = append(records, d.alarm(g, what.Alarm, now))
		}
	}
	if req.GetFull() {
		for id, s := range g.sessions {
			if !named[id] {
				d.over(s)
			}
		}
	}
	return records, nil
}

// gateOf returns the gateway's entry and makes it if there is none. Names come
// from verified certificates, so there are as many as gateways.
func (d *Desk) gateOf(name string) *gate {
	g := d.gates[name]
	if g == nil {
		g = &gate{name: name, sessions: map[string]*session{}, renew: map[*session]struct{}{}}
		g.renewal.gate = g
		g.tunnel = d.tunnelRule(name)
		d.gates[name] = g
	}
	return g
}

// up takes a session that is live, and decides about it anew whatever the
// gateway believes. full: the gateway states what it holds after a restart of
// either side, so its leases may be about to end.
func (d *Desk) up(g *gate, up *gatev1.SessionUp, at time.Time, full bool, now time.Time) {
	facts := up.GetSession()
	c, _ := fingerprintOf(facts.GetCertificateSha256())
	if at.IsZero() || at.After(now) {
		at = now
	}
	before := g.sessions[facts.GetSessionId()]
	d.over(before)
	s := &session{
		gate:        g,
		metrics:     d.options.Metrics,
		id:          facts.GetSessionId(),
		certificate: c,
		addresses:   facts.GetTunnelAddresses(),
		since:       at,
		verdict:     known(up.GetVerdict()),
	}
	g.sessions[s.id] = s
	d.live[c] = append(d.live[c], s)
	s.metrics.session(s.verdict, 1)
	d.settleTunnel(s, before, now)

	st := d.standingOf(c)
	decision := decisionOf(st, now)
	if s.verdict == posturev1.Verdict_VERDICT_DENY {
		// The gateway is about to cut it. It gets no lease, whatever it could
		// have by now.
		s.cutPending, s.ordered = true, true
		return
	}
	s.leaseEndsAt = now.Add(decision.leaseTime(d.options.LeaseTTL, now))
	if v := s.may(st); s.verdict != v && v == st.verdict {
		d.restate(st)
		g.wake()
	}
	s.decided(st, decision, d.options.LeaseTTL, time.Time{}, now)
	if full && !s.cutPending {
		s.renewNow()
	}
}

// over takes a session out that is no longer live; nil is none.
func (d *Desk) over(s *session) {
	if s == nil {
		return
	}
	s.metrics.session(s.verdict, -1)
	d.leave(s)
	delete(s.gate.sessions, s.id)
	delete(s.gate.renew, s)
	if rest := slices.DeleteFunc(d.live[s.certificate], func(o *session) bool { return o == s }); len(rest) > 0 {
		d.live[s.certificate] = rest
	} else {
		delete(d.live, s.certificate)
	}
}

// confirmed takes the end of a cut: packets no longer pass, or only those of
// quarantine.
func (d *Desk) confirmed(g *gate, cut *gatev1.CutConfirmed, now time.Time) audit.Record {
	record := audit.Record{At: now, Kind: "session.cut", Actor: g.name, Details: map[string]string{
		"session":            cut.GetSessionId(),
		"packets_cut_after":  cut.GetPacketsCutAfter().AsDuration().String(),
		"session_gone_after": cut.GetSessionGoneAfter().AsDuration().String(),
		"verdict":            verdictLabels[known(cut.GetVerdict())],
	}}
	s := g.sessions[cut.GetSessionId()]
	if s == nil {
		return record
	}
	st := d.standingOf(s.certificate)
	if st.facts != nil {
		record.DeviceID, record.AssetNumber = st.facts.DeviceID, st.facts.AssetNumber
	}
	if lease.At(cut) != (lease.Position{}) && !s.loweredAt.IsZero() {
		m := d.options.Metrics
		if !s.toldAt.IsZero() {
			m.part(partPackets, s.toldAt, s.toldAt.Add(cut.GetPacketsCutAfter().AsDuration()))
			m.part(partConfirmed, s.toldAt, now)
		}
		m.part(partTotal, cmp.Or(s.appraisedAt, s.loweredAt), now)
		s.appraisedAt, s.loweredAt, s.toldAt = time.Time{}, time.Time{}, time.Time{}
	}
	if known(cut.GetVerdict()) == posturev1.Verdict_VERDICT_DENY {
		d.over(s)
	}
	return record
}

// alarm takes what people must look at.
func (d *Desk) alarm(g *gate, a *gatev1.GateAlarm, now time.Time) audit.Record {
	record := audit.Record{At: now, Kind: "gate.alarm", Actor: g.name, Details: map[string]string{
		"alarm": a.GetKind(), "detail": a.GetDetail(), "session": a.GetSessionId(),
	}}
	if s := g.sessions[a.GetSessionId()]; s != nil {
		if st := d.standingOf(s.certificate); st.facts != nil {
			record.DeviceID, record.AssetNumber = st.facts.DeviceID, st.facts.AssetNumber
		}
	}
	return record
}

// may is the most that the session may do: what its identity may, limited by
// its tunnel proof.
func (s *session) may(st *standing) posturev1.Verdict {
	return Decision{Verdict: st.verdict}.limited(s.proof()).Verdict
}

// decided tells a live session what its identity was decided to.
func (s *session) decided(st *standing, decision Decision, ttl time.Duration, appraisedAt, now time.Time) {
	v := s.may(st)
	switch {
	case s.ordered:
	case v < s.verdict:
		s.set(v, appraisedAt, now)
		s.cutPending = v == posturev1.Verdict_VERDICT_DENY
		if s.cutPending {
			s.metrics.kicks.Inc()
		}
		if s.cutPending && v == st.verdict { // the standing says it
			delete(s.gate.renew, s)
		} else {
			s.renewNow()
		}
		s.gate.wake()
	case v > s.verdict:
		s.set(v, time.Time{}, time.Time{})
		s.cutPending = false
		s.renewNow()
	case s.leaseEndsAt.Before(now.Add(min(2*ttl/3, decision.leaseTime(ttl, now)))):
		// The lease was cut short by an end that has moved on since. One that
		// was not has two thirds left at least.
		s.renewNow()
	}
}

// set gives the session a verdict. Zero times: it was not lowered.
func (s *session) set(v posturev1.Verdict, appraisedAt, loweredAt time.Time) {
	s.metrics.session(s.verdict, -1)
	s.metrics.session(v, 1)
	s.verdict = v
	s.appraisedAt, s.loweredAt, s.toldAt = appraisedAt, loweredAt, time.Time{}
	s.metrics.part(partVerdict, appraisedAt, loweredAt)
}

// renewNow puts the session into the gateway's next renewal, at once.
func (s *session) renewNow() {
	s.gate.renew[s] = struct{}{}
	s.gate.wake()
}

// wake wakes the gateway's Watch, if there is one.
func (g *gate) wake() {
	if g.watcher != nil {
		wake(g.watcher.woken)
	}
}

// lost says that the gateway has given no sign of life for too long.
func (g *gate) lost(heartbeat time.Duration, now time.Time) bool {
	return now.Sub(time.Unix(0, g.seen.Load())) > missedHeartbeats*heartbeat
}

// Sessions lists live sessions as they were last reported, by gateway and
// begin; of all gateways when the name is empty.
func (d *Desk) Sessions(gateway string) []*fleetv1.Session {
	now := d.options.Now()
	d.mu.RLock()
	defer d.mu.RUnlock()
	var sessions []*fleetv1.Session
	for _, g := range d.gates {
		if gateway != "" && g.name != gateway {
			continue
		}
		for _, s := range g.sessions {
			sessions = append(sessions, d.listed(s, now))
		}
	}
	slices.SortFunc(sessions, func(a, b *fleetv1.Session) int {
		return cmp.Or(
			cmp.Compare(a.GetGateway(), b.GetGateway()),
			a.GetSince().AsTime().Compare(b.GetSince().AsTime()),
			cmp.Compare(a.GetSessionId(), b.GetSessionId()),
		)
	})
	return sessions
}

func (d *Desk) listed(s *session, now time.Time) *fleetv1.Session {
	listed := &fleetv1.Session{
		Gateway:           s.gate.name,
		SessionId:         s.id,
		CertificateSha256: s.certificate[:],
		TunnelAddresses:   s.addresses,
		Verdict:           s.verdict,
		Since:             timestamppb.New(s.since),
		LeaseEndsAt:       timestamppb.New(s.leaseEndsAt),
		CutPending:        s.cutPending,
		GatewayLost:       s.gate.lost(d.options.Heartbeat, now),
	}
	st := d.standingOf(s.certificate)
	if st.facts != nil {
		listed.DeviceId, listed.AssetNumber = st.facts.DeviceID, st.facts.AssetNumber
	}
	s.listTunnel(listed)
	return listed
}

// known maps verdicts that this build does not know to the zero one.
func known(v posturev1.Verdict) posturev1.Verdict {
	if v < 0 || int(v) >= len(verdictLabels) {
		return posturev1.Verdict_VERDICT_DENY
	}
	return v
}

func fingerprintText(certificate []byte) string { return hex.EncodeToString(certificate) }
