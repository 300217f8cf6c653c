// Package intake is the collector's side of the agents' streams.
//
// Rules. Who a device is, is taken from its verified certificate, never from a
// message. That it may be here is asked at the handshake, when its stream
// begins, and for every message; the moment it no longer may, its stream ends.
// A report is acknowledged when the Verifier has stored it, not before. A
// stream costs two goroutines and no copy of the evidence; its queue is one
// order of each kind. A device has one stream: two machines that are live with
// one identity are an alarm, as is a TPM that contradicts itself, and a software
// key that comes back after it was replaced. A TPM that does not quote in time
// only proves nothing any more.
package intake

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/collector/attestation"
	"pfoertner/collector/audit"
	"pfoertner/collector/authority"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Registry knows which devices are accepted (enrolment.Registry).
type Registry interface {
	// Accepts returns nil if the device is known and active and this is its key
	// (SHA-256 of the SubjectPublicKeyInfo).
	Accepts(deviceID string, spki []byte) error
	Device(id string) (*fleetv1.Device, bool)
	// Renew makes the key of a certificate just issued the device's key; the key
	// from is accepted until Settle.
	Renew(ctx context.Context, deviceID string, from, spki []byte, serial string, notAfter time.Time) error
	// Settle notes that a stream begins with this key: the first use of a new key
	// ends the one before for good. It returns after the commit.
	Settle(ctx context.Context, deviceID string, spki []byte) error
	// OnChange registers what is called after every change of a device.
	OnChange(fn func(*fleetv1.Device))
	// CertificateLifetime is how long the next certificate of a device lives.
	CertificateLifetime(deviceID string) time.Duration
	// Alarm suspends a device whose identity was copied.
	Alarm(ctx context.Context, deviceID, kind, detail string) error
}

// TPMs is what is known of the devices' TPMs (attestation.Book).
type TPMs interface {
	Known(deviceID string) (attestation.Known, bool)
	// Judge judges a quote. The error wraps attestation.ErrRefused, ErrCloned or
	// ErrOvertaken, or is the store's.
	Judge(ctx context.Context, deviceID string, asked attestation.Question, q *agentv1.Quote) (*posturev1.Attestation, error)
	// Failed notes why a quote that was asked for at a moment does not come.
	Failed(ctx context.Context, deviceID string, asked time.Time, reason string) error
	// Certified verifies that the TPM certifies a key; errors as those of Judge.
	Certified(ctx context.Context, deviceID string, key *attest.Key, purpose attest.Purpose, asked attestation.Question, message, signature []byte) error
	// Replace makes another key the attestation key.
	Replace(ctx context.Context, deviceID string, ak []byte) error
}

// Audit keeps records (collector/store).
type Audit interface {
	AppendAudit(ctx context.Context, records ...audit.Record) error
}

// Verifier appraises and stores. Its methods return nil after the commit.
type Verifier interface {
	Submit(ctx context.Context, deviceID string, ev *posturev1.Evidence, digest []byte, collectedAt time.Time) (*posturev1.Result, error)
	// Confirm says that the stored evidence was collected again, unchanged.
	Confirm(ctx context.Context, deviceID string, collectedAt time.Time) (*posturev1.Result, error)
}

// Reports has the newest stored evidence: what a delta is applied to. When
// there is none the error wraps fs.ErrNotExist.
type Reports interface {
	Report(ctx context.Context, deviceID string) (*posturev1.Evidence, *posturev1.Result, error)
}

// Issuer issues device certificates.
type Issuer interface {
	IssueDevice(deviceID string, key crypto.PublicKey, lifetime time.Duration) (*authority.Certificate, error)
	TrustBundle() [][]byte
	// RenewAfter is when the holder of a certificate should ask for the next.
	RenewAfter(device *x509.Certificate) time.Time
}

// Options is what the service needs.
type Options struct {
	Registry Registry
	Verifier Verifier
	Reports  Reports
	Issuer   Issuer
	TPMs     TPMs
	Audit    Audit
	// VPN issues VPN client certificates; nil: none are issued.
	VPN *VPN
	// ReportInterval says how long a notebook may stay silent; asked for every
	// new stream, and again before every result.
	ReportInterval func() time.Duration
	// Version of the collector, told to agents.
	Version string
	// MessageRate and MessageBurst bound what one stream may send; who sends
	// more waits. Zero: 5/s after a burst of 20. rate.Inf: no bound.
	MessageRate  rate.Limit
	MessageBurst int
	// Log; nil: nothing is logged.
	Log *slog.Logger
	// Metrics; nil: nothing is counted.
	Metrics *Metrics
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Service is agent.v1 SessionService.
type Service struct {
	agentv1.UnimplementedSessionServiceServer
	Options

	// catalogue is the VPN catalogue in force, empty when none is.
	catalogue atomic.Pointer[agentv1.VpnCatalogue]

	// turns holds a token for every report that the Verifier works on.
	turns chan struct{}

	// alarms are those under way.
	alarms sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	live     map[string]*session // the newest stream of every device
	presence map[string]presence // every device since the collector started
	raising  map[string]bool     // devices with an alarm under way
	noted    map[note]time.Time  // when a record was last written
}

// maxTurns is how many reports are worked on at the same time: as many as the
// store puts into one commit. When a whole fleet reports at once, more would
// only take memory.
const maxTurns = 256

type presence struct {
	lastSeen     time.Time
	agentVersion string
}

// Why streams end.
var (
	errReplaced    = status.Error(codes.Aborted, "another stream of this device has begun")
	errMeeting     = status.Error(codes.Unavailable, "two streams of this device are there already")
	errAbsent      = status.Error(codes.Aborted, "another stream of this device is live")
	errCloned      = status.Error(codes.PermissionDenied, "another machine has the identity of this device")
	errOvertaken   = status.Error(codes.Aborted, "a later statement of this TPM came first")
	errCertificate = status.Error(codes.Unauthenticated, "the certificate has ended")
	errClosing     = status.Error(codes.Unavailable, "the collector is stopping")
	errNoHello     = status.Error(codes.DeadlineExceeded, "no hello in time")
	errNotStored   = status.Error(codes.Unavailable, "the collector cannot store reports now")
)

// NewService makes the service and subscribes it to the Registry.
func NewService(o Options) *Service {
	if o.MessageRate == 0 {
		o.MessageRate, o.MessageBurst = 5, 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Service{
		Options: o, turns: make(chan struct{}, maxTurns),
		live: map[string]*session{}, presence: map[string]presence{}, raising: map[string]bool{}, noted: map[note]time.Time{},
	}
	s.catalogue.Store(&agentv1.VpnCatalogue{})
	o.Registry.OnChange(s.changed)
	return s
}

type connectStream = grpc.BidiStreamingServer[agentv1.ConnectRequest, agentv1.ConnectResponse]

// Connect is a device's stream. The handler only waits for the end: reading and
// writing is done by another goroutine, so that no client that does not read
// can hold up its own end.
func (s *Service) Connect(stream connectStream) error {
	id, cert, err := mtls.Peer(stream.Context(), mtls.RoleDevice)
	if err != nil {
		return status.Error(codes.Unauthenticated, "a device certificate is needed")
	}
	spki, err := attest.SPKI(cert.PublicKey)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	ctx, end := context.WithCancelCause(stream.Context())
	defer end(nil)
	ctx, stop := context.WithDeadlineCause(ctx, cert.NotAfter, errCertificate)
	defer stop()

	st := newSession(s, stream, id, cert, spki, ctx.Done(), end)
	if err := s.begin(st); err != nil {
		return err
	}
	defer s.finish(st)
	// Asked after begin: a change in between ends the session by changed.
	if err := st.accepted(); err != nil {
		return err
	}
	if err := st.settle(ctx); err != nil {
		return err
	}
	go func() { end(st.serve(ctx)) }()
	<-ctx.Done()
	return s.ended(ctx, st)
}

// ended says how a stream ended. The agent is told a status; what else went
// wrong is for the log.
func (s *Service) ended(ctx context.Context, st *session) error {
	cause := context.Cause(ctx)
	switch _, isStatus := status.FromError(cause); {
	case errors.Is(cause, errFinished):
		return nil
	case st.stream.Context().Err() != nil:
		return status.FromContextError(st.stream.Context().Err()).Err()
	case !isStatus:
		s.Log.ErrorContext(ctx, "stream failed", "device_id", st.deviceID, "error", cause)
		return status.Error(codes.Internal, "the collector cannot go on with this stream")
	}
	s.Metrics.ended(status.Code(cause))
	s.Log.InfoContext(ctx, "stream ended by the collector", "device_id", st.deviceID, "reason", status.Convert(cause).Message())
	return cause
}

// seen notes a sign of life.
func (s *Service) seen(st *session, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.presence[st.deviceID] = presence{at, st.agentVersion}
	s.alive(st)
}

func (s *Service) session(deviceID string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[deviceID]
}

// beganAfter says whether the newest stream of a device began after a moment.
func (s *Service) beganAfter(deviceID string, moment time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	newest := s.live[deviceID]
	return newest != nil && newest.began.After(moment)
}

// streams calls a function for every stream of a device: one, or two for a
// while.
func (s *Service) streams(deviceID string, fn func(*session)) {
	s.mu.Lock()
	newest := s.live[deviceID]
	var before *session
	if newest != nil {
		before = newest.before
	}
	s.mu.Unlock()
	for _, st := range []*session{newest, before} {
		if st != nil {
			fn(st)
		}
	}
}

// changed ends the streams of a device that is no longer accepted.
func (s *Service) changed(d *fleetv1.Device) {
	s.streams(d.GetId(), func(st *session) {
		if err := st.accepted(); err != nil {
			st.end(err)
		}
	})
}

// Online says whether a device has a stream now, when it last sent anything
// and the version of its agent: zero and empty when it was not here since the
// collector started.
func (s *Service) Online(deviceID string) (online bool, lastSeen time.Time, agentVersion string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.presence[deviceID]
	return s.live[deviceID] != nil, p.lastSeen, p.agentVersion
}

// Push tells a device a new result of its evidence: a policy changed, or a
// grace period ended. It returns false when the device is not online. It does
// not wait.
func (s *Service) Push(deviceID string, result *posturev1.Result) (online bool) {
	s.streams(deviceID, func(st *session) {
		online = true
		st.order(func(o *orders) { o.tell(result) })
	})
	return online
}

// SetVPNCatalogue puts a signed VPN catalogue in force; empty: none. Every agent
// that takes catalogues is sent it, now or when it connects. It does not wait.
func (s *Service) SetVPNCatalogue(signedFile []byte) {
	s.catalogue.Store(&agentv1.VpnCatalogue{SignedFile: signedFile})
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.live {
		for ; st != nil; st = st.before {
			st.order(st.orderCatalogue)
		}
	}
}

// Close ends all streams; their agents come back elsewhere or later. New ones
// are refused from now on. It waits for alarms that are under way.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	for _, st := range s.live {
		for ; st != nil; st = st.before {
			st.end(errClosing)
		}
	}
	s.mu.Unlock()
	s.alarms.Wait()
}
