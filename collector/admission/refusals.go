package admission

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Refusals is where refusals are recorded so that a code can be resolved and
// nobody is refused unnoticed (collector/store).
type Refusals interface {
	// SaveRefusal keeps what a code stands for, with its audit records.
	SaveRefusal(ctx context.Context, x *fleetv1.Explanation, code string, records ...audit.Record) error
	// AppendAudit keeps audit records alone.
	AppendAudit(ctx context.Context, records ...audit.Record) error
}

const (
	// mostRefusals is how many different refusals are listed one by one in a
	// quietTime; further ones are only counted.
	mostRefusals = 4096
	// quietTime is how long repetitions of a refusal are gathered into one
	// record.
	quietTime = time.Minute
	// lastWords is how long recording may go on once the context has ended.
	lastWords = 5 * time.Second
)

// recorder records refusals in the background: the first of its kind at once,
// its repetitions as a number. It never makes an admission wait, and its
// memory is bounded whoever knocks.
type recorder struct {
	to  Refusals
	log *slog.Logger
	now func() time.Time

	woken chan struct{}

	mu       sync.Mutex
	known    map[refusalKey]*refusal
	unlisted int
}

type refusalKey struct{ gateway, code string }

// refusal is what one identity was told on one gateway. Its fields up to
// repeats are not changed.
type refusal struct {
	at          time.Time
	gateway     string
	certificate []byte
	deviceID    string
	assetNumber string
	decision    Decision
	code        string
	reason      *posturev1.LocalText

	recorded bool
	repeats  int
}

func newRecorder(to Refusals, log *slog.Logger, now func() time.Time) *recorder {
	return &recorder{to: to, log: log, now: now, woken: make(chan struct{}, 1), known: map[refusalKey]*refusal{}}
}

// note takes a refusal and returns at once.
func (r *recorder) note(gateway string, s *gatev1.SessionFacts, f *Facts, d Decision, a Answer, m *Metrics) {
	if r.to == nil {
		return
	}
	key := refusalKey{gateway, a.Code}
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, ok := r.known[key]; ok {
		known.repeats++
		return
	}
	if len(r.known) >= mostRefusals {
		r.unlisted++
		m.unrecorded.Inc()
		return
	}
	n := &refusal{
		at:          r.now(),
		gateway:     gateway,
		certificate: s.GetCertificateSha256(),
		decision:    d,
		code:        a.Code,
		reason:      a.Message,
	}
	if f != nil {
		n.deviceID, n.assetNumber = f.DeviceID, f.AssetNumber
	}
	r.known[key] = n
	wake(r.woken)
}

// run records until the context ends, and then what is left.
func (r *recorder) run(ctx context.Context) {
	if r.to == nil {
		return
	}
	sweep := time.NewTicker(quietTime)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
			defer cancel()
			r.record(last)
			r.sweep(last)
			return
		case <-r.woken:
			r.record(ctx)
		case <-sweep.C:
			r.record(ctx)
			r.sweep(ctx)
		}
	}
}

// record writes refusals that are new. What cannot be written stays, and is
// tried again with the next one or the next sweep.
func (r *recorder) record(ctx context.Context) {
	r.mu.Lock()
	var fresh []*refusal
	for _, n := range r.known {
		if !n.recorded {
			fresh = append(fresh, n)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(fresh, func(a, b *refusal) int { return a.at.Compare(b.at) })
	for _, n := range fresh {
		if err := r.write(ctx, n); err != nil {
			r.log.ErrorContext(ctx, "recording a refusal", "code", n.code, "gateway", n.gateway, "error", err)
			return
		}
		r.mu.Lock()
		n.recorded = true
		r.mu.Unlock()
	}
}

// write keeps one refusal. A code that comes from a result is in the store
// already, with that result.
func (r *recorder) write(ctx context.Context, n *refusal) error {
	if n.decision.Cause == Appraised {
		return r.to.AppendAudit(ctx, n.auditRecord(n.at, 0))
	}
	x := &fleetv1.Explanation{
		Verdict:           n.decision.Verdict,
		Reason:            n.reason,
		RefusedAt:         timestamppb.New(n.at),
		Gateway:           n.gateway,
		CertificateSha256: n.certificate,
	}
	if n.deviceID != "" {
		x.Device = &fleetv1.Device{Id: n.deviceID}
	}
	return r.to.SaveRefusal(ctx, x, n.code, n.auditRecord(n.at, 0))
}

// sweep writes how often refusals were repeated and forgets those that were
// not.
func (r *recorder) sweep(ctx context.Context) {
	now := r.now()
	r.mu.Lock()
	var records []audit.Record
	counts := map[refusalKey]int{}
	for key, n := range r.known {
		switch {
		case !n.recorded:
		case n.repeats == 0:
			delete(r.known, key)
		default:
			records = append(records, n.auditRecord(now, n.repeats))
			counts[key] = n.repeats
		}
	}
	unlisted := r.unlisted
	r.mu.Unlock()
	if unlisted > 0 {
		records = append(records, audit.Record{At: now, Kind: "session.refused", Details: map[string]string{
			"times": strconv.Itoa(unlisted), "cause": "too many different ones to list",
		}})
	}
	if len(records) == 0 {
		return
	}
	if err := r.to.AppendAudit(ctx, records...); err != nil {
		r.log.ErrorContext(ctx, "recording repeated refusals", "error", err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range maps.Keys(counts) {
		r.known[key].repeats -= counts[key]
	}
	r.unlisted -= unlisted
}

var refusalKinds = map[posturev1.Verdict]string{
	posturev1.Verdict_VERDICT_DENY:       "session.refused",
	posturev1.Verdict_VERDICT_QUARANTINE: "session.quarantined",
}

func (n *refusal) auditRecord(at time.Time, times int) audit.Record {
	details := map[string]string{
		"code":               n.code,
		"cause":              n.decision.Cause.String(),
		"certificate_sha256": fingerprintText(n.certificate),
	}
	if times > 0 {
		details["times"] = strconv.Itoa(times)
	}
	return audit.Record{
		At:          at,
		Kind:        refusalKinds[n.decision.Verdict],
		Actor:       n.gateway,
		DeviceID:    n.deviceID,
		AssetNumber: n.assetNumber,
		Details:     details,
	}
}
