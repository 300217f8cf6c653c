package verifier

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// queueWorkers is how many devices are judged anew at once: enough to fill
	// one group commit of the store.
	queueWorkers = 16
	// retryAfter is how long a worker waits after the store failed. Meanwhile
	// the Desk lets the results run out.
	retryAfter = time.Second
)

// queue holds devices that have to be judged anew, each once, in the order in
// which they came. It is never longer than the fleet.
type queue struct {
	mu      sync.Mutex
	order   []string
	waiting map[string]bool
	// filled holds a token while there may be something to take.
	filled chan struct{}
}

func newQueue() *queue {
	return &queue{waiting: map[string]bool{}, filled: make(chan struct{}, 1)}
}

// put adds a device and returns how many wait.
func (q *queue) put(id string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.waiting[id] {
		q.waiting[id] = true
		q.order = append(q.order, id)
	}
	q.signal()
	return len(q.order)
}

// take waits for a device; false when the context ended.
func (q *queue) take(ctx context.Context) (id string, left int, ok bool) {
	for {
		select {
		case <-ctx.Done():
			return "", 0, false
		case <-q.filled:
		}
		q.mu.Lock()
		if len(q.order) > 0 {
			id, q.order = q.order[0], q.order[1:]
			delete(q.waiting, id)
			left, ok = len(q.order), true
		}
		if len(q.order) > 0 {
			q.signal()
		}
		q.mu.Unlock()
		if ok {
			return id, left, true
		}
	}
}

func (q *queue) signal() {
	select {
	case q.filled <- struct{}{}:
	default:
	}
}

// Expired is told that a device's result ran out (admission.Desk.OnExpiry). It
// returns at once; Run does the work.
func (v *Verifier) Expired(deviceID string) { v.enqueue(deviceID) }

// AssetChanged is told that the inventory changed a device
// (enrolment.Registry.OnChange). It returns at once; Run does the work.
func (v *Verifier) AssetChanged(dev *fleetv1.Device) {
	if dev.GetId() != "" {
		v.enqueue(dev.GetId())
	}
}

// AttestationChanged is told that a device's TPM vouches for something else
// than before, or no longer for anything (attestation.Book.OnChange). It returns
// at once; Run does the work.
func (v *Verifier) AttestationChanged(deviceID string) {
	if deviceID != "" {
		v.enqueue(deviceID)
	}
}

func (v *Verifier) enqueue(id string) { v.Metrics.queued(v.queue.put(id)) }

// Run judges anew what Expired, AssetChanged and AttestationChanged named, and at its start every
// device whose result comes from another version of the policy: a collector
// that stopped in the middle of Adopt goes on with it. It returns when the
// context ends.
func (v *Verifier) Run(ctx context.Context) error {
	err := v.Store.EachResult(ctx, func(id string, res *posturev1.Result) error {
		if res.GetPolicyVersion() != v.Policy().Version() {
			v.enqueue(id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	workers, ctx := errgroup.WithContext(ctx)
	for range queueWorkers {
		workers.Go(func() error { return v.work(ctx) })
	}
	return workers.Wait()
}

func (v *Verifier) work(ctx context.Context) error {
	for {
		id, left, ok := v.queue.take(ctx)
		if !ok {
			return context.Cause(ctx)
		}
		v.Metrics.queued(left)
		if _, err := v.Reappraise(ctx, id); err != nil && ctx.Err() == nil {
			v.Log.ErrorContext(ctx, "stored evidence not judged anew", "device_id", id, "error", err)
			pause(ctx, retryAfter)
			v.enqueue(id)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
