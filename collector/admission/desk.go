// Package admission is where verdicts and live sessions meet: Decide, which is
// the whole rule, and the Desk, which applies it to every identity and every
// session from memory.
//
// Rules. The Desk keeps nothing that cannot be rebuilt: it is filled from the
// store before it is Ready, and gateways report their sessions whole when they
// connect. An identity that it does not know is denied. A fact that changes is
// decided on in the call that brings it, and the gateways concerned are woken
// before that call returns. Time is a fact too: every end is in one heap of
// deadlines. Nothing here waits for a database or a network.
//
// Order. Standings and leases draw their numbers from one sequence: changes
// under the lock, leases under the reading lock. So a lease that was decided
// on old facts is always numbered before the change of those facts, and a
// gateway that takes the highest number ends up right whatever arrives first.
package admission

import (
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/lease"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// ErrNotReady is the answer to gateways until the state has been loaded.
var ErrNotReady = errors.New("state is still being loaded")

// Defaults, as gateways expect them.
const (
	// DefaultLeaseTTL is how long a lease holds; renewed at a third of it.
	DefaultLeaseTTL = 15 * time.Second
	// DefaultHeartbeat is how often a Watch says that it is alive; after three
	// that are missed a gateway counts as lost.
	DefaultHeartbeat = time.Second
	// DefaultLogSize is how many changes of standings are kept for gateways
	// that resume.
	DefaultLogSize = 16 << 10
)

// Options of a Desk. Zero values mean the defaults, where there is one.
type Options struct {
	// Epoch is the number of this start of the collector, one more at each.
	Epoch uint64
	// Now is the wall clock; needed.
	Now func() time.Time
	// LeaseTTL is the longest time to live of a lease.
	LeaseTTL time.Duration
	// Heartbeat is the interval at which gateways and the Desk give signs of
	// life.
	Heartbeat time.Duration
	// LogSize is how many changes a gateway may have missed and still resume
	// without a snapshot.
	LogSize int
	// RefusalText says in one line why a result does not admit, with its code;
	// nil: a general text.
	RefusalText func(*posturev1.Result) *posturev1.LocalText
	// Refusals records what was refused; nil: nobody does.
	Refusals Refusals
	// Metrics counts; nil: nobody does.
	Metrics *Metrics
	// Log hears of refusals that could not be recorded; nil: discarded.
	Log *slog.Logger
}

// fingerprint is the SHA-256 of a certificate, DER: what an identity is known
// by.
type fingerprint [sha256.Size]byte

// standing is where one identity stands. It is never changed, only replaced.
type standing struct {
	certificate fingerprint
	facts       *Facts
	verdict     posturev1.Verdict
	code        string
	removed     bool
}

// device is an asset and what follows from it. Guarded by Desk.mu; its facts
// are never changed, only replaced.
type device struct {
	facts        *Facts
	certificates []fingerprint
	expiry       deadline
	// fired is the expiry that has been acted on.
	fired time.Time
}

// Desk decides about sessions from memory. All methods are safe for concurrent
// use.
type Desk struct {
	options  Options
	refusals *recorder

	ready    atomic.Bool
	sequence atomic.Uint64

	mu sync.RWMutex
	// assets and devices find the same entries, by asset number and by device
	// id. A result that comes before its device waits in devices.
	assets  map[string]*device
	devices map[string]*device
	// identities says where in standings a certificate's standing is.
	identities map[fingerprint]int
	standings  []*standing
	changes    changeLog
	gates      map[string]*gate
	live       map[fingerprint][]*session
	deadlines  deadlines
	onExpiry   func(deviceID string)

	// tunnelPolicy is asked once for each gateway; addresses finds the sessions
	// with a tunnel address, proven the session that a device has proven.
	tunnelPolicy TunnelPolicy
	// wanted are devices whose proofs are, to be told by onProofWanted.
	wanted        []string
	onProofWanted func(deviceID string)
	addresses     map[netip.Addr][]*session
	proven        map[string]*session
}

// NewDesk returns a Desk that knows nobody and is not Ready.
func NewDesk(o Options) *Desk {
	if o.LeaseTTL <= 0 {
		o.LeaseTTL = DefaultLeaseTTL
	}
	if o.Heartbeat <= 0 {
		o.Heartbeat = DefaultHeartbeat
	}
	if o.LogSize <= 0 {
		o.LogSize = DefaultLogSize
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Desk{
		options:    o,
		refusals:   newRecorder(o.Refusals, o.Log, o.Now),
		assets:     map[string]*device{},
		devices:    map[string]*device{},
		identities: map[fingerprint]int{},
		changes:    newChangeLog(o.LogSize),
		gates:      map[string]*gate{},
		live:       map[fingerprint][]*session{},
		deadlines:  newDeadlines(),
		addresses:  map[netip.Addr][]*session{},
		proven:     map[string]*session{},
	}
}

// OnExpiry sets what is told when a device's result expires, so that it can be
// appraised anew. The function runs on the Desk's deadline goroutine: it hands
// the work to another one and returns. Call it before Run.
func (d *Desk) OnExpiry(fn func(deviceID string)) { d.onExpiry = fn }

// Ready says that the state has been loaded: from now on the Desk answers.
func (d *Desk) Ready() { d.ready.Store(true) }

// IsReady says whether Ready was called.
func (d *Desk) IsReady() bool { return d.ready.Load() }

// SetDevice takes what the inventory says of an asset now: its state, its
// device id and the VPN certificates bound to it. A certificate belongs to the
// asset that named it last.
func (d *Desk) SetDevice(dev *fleetv1.Device) {
	asset := dev.GetAsset()
	id, number := dev.GetId(), asset.GetAssetNumber()
	if number == "" {
		return
	}
	now := d.options.Now()
	d.mu.Lock()
	defer d.unlock()
	dv := d.deviceOf(number, id, now)
	facts := *dv.facts
	facts.DeviceID, facts.AssetNumber, facts.State = id, number, asset.GetState()
	dv.facts = &facts
	d.bind(dv, asset.GetVpnCertificatesSha256(), now)
	d.settle(dv, time.Time{}, now)
}

// SetResult takes a device's newest result, once it is stored.
func (d *Desk) SetResult(deviceID string, res *posturev1.Result) {
	if deviceID == "" || res == nil {
		return
	}
	var text *posturev1.LocalText
	if res.GetVerdict() != posturev1.Verdict_VERDICT_ADMIT && d.options.RefusalText != nil {
		text = d.options.RefusalText(res)
	}
	now := d.options.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	dv, ok := d.devices[deviceID]
	if !ok {
		dv = &device{facts: &Facts{DeviceID: deviceID}}
		d.devices[deviceID] = dv
	}
	facts := *dv.facts
	facts.Appraised = true
	facts.Verdict, facts.Code, facts.Text = res.GetVerdict(), res.GetCode(), text
	facts.ExpiresAt = timeOf(res.GetExpiresAt())
	dv.facts = &facts
	d.settle(dv, timeOf(res.GetAppraisedAt()), now)
}

// deviceOf returns the entry of an asset under its device id, and makes it if
// there is none. An asset that enrolled anew is another device: what the old
// one reported no longer counts.
func (d *Desk) deviceOf(number, id string, now time.Time) *device {
	dv := d.assets[number]
	if dv == nil {
		dv = &device{facts: &Facts{}}
		d.assets[number] = dv
	}
	if dv.facts.DeviceID == id {
		return dv
	}
	delete(d.devices, dv.facts.DeviceID)
	dv.facts = &Facts{}
	if id == "" {
		return dv
	}
	if former := d.devices[id]; former != nil {
		dv.facts = former.facts
		former.facts = &Facts{AssetNumber: former.facts.AssetNumber}
		d.settle(former, time.Time{}, now)
	}
	d.devices[id] = dv
	return dv
}

// bind gives the device exactly these certificates. What is not a SHA-256 is
// left out: it can match nobody.
func (d *Desk) bind(dv *device, certificates [][]byte, now time.Time) {
	bound := make([]fingerprint, 0, len(certificates))
	for _, raw := range certificates {
		if c, ok := fingerprintOf(raw); ok {
			bound = append(bound, c)
		}
	}
	before := dv.certificates
	dv.certificates = bound
	for _, c := range before {
		if i, ok := d.identities[c]; ok && d.standings[i].facts.AssetNumber == dv.facts.AssetNumber && !slices.Contains(bound, c) {
			d.forget(c, now)
		}
	}
}

// settle decides about the device anew and places all its identities.
// appraisedAt is when the evidence that caused it was at hand; zero: it was not
// evidence.
func (d *Desk) settle(dv *device, appraisedAt, now time.Time) {
	decision := Decide(dv.facts, now)
	if end := dv.facts.ExpiresAt; !end.IsZero() && !end.Equal(dv.fired) {
		dv.expiry.device = dv
		d.deadlines.set(&dv.expiry, end)
	} else {
		d.deadlines.remove(&dv.expiry)
	}
	for _, c := range dv.certificates {
		d.place(&standing{
			certificate: c,
			facts:       dv.facts,
			verdict:     decision.Verdict,
			code:        refusalCode(dv.facts, decision, c),
		}, decision, appraisedAt, now)
	}
}

// place puts a standing where its identity stood, tells the gateways what is
// new about it, and its live sessions at once.
func (d *Desk) place(st *standing, decision Decision, appraisedAt, now time.Time) {
	i, known := d.identities[st.certificate]
	if !known {
		d.identities[st.certificate] = len(d.standings)
		d.standings = append(d.standings, st)
		d.log(st)
	} else {
		old := d.standings[i]
		if old.facts.AssetNumber != st.facts.AssetNumber {
			d.release(old)
		}
		d.standings[i] = st
		if old.verdict != st.verdict || old.code != st.code || old.facts.DeviceID != st.facts.DeviceID {
			d.log(st)
		}
	}
	for _, s := range d.live[st.certificate] {
		d.await(s, now)
		s.decided(st, decision, d.options.LeaseTTL, appraisedAt, now)
	}
}

// release takes an identity from the device that had it before another asset
// named it.
func (d *Desk) release(old *standing) {
	if dv := d.assets[old.facts.AssetNumber]; dv != nil {
		dv.certificates = slices.DeleteFunc(dv.certificates, func(c fingerprint) bool { return c == old.certificate })
	}
}

// forget removes an identity: from now on it is unknown, and denied.
func (d *Desk) forget(c fingerprint, now time.Time) {
	i, ok := d.identities[c]
	if !ok {
		return
	}
	last := len(d.standings) - 1
	d.standings[i] = d.standings[last]
	d.identities[d.standings[i].certificate] = i
	d.standings[last] = nil
	d.standings = d.standings[:last]
	delete(d.identities, c)
	gone := unknownStanding(c)
	d.log(gone)
	for _, s := range d.live[c] {
		d.await(s, now)
		s.decided(gone, Decision{}, d.options.LeaseTTL, time.Time{}, now)
	}
}

// unknownStanding is where an identity stands that belongs to no asset.
func unknownStanding(c fingerprint) *standing {
	return &standing{certificate: c, code: refusalCode(nil, Decision{}, c), removed: true}
}

// standingOf is where an identity stands. Needs the lock, or the reading lock.
func (d *Desk) standingOf(c fingerprint) *standing {
	if i, ok := d.identities[c]; ok {
		return d.standings[i]
	}
	return unknownStanding(c)
}

// Answer is what the Desk says to one session. The zero Answer denies.
type Answer struct {
	Verdict posturev1.Verdict
	// Position numbers the answer: a gateway obeys the newest.
	Position lease.Position
	// At is when it was given, TTL how long it holds from its receipt; a denial
	// does not hold at all.
	At  time.Time
	TTL time.Duration
	// DeviceID is empty when the identity is not known.
	DeviceID string
	// Code and Message say why, for the user; empty and nil when the session is
	// admitted.
	Code    string
	Message *posturev1.LocalText
}

// Admit answers for one new session on a gateway. An identity that is not
// known, or not a SHA-256, is denied. The only error is ErrNotReady.
func (d *Desk) Admit(gateway string, s *gatev1.SessionFacts) (Answer, error) {
	if !d.ready.Load() {
		return Answer{}, ErrNotReady
	}
	now := d.options.Now()
	c, proper := fingerprintOf(s.GetCertificateSha256())
	var facts *Facts
	d.mu.RLock()
	sequence := d.sequence.Add(1)
	if i, ok := d.identities[c]; ok && proper {
		facts = d.standings[i].facts
	}
	g := d.gates[gateway]
	due := d.dueFor(g, gateway, s.GetSessionId(), c)
	d.mu.RUnlock()
	if g != nil {
		d.heard(g, now)
	}

	decision := Decide(facts, now).limited(due)
	answer := Answer{
		Verdict:  decision.Verdict,
		Position: lease.Position{Epoch: d.options.Epoch, Sequence: sequence},
		At:       now,
		TTL:      decision.leaseTime(d.options.LeaseTTL, now),
	}
	if facts != nil {
		answer.DeviceID = facts.DeviceID
	}
	d.options.Metrics.admission(decision.Verdict)
	if decision.Verdict != posturev1.Verdict_VERDICT_ADMIT && decision.Cause != Unproven {
		answer.Code = refusalCode(facts, decision, c)
		answer.Message = message(facts, decision, answer.Code)
		d.refusals.note(gateway, s, facts, decision, answer, d.options.Metrics)
	}
	return answer, nil
}

// fingerprintOf says whether raw can be a certificate's SHA-256.
func fingerprintOf(raw []byte) (c fingerprint, ok bool) {
	if len(raw) != len(c) {
		return c, false
	}
	return fingerprint(raw), true
}

// Explain is what the Desk says of a device now, and why: an unknown one is
// denied. The text is nil when the device is admitted.
func (d *Desk) Explain(deviceID string) (posturev1.Verdict, *posturev1.LocalText) {
	d.mu.RLock()
	var facts *Facts
	if dv := d.devices[deviceID]; dv != nil && deviceID != "" {
		facts = dv.facts
	}
	d.mu.RUnlock()
	decision := Decide(facts, d.options.Now())
	return decision.Verdict, message(facts, decision, refusalCode(facts, decision, fingerprint{}))
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
