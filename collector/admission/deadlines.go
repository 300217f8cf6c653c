package admission

import (
	"container/heap"
	"context"
	"time"
)

// longestSleep bounds how late a deadline fires when the wall clock is set.
const longestSleep = 30 * time.Second

// atOnce bounds how many deadlines fire under one hold of the lock.
const atOnce = 256

// deadline is one moment at which something has to be decided again. It
// belongs to one device, to one gate or to one session.
type deadline struct {
	at      time.Time
	place   int // in the heap, from 1; 0: not in it
	device  *device
	gate    *gate
	session *session
}

// deadlines are all moments that the Desk waits for, the next one first.
// Guarded by Desk.mu.
type deadlines struct {
	heap *deadlineHeap
	// sooner wakes Run when the next moment has come nearer.
	sooner chan struct{}
}

func newDeadlines() deadlines {
	return deadlines{heap: &deadlineHeap{}, sooner: make(chan struct{}, 1)}
}

func (q deadlines) set(dl *deadline, at time.Time) {
	dl.at = at
	if dl.place > 0 {
		heap.Fix(q.heap, dl.place-1)
	} else {
		heap.Push(q.heap, dl)
	}
	if dl.place == 1 {
		wake(q.sooner)
	}
}

func (q deadlines) remove(dl *deadline) {
	if dl.place > 0 {
		heap.Remove(q.heap, dl.place-1)
	}
}

// due takes the next deadline out if its moment has come.
func (q deadlines) due(now time.Time) *deadline {
	if len(*q.heap) == 0 || (*q.heap)[0].at.After(now) {
		return nil
	}
	return heap.Pop(q.heap).(*deadline)
}

// sleep is how long nothing is due.
func (q deadlines) sleep(now time.Time) time.Duration {
	if len(*q.heap) == 0 {
		return longestSleep
	}
	return max(0, min(longestSleep, (*q.heap)[0].at.Sub(now)))
}

// deadlineHeap implements heap.Interface.
type deadlineHeap []*deadline

func (h deadlineHeap) Len() int           { return len(h) }
func (h deadlineHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h deadlineHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i+1, j+1
}

func (h *deadlineHeap) Push(x any) {
	dl := x.(*deadline)
	*h = append(*h, dl)
	dl.place = len(*h)
}

func (h *deadlineHeap) Pop() any {
	last := len(*h) - 1
	dl := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	dl.place = 0
	return dl
}

// Run lets deadlines fire and records refusals until the context ends. It
// returns the context's cause, after everything refused so far is recorded.
func (d *Desk) Run(ctx context.Context) error {
	recorded := make(chan struct{})
	go func() {
		defer close(recorded)
		d.refusals.run(ctx)
	}()
	defer func() { <-recorded }()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		case <-d.deadlines.sooner:
		}
		for d.fire() {
		}
		d.mu.RLock()
		sleep := d.deadlines.sleep(d.options.Now())
		d.mu.RUnlock()
		timer.Reset(sleep)
	}
}

// fire acts on deadlines that are due, and says whether there may be more.
// Results that ended are asked about before anything is decided on their end:
// what is at hand by then counts.
func (d *Desk) fire() (more bool) {
	d.mu.Lock()
	var expired []*device
	var ids []string
	var renewed []*gate
	var overdue int
	now := d.options.Now()
	for len(ids)+len(renewed)+overdue < atOnce {
		dl := d.deadlines.due(now)
		if dl == nil {
			break
		}
		if dl.session != nil {
			d.cutUnproven(dl.session, now)
			overdue++
			continue
		}
		if dl.gate != nil {
			renewed = append(renewed, dl.gate)
			continue
		}
		dl.device.fired = dl.device.facts.ExpiresAt
		expired = append(expired, dl.device)
		ids = append(ids, dl.device.facts.DeviceID)
	}
	d.mu.Unlock()
	if d.onExpiry != nil {
		for _, id := range ids {
			d.onExpiry(id)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now = d.options.Now()
	for _, dv := range expired {
		d.settle(dv, time.Time{}, now)
	}
	for _, g := range renewed {
		d.renewAll(g, now)
	}
	return len(ids)+len(renewed)+overdue == atOnce
}

// wake puts a signal into a channel of capacity 1; one that waits already is
// enough.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
