package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// DefaultTimeout ends a reading whose probe names no other time-out.
	DefaultTimeout = 10 * time.Second

	maxReasonBytes = 300
)

var (
	errTimeout   = errors.New("no answer")
	errCancelled = errors.New("the reading was cancelled")
)

// Collector runs probes and records how each reading went. It may be used by
// several goroutines: no section waits for another, and each is read by one
// probe at a time.
type Collector struct {
	readers []*reader
}

// NewCollector returns a Collector that runs probes on host; host.Now must be
// set.
func NewCollector(host Host, probes []Probe) *Collector {
	c := &Collector{}
	for _, p := range probes {
		c.readers = append(c.readers, &reader{probe: p, host: host, turn: make(chan struct{}, 1)})
	}
	return c
}

// Collect reads the named sections in parallel, all when none is named, and
// returns evidence of these alone. What is being read when it is called is read
// once more after that. It returns as soon as each probe has answered, panicked,
// reached its time-out or been left by ctx. A probe that hangs is not started
// again while it still does. The evidence is never nil.
func (c *Collector) Collect(ctx context.Context, sections ...string) *posturev1.Evidence {
	read := make([]*posturev1.Evidence, len(c.readers))
	var reading sync.WaitGroup
	for i, r := range c.readers {
		if len(sections) == 0 || slices.Contains(sections, r.probe.Section) {
			reading.Go(func() { read[i] = r.read(ctx) })
		}
	}
	reading.Wait()
	all := &posturev1.Evidence{}
	for _, ev := range read {
		all = posture.Merge(all, ev)
	}
	return all
}

// reader reads one section.
type reader struct {
	probe Probe
	host  Host
	// turn is full while somebody reads.
	turn chan struct{}
	// last belongs to whose turn it is. It still runs when it was given up on
	// and hangs.
	last *attempt
}

// read returns evidence of the reader's section alone.
func (r *reader) read(ctx context.Context) *posturev1.Evidence {
	asked := r.host.Now()
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return section(r.probe.Section, nil, asked, r.host.Now(), errCancelled)
	}
	if !r.last.running() {
		r.last = start(ctx, r.probe, r.host)
	}
	return r.last.await(r.host.Now)
}

// attempt is one run of one probe. evidence, err and ended belong to the
// probe's goroutine until done is closed; a probe that hangs keeps them for
// ever.
type attempt struct {
	section string
	timeout time.Duration
	began   time.Time
	ctx     context.Context
	cancel  context.CancelFunc
	done    chan struct{}
	leftAt  time.Time // when it was given up on; zero before

	evidence *posturev1.Evidence
	err      error
	ended    time.Time
}

func start(ctx context.Context, p Probe, h Host) *attempt {
	a := &attempt{
		section:  p.Section,
		timeout:  cmp.Or(p.Timeout, DefaultTimeout),
		began:    h.Now(),
		done:     make(chan struct{}),
		evidence: &posturev1.Evidence{},
		err:      errors.New("the probe ended without an answer"),
	}
	a.ctx, a.cancel = context.WithTimeoutCause(ctx, a.timeout, errTimeout)
	go func() {
		defer func() {
			a.ended = h.Now()
			close(a.done)
		}()
		a.err = guarded(a.ctx, p, h, a.evidence)
	}()
	return a
}

// running is false for no attempt at all.
func (a *attempt) running() bool {
	if a == nil {
		return false
	}
	select {
	case <-a.done:
		return false
	default:
		return true
	}
}

// await returns what the attempt read, or why there is no answer.
func (a *attempt) await(now func() time.Time) *posturev1.Evidence {
	defer a.cancel()
	select {
	case <-a.done:
	case <-a.ctx.Done():
	}
	switch {
	case !a.running():
		return section(a.section, a.evidence, a.began, a.ended, a.err)
	case !a.leftAt.IsZero():
		err := fmt.Errorf("no answer since %s", a.began.UTC().Format(time.RFC3339))
		return section(a.section, nil, a.began, a.leftAt, err)
	}
	a.leftAt = now()
	err := errCancelled
	if errors.Is(context.Cause(a.ctx), errTimeout) {
		err = fmt.Errorf("%w within %s", errTimeout, a.timeout)
	}
	return section(a.section, nil, a.began, a.leftAt, err)
}

// guarded runs a probe and turns its panic into an error that says where.
func guarded(ctx context.Context, p Probe, h Host, ev *posturev1.Evidence) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the probe panicked at %s: %v", panicSite(), r)
		}
	}()
	return p.Collect(ctx, h, ev)
}

// panicSite is the file and line that panicked, called from the function that
// recovers.
func panicSite() string {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	for {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, "runtime.") {
			return fmt.Sprintf("%s:%d", filepath.Base(f.File), f.Line)
		}
		if !more {
			return "unknown place"
		}
	}
}

// section returns evidence that holds only the named section of ev (nil: an
// empty one), its reading completed from err.
func section(name string, ev *posturev1.Evidence, began, ended time.Time, err error) *posturev1.Evidence {
	if ev == nil {
		ev = &posturev1.Evidence{}
	}
	only := &posturev1.Evidence{}
	field := only.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(name))
	if field == nil {
		return only
	}
	body := ev.ProtoReflect().Mutable(field)
	reading := body.Message().Descriptor().Fields().ByName("reading")
	complete(body.Message().Mutable(reading).Message().Interface().(*posturev1.Reading), began, ended, err)
	only.ProtoReflect().Set(field, body)
	return only
}

func complete(r *posturev1.Reading, began, ended time.Time, err error) {
	switch {
	case errors.Is(err, ErrNotApplicable):
		r.State = posturev1.ReadingState_READING_STATE_NOT_APPLICABLE
		r.Reason = strings.TrimSuffix(err.Error(), ": "+ErrNotApplicable.Error())
	case err != nil:
		r.State = posturev1.ReadingState_READING_STATE_FAILED
		r.Reason = err.Error()
	case r.State == posturev1.ReadingState_READING_STATE_UNSPECIFIED:
		r.State = posturev1.ReadingState_READING_STATE_OBSERVED
	}
	r.Reason = oneLine(r.Reason)
	r.ObservedAt = timestamppb.New(began)
	r.Duration = durationpb.New(ended.Sub(began))
}

// oneLine makes any text fit for a reason: valid UTF-8, one line, not long.
func oneLine(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\n", "; ")
	if len(s) <= maxReasonBytes {
		return s
	}
	cut := maxReasonBytes
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
