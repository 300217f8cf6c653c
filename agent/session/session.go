// Package session keeps the notebook's posture known to the collector: it
// collects when something changed, when asked and when it has been silent for
// long, and holds a stream on which the collector is told.
//
//	Watcher ─ what changed ─▶ readings ─ newest evidence ─▶ stream ══▶ collector
//	collector ═ collect now, resync, result, renewal ═▶ stream
//
// Rules. Every section has a reader of its own: a changed disk is on its way at
// once, however long the package database takes. Posture is state, not a log: only the newest evidence is kept, at most
// one report is on its way, and what changes meanwhile goes with the next one.
// Every stream begins with full evidence, so nothing depends on what an earlier
// one achieved. A collector that is away costs the notebook nothing but a
// look now and then; one that misbehaves ends its own stream and nothing else.
package session

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"pfoertner/agent/identity"
	"pfoertner/agent/status"
	"pfoertner/agent/uplink"
	"pfoertner/agent/vpnkey"
	"pfoertner/internal/attest/chip"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Collector reads the machine.
type Collector interface {
	// Collect reads the named sections and returns evidence of these alone,
	// never nil. It is called for several sections at the same time, and never
	// changes what it returned before.
	Collect(ctx context.Context, sections ...string) *posturev1.Evidence
}

// Watcher tells when the machine has changed.
type Watcher interface {
	// Watch calls notify with the sections to read again, all when none is
	// named, until ctx ends.
	Watch(ctx context.Context, notify func(sections ...string)) error
}

// Board shows the notebook's user how things are.
type Board interface {
	// Connection is how the way to the collector is from now on.
	Connection(status.Connection)
	// Waiting says that persons have to approve the key with this fingerprint.
	Waiting(fingerprint string)
	// NotEnrolled says that there is no certificate yet, and why.
	NotEnrolled(status.Obstacle)
	// Acknowledged is told when the collector has stored a report.
	Acknowledged(at time.Time)
	// Judged is told every result.
	Judged(*posturev1.Result)
}

// Options of Run. All but Enrolment, Watcher and VPNCatalogue have to be set.
type Options struct {
	Target uplink.Target
	State  *identity.State
	// Enrolment returns what is needed to enrol; asked before every attempt
	// while there is no certificate, or only an expired one. Nil: there has to be
	// a valid one.
	Enrolment func() (identity.Enrolment, error)
	Collector Collector
	// Watcher may be nil: then only time and the collector make the agent
	// collect.
	Watcher Watcher
	// VPNCatalogue is told of the collector's catalogue of VPN clients; nil:
	// there is no use for one.
	VPNCatalogue VPNCatalogue
	// TunnelProofWanted is called when the collector waits for the proof that a
	// VPN session is this notebook's; it must not wait. Nil: nobody proves any.
	TunnelProofWanted func()
	Board             Board
	Log               *slog.Logger
}

const (
	// stableAfter is how long a stream has to last, with something
	// acknowledged on it, before the next failure counts as the first.
	stableAfter = 30 * time.Second
	// hurryEvery bounds how often network changes cut a wait short, so that a
	// flapping link does not turn into an attack on the collector.
	hurryEvery = 3 * time.Second
)

// agent is one running Run.
type agent struct {
	Options
	readings *readings
	// catalogue is nil when there is no use for one.
	catalogue *catalogueKeeper
	// vpnKeeper is nil when the device key is not in a TPM.
	vpnKeeper *vpnkey.Keeper
	// slow are the works of a TPM that streams have given (beside), turn is taken
	// by the one that runs.
	slow sync.WaitGroup
	turn chan struct{}
	// network is told when links or routes may have changed.
	network        chan struct{}
	hurry          *rate.Limiter
	retry, refused *uplink.Backoff
	// returned is when the keys in the TPM last enrolled anew, or were refused;
	// zero: never.
	returned time.Time
	// patience is how long the collector may take to answer.
	patience time.Duration
	// moved says whether a path is not the one that packets would take now.
	moved func(uplink.Path) bool
}

// Run enrols if needed and then reports, until ctx ends; then it returns nil. It
// returns an error only when the identity cannot be read: that needs a person.
// One that is removed meanwhile is obtained again.
func Run(ctx context.Context, o Options) error {
	if o.Enrolment == nil {
		return newAgent(o).run(ctx)
	}
	for {
		err := o.State.Obtain(ctx, o.Enrolment, waiting{o.Board}, o.Log)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := newAgent(o).run(ctx); !errors.Is(err, identity.ErrNotEnrolled) {
			return err
		}
	}
}

// waiting shows an enrolment that is not finished on the board.
type waiting struct{ board Board }

// NotYet implements identity.Waiting.
func (w waiting) NotYet(err error) {
	var p *identity.PendingError
	if errors.As(err, &p) {
		w.board.Waiting(p.Fingerprint)
		return
	}
	var other *identity.CopiedError
	switch {
	case errors.Is(err, chip.ErrUnavailable):
		w.board.Connection(status.NoTPM)
	case errors.Is(err, identity.ErrOtherKind):
		w.board.Connection(status.OtherProtection)
	case errors.As(err, &other):
		w.board.NotEnrolled(status.ForeignKeys)
	default:
		w.board.NotEnrolled(obstacle(err))
	}
}

// obstacle is what an error of an attempt to enrol means to people.
func obstacle(err error) status.Obstacle {
	var network *net.OpError
	var unknown *tls.CertificateVerificationError
	code := grpcstatus.Code(err)
	switch {
	case errors.Is(err, identity.ErrNoToken):
		return status.NoToken
	case errors.Is(err, identity.ErrNotExpected):
		return status.NotExpected
	// gRPC passes on as text only why a handshake ended.
	case errors.Is(err, uplink.ErrPin), errors.As(err, &unknown), strings.Contains(err.Error(), "failed to verify certificate"):
		return status.WrongAuthority
	case code == codes.PermissionDenied, code == codes.Unauthenticated:
		return status.TokenRefused
	case code == codes.Unavailable, code == codes.DeadlineExceeded, errors.As(err, &network), errors.Is(err, context.DeadlineExceeded):
		return status.NotReached
	}
	return ""
}

func newAgent(o Options) *agent {
	a := &agent{
		Options:  o,
		readings: newReadings(o.Collector, o.Log),
		network:  make(chan struct{}, 1),
		turn:     make(chan struct{}, 1),
		hurry:    rate.NewLimiter(rate.Every(hurryEvery), 2),
		retry:    uplink.Retry(),
		refused:  uplink.Refused(),
		patience: answerTimeout,
		moved:    uplink.Path.Moved,

		vpnKeeper: newVPNKeeper(o.State),
	}
	if o.VPNCatalogue != nil {
		a.catalogue = newCatalogueKeeper(o.State, o.VPNCatalogue, o.Log)
	}
	return a
}

func (a *agent) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer a.slow.Wait()
	defer parts.Wait()
	defer cancel()
	a.restoreCatalogue()
	parts.Go(func() { a.readings.run(ctx) })
	if a.Watcher != nil {
		parts.Go(func() { a.watch(ctx) })
	}
	return a.connect(ctx)
}

// restoreCatalogue makes use of the catalogue that was in force before, so that
// the first evidence knows it already. One that no longer holds up is not used;
// the collector sends it again.
func (a *agent) restoreCatalogue() {
	if a.catalogue == nil {
		return
	}
	id, err := a.State.Load()
	if err != nil {
		return // connecting needs it too, and says so
	}
	if err := a.catalogue.restore(id.ServerPool(), time.Now()); err != nil {
		a.Log.Warn("the kept VPN catalogue is not used", "error", err)
	}
}

// watch passes on what the Watcher notices. Without it the agent would still
// report in every interval, so a Watcher that fails is started again later.
func (a *agent) watch(ctx context.Context) {
	again := uplink.Retry()
	for {
		err := a.Watcher.Watch(ctx, a.noticed)
		if ctx.Err() != nil {
			return
		}
		a.Log.Warn("watching the machine ended", "error", err)
		if !sleep(ctx, again.Next()) {
			return
		}
	}
}

func (a *agent) noticed(sections ...string) {
	if len(sections) == 0 {
		a.readings.requestAll()
	}
	a.readings.request(sections...)
	if len(sections) == 0 || slices.Contains(sections, "vpn") {
		signal(a.network)
	}
}

// connect holds one stream after the other.
func (a *agent) connect(ctx context.Context) error {
	for {
		began := time.Now()
		acknowledged, err := a.attempt(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, identity.ErrBroken) || errors.Is(err, identity.ErrNotEnrolled) && a.Enrolment != nil {
			return err
		}
		if notAccepted(err) && !errors.Is(err, identity.ErrExpired) {
			err = a.comeBack(ctx, err)
		}
		if acknowledged && time.Since(began) >= stableAfter {
			a.retry.Reset()
			a.refused.Reset()
		}
		if (errors.Is(err, errRenewed) || errors.Is(err, errMoved) || errors.Is(err, errEnrolled)) && a.hurry.Allow() {
			a.Log.Info("connecting anew", "reason", err)
			continue
		}
		state, wait := a.setback(err)
		var approval *identity.PendingError
		if errors.As(err, &approval) {
			a.Board.Waiting(approval.Fingerprint)
		} else {
			a.Board.Connection(state)
		}
		a.Log.Warn("no connection to the collector", "error", err, "next_attempt_in", wait.Round(time.Millisecond))
		if !a.pause(ctx, wait) {
			return nil
		}
	}
}

// setback says what an ended stream means, and how long to wait.
func (a *agent) setback(err error) (status.Connection, time.Duration) {
	switch {
	case errors.As(err, new(*identity.PendingError)):
		return status.Pending, a.refused.Next()
	case errors.Is(err, chip.ErrUnavailable):
		return status.NoTPM, a.retry.Next()
	case errors.Is(err, identity.ErrOtherKind):
		return status.OtherProtection, a.refused.Next()
	case errors.Is(err, identity.ErrExpired):
		return status.Expired, a.refused.Next()
	case errors.Is(err, identity.ErrNotEnrolled):
		return status.NotEnrolled, a.refused.Next()
	case obstacle(err) == status.WrongAuthority:
		return status.Untrusted, a.retry.Next()
	case notAccepted(err):
		return status.Refused, a.refused.Next()
	}
	return status.Unreachable, a.retry.Next()
}

// rejected says whether the collector has turned down the device certificate
// already in the handshake. gRPC passes such an alert on as text only; should
// its words change, the collector counts as unreachable.
func rejected(err error) bool {
	return grpcstatus.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "remote error: tls: ")
}

// pause waits, but not longer than until the network changes. It returns false
// when ctx has ended.
func (a *agent) pause(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-a.network:
			if a.hurry.Allow() {
				return true
			}
		}
	}
}

// attempt opens one stream with the identity as it is on disk now, and serves
// it until it ends. acknowledged says whether a report was stored.
func (a *agent) attempt(ctx context.Context) (acknowledged bool, err error) {
	id, err := a.State.Load()
	if err != nil {
		return false, err
	}
	s, err := a.newStream(id)
	if errors.Is(err, identity.ErrExpired) {
		return false, a.enrolAnew(ctx, id, err)
	}
	if err != nil {
		return false, err
	}
	defer s.conn.Close()
	err = s.serve(ctx)
	return s.acknowledged, err
}

// signal tells a channel of capacity one without waiting.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sleep returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
