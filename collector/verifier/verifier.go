// Package verifier is the straight line of one report (RFC 9334: Verifier):
// evidence, and what the TPM vouches for → appraisal → store → Desk. It holds
// the policy and the reference values in force.
//
// Rules. A result reaches the Desk only after it is stored, so that a collector
// that restarts never takes back what it said; only what lowers a verdict does
// so even if the store fails. The reports of one device are
// taken one after the other; what is in force is read after a device's turn has
// come, so that no older judgement overwrites a newer. Evidence that was handed in
// belongs to the Verifier and is never changed.
package verifier

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"pfoertner/collector/appraisal"
	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Store keeps evidence and results (store.Store).
type Store interface {
	// SaveReport returns after the commit. Evidence nil: unchanged.
	SaveReport(ctx context.Context, deviceID string, ev *posturev1.Evidence, res *posturev1.Result, records ...audit.Record) error
	// Report's error wraps fs.ErrNotExist for a device that never reported.
	Report(ctx context.Context, deviceID string) (*posturev1.Evidence, *posturev1.Result, error)
	EachResult(ctx context.Context, fn func(deviceID string, res *posturev1.Result) error) error
}

// Desk acts on results (admission.Desk).
type Desk interface {
	SetResult(deviceID string, res *posturev1.Result)
	// Sessions lists the live sessions of a gateway, of all for "".
	Sessions(gateway string) []*fleetv1.Session
}

// Devices is the inventory (enrolment.Registry).
type Devices interface {
	Device(id string) (*fleetv1.Device, bool)
	All() []*fleetv1.Device
}

// Options is what a Verifier needs.
type Options struct {
	Store   Store
	Desk    Desk
	Devices Devices
	// Policy and References are in force until Adopt and AdoptReferences.
	Policy     *appraisal.Policy
	References *appraisal.References
	// Attested is what a device's TPM vouches for as it stands now
	// (attestation.Book); it is asked at every appraisal and must not call the
	// Verifier. Nil: no TPM ever vouched for any device.
	Attested func(deviceID string) *posturev1.Attestation
	Now      func() time.Time
	// Announce is told results that no report of the device asked for: a policy
	// or the inventory changed, or time went by. It must not block; nil: nobody
	// is told.
	Announce func(deviceID string, res *posturev1.Result)
	// Adopted is told that another policy is in force, before the fleet is judged
	// by it; nil: nobody is told.
	Adopted func()
	// Metrics may be nil: nothing is counted.
	Metrics *Metrics
	// Log may be nil: nothing is logged.
	Log *slog.Logger
}

// Verifier appraises and keeps what devices report. It is safe for concurrent
// use.
type Verifier struct {
	Options
	policy     atomic.Pointer[appraisal.Policy]
	references atomic.Pointer[appraisal.References]
	seed       maphash.Seed
	stripes    [stripes]stripe
	queue      *queue
}

const (
	// stripes is how many devices can be judged at once. A stripe is held while
	// its report is committed, so there are many more than streams reporting at
	// one moment.
	stripes = 1024
	// reportsPerStripe bounds the evidence kept in memory; what is not kept is
	// read from the store.
	reportsPerStripe = 16
)

// stripe serialises the devices that fall on it and keeps their last reports.
type stripe struct {
	sync.Mutex
	reports map[string]*report
}

// report is what is stored of a device.
type report struct {
	evidence *posturev1.Evidence
	result   *posturev1.Result
}

// New returns a Verifier that appraises by the policy given.
func New(o Options) *Verifier {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	v := &Verifier{Options: o, seed: maphash.MakeSeed(), queue: newQueue()}
	v.policy.Store(o.Policy)
	v.references.Store(o.References)
	for i := range v.stripes {
		v.stripes[i].reports = map[string]*report{}
	}
	return v
}

// Policy is the policy in force.
func (v *Verifier) Policy() *appraisal.Policy { return v.policy.Load() }

// References are the reference values in force.
func (v *Verifier) References() *appraisal.References { return v.references.Load() }

// ReportInterval is how often devices have to report under the policy in force.
func (v *Verifier) ReportInterval() time.Duration { return v.Policy().ReportInterval() }

// Submit takes new evidence with its digest (posture.Digest, which the caller
// has compared), collected at the given moment by our clock. It returns the
// result once evidence and result are stored and the Desk knows. A device that
// the inventory does not know is an error that wraps fs.ErrNotExist.
func (v *Verifier) Submit(ctx context.Context, deviceID string, ev *posturev1.Evidence, digest []byte, collectedAt time.Time) (*posturev1.Result, error) {
	s := v.turn(deviceID)
	defer s.Unlock()
	dev, err := v.device(deviceID)
	if err != nil {
		return nil, err
	}
	before, err := v.last(ctx, s, deviceID)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	in := appraisal.Input{Device: dev, Evidence: ev, EvidenceDigest: digest, CollectedAt: collectedAt, Previous: before.result}
	return v.settle(ctx, s, in, ev, triggerReport)
}

// Confirm takes the message that the stored evidence was collected again,
// unchanged. A device that never reported is an error that wraps
// fs.ErrNotExist.
func (v *Verifier) Confirm(ctx context.Context, deviceID string, collectedAt time.Time) (*posturev1.Result, error) {
	s := v.turn(deviceID)
	defer s.Unlock()
	dev, err := v.device(deviceID)
	if err != nil {
		return nil, err
	}
	last, err := v.last(ctx, s, deviceID)
	if err != nil {
		return nil, err
	}
	return v.again(ctx, s, dev, last, collectedAt, triggerHeartbeat)
}

// Reappraise judges the stored evidence anew. For a device that never reported,
// or that the inventory no longer knows, there is nothing to do: nil and no
// error.
func (v *Verifier) Reappraise(ctx context.Context, deviceID string) (*posturev1.Result, error) {
	_, after, err := v.reappraise(ctx, deviceID, triggerReappraisal)
	return after, err
}

// reappraise returns the result before it too.
func (v *Verifier) reappraise(ctx context.Context, deviceID string, t trigger) (before, after *posturev1.Result, err error) {
	s := v.turn(deviceID)
	defer s.Unlock()
	dev, ok := v.Devices.Device(deviceID)
	if !ok {
		return nil, nil, nil
	}
	last, err := v.last(ctx, s, deviceID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	var collectedAt time.Time // zero: never
	if at := last.result.GetCollectedAt(); at != nil {
		collectedAt = at.AsTime()
	}
	after, err = v.again(ctx, s, dev, last, collectedAt, t)
	return last.result, after, err
}

// turn waits until it is the device's turn; the caller unlocks.
func (v *Verifier) turn(deviceID string) *stripe {
	s := &v.stripes[maphash.String(v.seed, deviceID)%stripes]
	s.Lock()
	return s
}

func (v *Verifier) device(id string) (*fleetv1.Device, error) {
	dev, ok := v.Devices.Device(id)
	if !ok {
		return nil, fmt.Errorf("device %s in the inventory: %w", id, fs.ErrNotExist)
	}
	return dev, nil
}

// again judges stored evidence as of collectedAt.
func (v *Verifier) again(ctx context.Context, s *stripe, dev *fleetv1.Device, last *report, collectedAt time.Time, t trigger) (*posturev1.Result, error) {
	return v.settle(ctx, s, appraisal.Input{
		Device: dev, Evidence: last.evidence, EvidenceDigest: last.result.GetEvidenceDigest(),
		CollectedAt: collectedAt, Previous: last.result,
	}, nil, t)
}

// last is the device's last report, from memory or from the store. With an
// error it is an empty one.
func (v *Verifier) last(ctx context.Context, s *stripe, deviceID string) (*report, error) {
	if r, ok := s.reports[deviceID]; ok {
		return r, nil
	}
	ev, res, err := v.Store.Report(ctx, deviceID)
	if err != nil {
		return &report{}, fmt.Errorf("last report: %w", err)
	}
	r := &report{ev, res}
	s.keep(deviceID, r)
	return r, nil
}

// keep makes room by forgetting any other report.
func (s *stripe) keep(deviceID string, r *report) {
	if _, known := s.reports[deviceID]; !known && len(s.reports) >= reportsPerStripe {
		for other := range s.reports {
			delete(s.reports, other)
			break
		}
	}
	s.reports[deviceID] = r
}

// settle appraises, stores, and only then tells the Desk. changed is the
// evidence to store, nil when it is unchanged.
func (v *Verifier) settle(ctx context.Context, s *stripe, in appraisal.Input, changed *posturev1.Evidence, t trigger) (*posturev1.Result, error) {
	in.Policy, in.References, in.Now = v.policy.Load(), v.references.Load(), v.Now()
	if v.Attested != nil {
		in.Attested = v.Attested(in.Device.GetId())
	}
	begin := time.Now()
	res := appraisal.Appraise(in)
	v.Metrics.appraised(t, res.GetVerdict(), time.Since(begin))

	var records []audit.Record
	flipped := in.Previous == nil || in.Previous.GetVerdict() != res.GetVerdict()
	if flipped {
		records = append(records, changeRecord(in, res))
	}
	id := in.Device.GetId()
	if err := v.Store.SaveReport(ctx, id, changed, res, records...); err != nil {
		if res.GetVerdict() < in.Previous.GetVerdict() {
			// Closing the gate does not wait for a database: the agent is not
			// answered, so it sends the same evidence again.
			v.Desk.SetResult(id, res)
		}
		return nil, fmt.Errorf("storing report: %w", err)
	}
	s.keep(id, &report{in.Evidence, res})
	if flipped {
		v.Metrics.flipped(res.GetVerdict())
	}
	v.Desk.SetResult(id, res)
	if v.Announce != nil && t != triggerReport && t != triggerHeartbeat {
		v.Announce(id, res)
	}
	return res, nil
}
