package session

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// defaultInterval holds until a collector names another one.
	defaultInterval = 15 * time.Minute
	// A collector's interval is kept between these.
	minInterval, maxInterval = time.Second, time.Hour
	// A change is read at once. Only a storm of them, such as an upgrade of the
	// whole system, is slowed down: collecting may take so many milliseconds of
	// every second, and as many as budgetMax after a quiet time. Each
	// collection counts for budgetMin at least.
	budgetPerSecond = 100
	budgetMax       = 2000
	budgetMin       = 20
)

// snapshot is the newest evidence.
type snapshot struct {
	// evidence is nil before the first collection.
	evidence *posturev1.Evidence
	digest   []byte
	// began is when the newest collection of all sections began: a later one
	// of some sections makes the others no fresher.
	began time.Time
	// full counts collections of all sections.
	full uint64
}

// age is how old evidence is. The monotonic clock stands still while the
// notebook sleeps, the wall clock may be set back: the larger one counts.
func (s snapshot) age() time.Duration {
	now := time.Now()
	return max(now.Sub(s.began), now.Round(0).Sub(s.began.Round(0)), 0)
}

// readings collects evidence and holds the newest.
type readings struct {
	collector Collector
	log       *slog.Logger
	// budget is counted in milliseconds of collecting.
	budget *rate.Limiter
	wake   chan struct{}
	// collected is told after every collection. One stream at a time listens.
	collected chan struct{}

	mu       sync.Mutex
	interval time.Duration
	wanted   map[string]bool // sections to read again
	all      bool            // read all of them
	current  snapshot
}

func newReadings(c Collector, log *slog.Logger) *readings {
	return &readings{
		collector: c, log: log,
		budget:    rate.NewLimiter(budgetPerSecond, budgetMax),
		wake:      make(chan struct{}, 1),
		collected: make(chan struct{}, 1),
		interval:  defaultInterval,
		wanted:    map[string]bool{},
	}
}

// request asks for the named sections, all when none is named, to be read as
// soon as possible. Requests during a collection are served together by the
// next one.
func (r *readings) request(sections ...string) {
	r.mu.Lock()
	r.all = r.all || len(sections) == 0
	for _, s := range sections {
		r.wanted[s] = true
	}
	r.mu.Unlock()
	signal(r.wake)
}

// every sets how often everything is collected if nothing else asks for it.
func (r *readings) every(d time.Duration) {
	r.mu.Lock()
	r.interval = min(max(d, minInterval), maxInterval)
	r.mu.Unlock()
	signal(r.wake)
}

func (r *readings) newest() snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// run collects until ctx ends: everything at the start and in every interval,
// and what is requested.
func (r *readings) run(ctx context.Context) {
	r.request()
	last, spread := time.Now(), jitter()
	for {
		r.mu.Lock()
		wait := time.Duration(float64(r.interval)*spread) - time.Since(last)
		r.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-timer.C:
			r.request()
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
		began := time.Now()
		if all := r.collect(ctx); all {
			last, spread = time.Now(), jitter()
		}
		if !sleep(ctx, r.pay(time.Since(began))) {
			return
		}
	}
}

// pay takes what a collection cost from the budget, and returns how long to
// rest before the next one.
func (r *readings) pay(cost time.Duration) time.Duration {
	n := min(max(int(cost.Milliseconds()), budgetMin), budgetMax)
	return r.budget.ReserveN(time.Now(), n).Delay()
}

// jitter spreads the intervals of a fleet, and keeps each within the
// collector's bound.
func jitter() float64 { return 0.75 + 0.2*rand.Float64() }

// collect reads what is wanted, if anything, and says whether that was
// everything.
func (r *readings) collect(ctx context.Context) (all bool) {
	r.mu.Lock()
	all = r.all
	sections := slices.Sorted(maps.Keys(r.wanted))
	r.all, r.wanted = false, map[string]bool{}
	r.mu.Unlock()
	if all {
		sections = nil
	} else if len(sections) == 0 {
		return false
	}
	began := time.Now()
	ev := bounded(r.collector.Collect(ctx, sections...))
	digest, err := posture.Digest(ev)
	if err != nil {
		// Only a section that is not UTF-8, and bounded leaves none.
		r.log.Error("evidence has no digest", "error", err)
		return all
	}
	r.mu.Lock()
	r.current.evidence, r.current.digest = ev, digest
	if all {
		r.current.began = began
		r.current.full++
	}
	r.mu.Unlock()
	signal(r.collected)
	return all
}

// bounded returns evidence that the collector will take: a section beyond its
// limits becomes one that says so. Otherwise one absurd list would silence the
// notebook.
func bounded(ev *posturev1.Evidence) *posturev1.Evidence {
	if posture.CheckLimits(ev) == nil {
		return ev
	}
	out := &posturev1.Evidence{}
	total := 0
	ev.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		section := out.ProtoReflect().NewField(f).Message()
		alone := &posturev1.Evidence{}
		alone.ProtoReflect().Set(f, v)
		size := proto.Size(alone)
		err := posture.CheckLimits(alone)
		if err == nil && total+size > posture.MaxMessageBytes/2 {
			err = fmt.Errorf("%d bytes, too many together with the other sections", size)
		}
		if err == nil {
			total += size
			out.ProtoReflect().Set(f, v)
			return true
		}
		reading := &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_FAILED, Reason: err.Error()}
		section.Set(section.Descriptor().Fields().ByName("reading"), protoreflect.ValueOfMessage(reading.ProtoReflect()))
		out.ProtoReflect().Set(f, protoreflect.ValueOfMessage(section))
		return true
	})
	return out
}
