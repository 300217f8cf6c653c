package session

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
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
	// whole system, is slowed down, section by section: reading one may take so
	// many milliseconds of every second, and as many as budgetMax after a quiet
	// time. Each reading counts for budgetMin at least.
	budgetPerSecond = 100
	budgetMax       = 2000
	budgetMin       = 20
)

// snapshot is the newest evidence: the newest reading of every section.
type snapshot struct {
	// evidence is nil until every section was read.
	evidence *posturev1.Evidence
	digest   []byte
	// began is when the oldest reading in it began: reading some sections again
	// makes the others no fresher.
	began time.Time
	// round is the newest round that every section has taken part in.
	round uint64
}

// age is how old evidence is. The monotonic clock stands still while the
// notebook sleeps, the wall clock may be set back: the larger one counts.
func (s snapshot) age() time.Duration {
	now := time.Now()
	return max(now.Sub(s.began), now.Round(0).Sub(s.began.Round(0)), 0)
}

// section is one section of the evidence. It has a reader of its own, so that
// no section waits for another and none is read twice at once.
type section struct {
	name string
	// budget is counted in milliseconds of reading.
	budget *rate.Limiter
	wanted chan struct{}
	newest reading // guarded by readings.mu
}

// reading is what was read of a section, and when that began; round is the
// newest one asked for before.
type reading struct {
	evidence *posturev1.Evidence
	began    time.Time
	round    uint64
}

// readings reads the sections of evidence and holds the newest of each. Reading
// all of them is a round.
type readings struct {
	collector Collector
	log       *slog.Logger
	sections  map[string]*section
	// collected is told after every reading. One stream at a time listens.
	collected chan struct{}
	replanned chan struct{}

	mu       sync.Mutex
	interval time.Duration
	round    uint64    // the newest that was asked for
	asked    time.Time // when it was
	due      time.Time // when the next one is
	current  snapshot
}

func newReadings(c Collector, log *slog.Logger) *readings {
	r := &readings{
		collector: c, log: log,
		sections:  map[string]*section{},
		collected: make(chan struct{}, 1),
		replanned: make(chan struct{}, 1),
		interval:  defaultInterval,
	}
	for _, name := range posture.Sections() {
		r.sections[name] = &section{
			name: name, budget: rate.NewLimiter(budgetPerSecond, budgetMax), wanted: make(chan struct{}, 1),
		}
	}
	return r
}

// request asks for the named sections to be read as soon as possible. Requests
// during a reading are served together by the next one.
func (r *readings) request(sections ...string) {
	for _, name := range sections {
		if s := r.sections[name]; s != nil {
			signal(s.wanted)
		}
	}
}

// requestAll asks for a new round and returns its number.
func (r *readings) requestAll() (round uint64) {
	r.mu.Lock()
	r.round++
	round, r.asked = r.round, time.Now()
	r.plan()
	r.mu.Unlock()
	for _, s := range r.sections {
		signal(s.wanted)
	}
	return round
}

// every sets how often there is a round if nothing else asks for it.
func (r *readings) every(d time.Duration) {
	r.mu.Lock()
	r.interval = min(max(d, minInterval), maxInterval)
	r.plan()
	r.mu.Unlock()
	signal(r.replanned)
}

// plan sets when the next round is due. Jitter spreads the notebooks of a
// fleet, and keeps each within the collector's bound. The caller holds mu.
func (r *readings) plan() {
	jitter := 0.75 + 0.2*rand.Float64()
	r.due = r.asked.Add(time.Duration(float64(r.interval) * jitter))
}

func (r *readings) newest() snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// run reads until ctx ends: everything at the start and in every interval, and
// what is requested.
func (r *readings) run(ctx context.Context) {
	var readers sync.WaitGroup
	defer readers.Wait()
	for _, s := range r.sections {
		readers.Go(func() { r.keep(ctx, s) })
	}
	r.requestAll()
	for ctx.Err() == nil {
		r.mu.Lock()
		wait := time.Until(r.due)
		r.mu.Unlock()
		if wait <= 0 {
			r.requestAll()
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-r.replanned:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// keep reads one section whenever it is wanted, until ctx ends.
func (r *readings) keep(ctx context.Context, s *section) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wanted:
		}
		r.mu.Lock()
		now := reading{round: r.round, began: time.Now()}
		r.mu.Unlock()
		now.evidence = r.collector.Collect(ctx, s.name)
		if ctx.Err() != nil {
			return // what was read was cut short
		}
		r.store(s, now)
		if !sleep(ctx, s.pay(time.Since(now.began))) {
			return
		}
	}
}

// pay takes what a reading cost from the budget, and returns how long to rest
// before the next one.
func (s *section) pay(cost time.Duration) time.Duration {
	n := min(max(int(cost.Milliseconds()), budgetMin), budgetMax)
	return s.budget.ReserveN(time.Now(), n).Delay()
}

// store makes a reading the newest of its section, and evidence of the newest
// of all.
func (r *readings) store(s *section, read reading) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.newest = read
	now := snapshot{evidence: &posturev1.Evidence{}, began: read.began, round: read.round}
	for _, s := range r.sections {
		if s.newest.evidence == nil {
			return
		}
		now.evidence = posture.Merge(now.evidence, s.newest.evidence)
		now.round = min(now.round, s.newest.round)
		if s.newest.began.Before(now.began) {
			now.began = s.newest.began
		}
	}
	now.evidence = bounded(now.evidence)
	digest, err := posture.Digest(now.evidence)
	if err != nil {
		// Only a section that is not UTF-8, and bounded leaves none.
		r.log.Error("evidence has no digest", "error", err)
		return
	}
	now.digest = digest
	if now.round > r.current.round {
		r.log.Debug("every section was read", "round", now.round, "took", time.Since(now.began))
	}
	r.current = now
	signal(r.collected)
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
