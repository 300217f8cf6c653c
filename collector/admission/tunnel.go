package admission

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// TunnelPolicy says whether sessions on a gateway need a tunnel proof, and
// within which time after they came up. It is asked under the Desk's lock: it
// waits for nothing and does not call the Desk.
type TunnelPolicy func(gateway string) (within time.Duration, required bool)

// Why a proof is not taken.
var (
	// ErrNoSession: no gateway reports such a session now, under this address
	// and only there.
	ErrNoSession = errors.New("no live session has this tunnel address")
	// ErrNotItsSession: the session's certificate is not one of the device's.
	ErrNotItsSession = errors.New("the session is not this device's")
)

// tunnelRule is what policy says of one gateway. The zero rule asks for
// nothing.
type tunnelRule struct {
	within   time.Duration
	required bool
}

// SetTunnelPolicy sets who says which gateways need a proof; without one none
// does. Call it before Run.
func (d *Desk) SetTunnelPolicy(policy func(gateway string) (within time.Duration, required bool)) {
	d.mu.Lock()
	d.tunnelPolicy = policy
	d.mu.Unlock()
	d.TunnelPolicyChanged()
}

// TunnelPolicyChanged asks the policy anew, for every gateway, and decides
// about all their live sessions at once. A session that is up already gets the
// whole time for its proof from now on.
func (d *Desk) TunnelPolicyChanged() {
	now := d.options.Now()
	d.mu.Lock()
	defer d.unlock()
	for _, g := range d.gates {
		g.tunnel = d.tunnelRule(g.name)
		for _, s := range g.sessions {
			d.await(s, now)
			d.redecide(s, now)
		}
	}
}

func (d *Desk) tunnelRule(gateway string) (r tunnelRule) {
	if d.tunnelPolicy != nil {
		r.within, r.required = d.tunnelPolicy(gateway)
	}
	return r
}

// tunnelState is what a session's tunnel proof has come to. Guarded by
// Desk.mu.
type tunnelState struct {
	// device has proven the session; empty: none. It is the device that the
	// session's certificate belongs to.
	device string
	// missingSince is from when on the proof is awaited; zero: it is not.
	missingSince time.Time
	due          deadline
	// overdue: the proof did not come in time. It stays so.
	overdue bool
}

// proof is where the session stands with its proof.
func (s *session) proof() Proof {
	switch {
	case s.tunnel.overdue:
		return ProofOverdue
	case s.gate.tunnel.required && s.tunnel.device == "":
		return ProofMissing
	}
	return ProofNotNeeded
}

// dueFor is the proof that the answer to a question is limited by: a session
// that is not live yet has none. g is nil for a gateway that never reported.
// Needs the reading lock.
func (d *Desk) dueFor(g *gate, gateway, id string, c fingerprint) Proof {
	var rule tunnelRule
	var s *session
	if g != nil {
		rule, s = g.tunnel, g.sessions[id]
	} else {
		rule = d.tunnelRule(gateway)
	}
	switch {
	case s != nil && s.certificate == c:
		return s.proof()
	case rule.required:
		return ProofMissing
	}
	return ProofNotNeeded
}

// await begins or ends the waiting for a session's proof, by what its gateway's
// rule and its identity's device are now. A proof that another device gave is
// gone.
func (d *Desk) await(s *session, now time.Time) {
	t := &s.tunnel
	if !s.gate.tunnel.required && t.device == "" && t.due.place == 0 {
		return
	}
	if st := d.standingOf(s.certificate); t.device != "" && (st.facts == nil || st.facts.DeviceID != t.device) {
		d.disprove(s)
	}
	if s.proof() != ProofMissing {
		t.missingSince = time.Time{}
		d.deadlines.remove(&t.due)
		return
	}
	if t.missingSince.IsZero() {
		t.missingSince = now
		d.want(s)
	}
	t.due.session = s
	d.deadlines.set(&t.due, t.missingSince.Add(s.gate.tunnel.within))
}

// OnProofWanted sets what is told when a session of a device begins to need a
// proof, or its gateway reports it again without one. A session that lost it to
// another one of the same device asks for none. The function must not wait.
// Call it before Run.
func (d *Desk) OnProofWanted(fn func(deviceID string)) { d.onProofWanted = fn }

func (d *Desk) want(s *session) {
	if st := d.standingOf(s.certificate); st.facts != nil && st.facts.DeviceID != "" {
		d.wanted = append(d.wanted, st.facts.DeviceID)
	}
}

// unlock gives the lock back and tells whose proofs are wanted.
func (d *Desk) unlock() {
	wanted := d.wanted
	d.wanted = nil
	d.mu.Unlock()
	if d.onProofWanted != nil {
		for _, id := range wanted {
			d.onProofWanted(id)
		}
	}
}

// redecide decides about one live session anew.
func (d *Desk) redecide(s *session, now time.Time) {
	st := d.standingOf(s.certificate)
	s.decided(st, decisionOf(st, now), d.options.LeaseTTL, time.Time{}, now)
}

// decisionOf is the decision behind a standing.
func decisionOf(st *standing, now time.Time) Decision {
	if st.removed {
		return Decision{}
	}
	return Decide(st.facts, now)
}

// cutUnproven ends a session whose proof did not come in time.
func (d *Desk) cutUnproven(s *session, now time.Time) {
	st := d.standingOf(s.certificate)
	if s.gate.sessions[s.id] != s || s.cutPending || s.proof() != ProofMissing {
		return
	}
	s.tunnel.overdue = true
	d.options.Metrics.proofsMissed.Inc()
	decision := Decision{Cause: NotProven}
	d.refusals.note(s.gate.name, &gatev1.SessionFacts{SessionId: s.id, CertificateSha256: s.certificate[:]}, st.facts, decision, Answer{
		Code: s.code(st), Message: message(st.facts, decision, s.code(st)),
	}, d.options.Metrics)
	s.decided(st, decisionOf(st, now), d.options.LeaseTTL, time.Time{}, now)
}

// code is the refusal code that goes with the session's verdict.
func (s *session) code(st *standing) string {
	if st.verdict != posturev1.Verdict_VERDICT_DENY && s.tunnel.overdue {
		return refusalCode(st.facts, Decision{Cause: NotProven}, s.certificate)
	}
	return st.code
}

// settleTunnel takes over what was known of a session that a gateway reports
// again: how long its proof has been awaited, and the proof itself if the
// session is still what was proven. before is nil for a new one.
func (d *Desk) settleTunnel(s, before *session, now time.Time) {
	if before != nil {
		s.tunnel.missingSince, s.tunnel.overdue = before.tunnel.missingSince, before.tunnel.overdue
		if id := before.tunnel.device; id != "" && s.certificate == before.certificate && slices.Equal(s.addresses, before.addresses) {
			s.tunnel.device = id
			d.proven[id] = s
		}
		if !s.tunnel.missingSince.IsZero() {
			d.want(s)
		}
	}
	for _, a := range s.tunnelAddresses() {
		d.addresses[a] = append(d.addresses[a], s)
	}
	d.await(s, now)
}

// leave takes a session that is over out of what is known of tunnels.
func (d *Desk) leave(s *session) {
	d.vacate(s)
	d.deadlines.remove(&s.tunnel.due)
	if d.proven[s.tunnel.device] == s {
		delete(d.proven, s.tunnel.device) // its state stays readable for who reports it again
	}
}

// vacate takes a session's addresses from it.
func (d *Desk) vacate(s *session) {
	for _, a := range s.tunnelAddresses() {
		if rest := slices.DeleteFunc(d.addresses[a], func(o *session) bool { return o == s }); len(rest) > 0 {
			d.addresses[a] = rest
		} else {
			delete(d.addresses, a)
		}
	}
}

// tunnelAddresses are those that are addresses, each once.
func (s *session) tunnelAddresses() []netip.Addr {
	var out []netip.Addr
	for _, text := range s.addresses {
		a, err := netip.ParseAddr(text)
		if a = plain(a); err == nil && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// plain is an address as it is compared: without a zone, IPv4 as IPv4.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// roamed takes a session's new tunnel addresses. A proof was for the old ones.
func (d *Desk) roamed(s *session, addresses []string, now time.Time) {
	if slices.Equal(s.addresses, addresses) {
		return
	}
	d.vacate(s)
	s.addresses = addresses
	for _, a := range s.tunnelAddresses() {
		d.addresses[a] = append(d.addresses[a], s)
	}
	d.unprove(s, now)
}

// unprove takes a session's proof from it, if it has one.
func (d *Desk) unprove(s *session, now time.Time) {
	if s.tunnel.device == "" {
		return
	}
	d.disprove(s)
	d.await(s, now)
	d.redecide(s, now)
}

// disprove forgets a proof. What follows from it is the caller's.
func (d *Desk) disprove(s *session) {
	if d.proven[s.tunnel.device] == s {
		delete(d.proven, s.tunnel.device)
	}
	s.tunnel.device = ""
}

// heard notes a gateway's sign of life. After a silence longer than any lease
// lasts nobody knows what its sessions have become: their proofs are gone.
// Shorter ones are outlived by the leases, and so by the proofs.
func (d *Desk) heard(g *gate, now time.Time) {
	if now.Sub(time.Unix(0, g.seen.Load())) > d.options.LeaseTTL {
		d.mu.Lock()
		defer d.unlock()
		d.heardLocked(g, now)
		return
	}
	g.seen.Store(now.UnixNano())
}

// heardLocked is heard for who has the lock.
func (d *Desk) heardLocked(g *gate, now time.Time) {
	if now.Sub(time.Unix(0, g.seen.Load())) > d.options.LeaseTTL {
		for _, s := range g.sessions {
			d.unprove(s, now)
		}
	}
	g.seen.Store(now.UnixNano())
}

// SessionAt finds the session with a tunnel address, over all gateways. An
// address that two sessions have belongs to none of them: whoever connects from
// it could be either. deviceID is whose certificate the session has.
func (d *Desk) SessionAt(addr netip.Addr) (gateway, sessionID, deviceID string, ok bool) {
	now := d.options.Now()
	d.mu.RLock()
	defer d.mu.RUnlock()
	s := d.sessionAt(addr, now)
	if s == nil {
		return "", "", "", false
	}
	if st := d.standingOf(s.certificate); st.facts != nil {
		deviceID = st.facts.DeviceID
	}
	return s.gate.name, s.id, deviceID, true
}

// sessionAt is the one session with an address; nil when there is none, when
// it is being cut, or when its gateway is silent: it may have given the address
// to somebody else. Sessions of silent gateways do count as a second one.
func (d *Desk) sessionAt(addr netip.Addr, now time.Time) *session {
	found := d.addresses[plain(addr)]
	if len(found) != 1 || found[0].cutPending || found[0].gate.lost(d.options.Heartbeat, now) {
		return nil
	}
	return found[0]
}

// Prove takes a device's proof, given from a session's tunnel address, that the
// session is its own. One that the device gave for another session before ends
// with it. changed is false when it was proven already. Errors: ErrNoSession,
// ErrNotItsSession.
func (d *Desk) Prove(gateway, sessionID, deviceID string, from netip.Addr) (changed bool, err error) {
	now := d.options.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.sessionAt(from, now)
	if s == nil || s.gate.name != gateway || s.id != sessionID {
		return false, ErrNoSession
	}
	st := d.standingOf(s.certificate)
	// One whose asset is not active is being cut, and so not found.
	if st.facts == nil || deviceID == "" || st.facts.DeviceID != deviceID {
		return false, ErrNotItsSession
	}
	if s.tunnel.device == deviceID {
		return false, nil
	}
	if before := d.proven[deviceID]; before != nil {
		d.unprove(before, now)
		d.wanted = nil // the device has just said which one it means
	}
	s.tunnel.device = deviceID
	d.proven[deviceID] = s
	d.await(s, now)
	d.redecide(s, now)
	d.options.Metrics.proofs.Inc()
	return true, nil
}

// Unprove takes a proof back that could not be recorded.
func (d *Desk) Unprove(gateway, sessionID string) {
	now := d.options.Now()
	d.mu.Lock()
	defer d.unlock()
	if g := d.gates[gateway]; g != nil {
		if s := g.sessions[sessionID]; s != nil {
			d.unprove(s, now)
		}
	}
}

// listTunnel says in a listing where a session stands with its proof.
func (s *session) listTunnel(listed *fleetv1.Session) {
	listed.TunnelProof = fleetv1.TunnelProofState_TUNNEL_PROOF_STATE_NOT_REQUIRED
	switch {
	case s.tunnel.device != "":
		listed.TunnelProof = fleetv1.TunnelProofState_TUNNEL_PROOF_STATE_PROVEN
	case s.proof() != ProofNotNeeded:
		listed.TunnelProof = fleetv1.TunnelProofState_TUNNEL_PROOF_STATE_MISSING
		if s.tunnel.due.place > 0 {
			listed.TunnelProofDueAt = timestamppb.New(s.tunnel.due.at)
		}
	}
}
