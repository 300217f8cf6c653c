package verifier

import (
	"cmp"
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"pfoertner/collector/appraisal"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// adoptWorkers is how many devices are judged at once: enough to fill one
	// group commit of the store.
	adoptWorkers = 64
	// progressSteps is how often Adopt tells how far it is.
	progressSteps = 100
)

// Adopt puts a policy in force. Whatever is judged from now on is judged by it,
// and the whole fleet is judged anew at once, the devices with live sessions
// first. progress (nil: none) is called about a hundred times, never
// concurrently, and once at the end; version and done are the caller's to set.
//
// The policy is in force even when an error is returned: then some devices
// could not be judged yet, which Run makes up for.
func (v *Verifier) Adopt(ctx context.Context, policy *appraisal.Policy, progress func(*fleetv1.ApplyResponse)) error {
	v.policy.Store(policy)
	if v.Adopted != nil {
		v.Adopted()
	}
	return v.judgeFleet(ctx, triggerPolicy, progress)
}

// AdoptReferences puts reference values in force, in all else like Adopt.
func (v *Verifier) AdoptReferences(ctx context.Context, references *appraisal.References, progress func(*fleetv1.ApplyResponse)) error {
	v.references.Store(references)
	return v.judgeFleet(ctx, triggerReferences, progress)
}

func (v *Verifier) judgeFleet(ctx context.Context, t trigger, progress func(*fleetv1.ApplyResponse)) error {
	live, rest := v.fleet()
	p := &adoption{total: len(live) + len(rest), progress: progress}
	v.judge(ctx, live, t, p)
	v.judge(ctx, rest, t, p)
	return p.end()
}

// judge judges devices anew, many at once, and returns when all are done.
func (v *Verifier) judge(ctx context.Context, ids []string, t trigger, p *adoption) {
	var workers errgroup.Group
	workers.SetLimit(adoptWorkers)
	for _, id := range ids {
		workers.Go(func() error {
			before, after, err := v.reappraise(ctx, id, t)
			if err != nil {
				v.enqueue(id)
			}
			p.note(before, after, err)
			return nil
		})
	}
	_ = workers.Wait() // its functions return no error
}

// fleet is the devices that have an id, those with live sessions apart.
func (v *Verifier) fleet() (live, rest []string) {
	seen := map[string]bool{}
	for _, s := range v.Desk.Sessions("") {
		if id := s.GetDeviceId(); id != "" && !seen[id] {
			seen[id] = true
			live = append(live, id)
		}
	}
	for _, dev := range v.Devices.All() {
		if id := dev.GetId(); id != "" && !seen[id] {
			rest = append(rest, id)
		}
	}
	return live, rest
}

// adoption is how far Adopt is.
type adoption struct {
	total    int
	progress func(*fleetv1.ApplyResponse)

	mu          sync.Mutex
	done        int
	now         map[posturev1.Verdict]uint32
	failed      int
	firstFailed error
}

// note counts one device; before and after are its results.
func (a *adoption) note(before, after *posturev1.Result, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done++
	if err != nil {
		a.failed++
		a.firstFailed = cmp.Or(a.firstFailed, err)
	}
	if after != nil && after.GetVerdict() != before.GetVerdict() {
		if a.now == nil {
			a.now = map[posturev1.Verdict]uint32{}
		}
		a.now[after.GetVerdict()]++
	}
	if a.done%max(a.total/progressSteps, 1) == 0 && a.done < a.total {
		a.tell()
	}
}

func (a *adoption) tell() {
	if a.progress == nil {
		return
	}
	a.progress(&fleetv1.ApplyResponse{
		Appraised: uint32(a.done), Total: uint32(a.total),
		NowAdmitted:    a.now[posturev1.Verdict_VERDICT_ADMIT],
		NowQuarantined: a.now[posturev1.Verdict_VERDICT_QUARANTINE],
		NowDenied:      a.now[posturev1.Verdict_VERDICT_DENY],
	})
}

func (a *adoption) end() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tell()
	if a.failed > 0 {
		return fmt.Errorf("in force, %d of %d devices not judged by it yet: %w", a.failed, a.total, a.firstFailed)
	}
	return nil
}
