package enrolment

import (
	"context"
	"crypto"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"pfoertner/collector/attestation"
	"pfoertner/collector/authority"
	"pfoertner/collector/endorsement"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// Issuer issues device certificates.
type Issuer interface {
	IssueDevice(deviceID string, key crypto.PublicKey, lifetime time.Duration) (*authority.Certificate, error)
	TrustBundle() [][]byte
}

// Book is what is known of devices' TPMs (attestation.Book).
type Book interface {
	Known(deviceID string) (attestation.Known, bool)
	// Follow compares the clock that a known attestation key has stated when it
	// was asked with the newest, and keeps it. The error wraps
	// attestation.ErrCloned when it cannot be the same TPM.
	Follow(ctx context.Context, deviceID string, ak []byte, asked time.Time, c attest.Clock) error
	// Put takes what the store has committed.
	Put(k attestation.Known)
}

// ServerOptions is what the enrolment service needs.
type ServerOptions struct {
	Registry *Registry
	Issuer   Issuer
	// Book; nil: notebooks with a TPM are refused.
	Book Book
	// Endorsements are whom the collector believes that a TPM is genuine, as of
	// now; nil: notebooks with a TPM are refused.
	Endorsements func() *endorsement.Bundle
	// LastSeen is when a device's last report arrived, zero if never; nil: only
	// its certificates tell.
	LastSeen func(deviceID string) time.Time
	// Limits; the zero value is DefaultLimits.
	Limits Limits
	// Log; nil: nothing is logged.
	Log *slog.Logger
	// Metrics; nil: nothing is counted.
	Metrics *Metrics
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

const (
	helloTimeout = 15 * time.Second
	// proofTimeout is how long a challenge is valid (agent.v1 Challenge).
	proofTimeout = 60 * time.Second
)

// errRefused is all that a refused stranger learns. The audit log tells more.
var errRefused = status.Error(codes.PermissionDenied, "enrolment refused")

// Server is agent.v1 EnrolmentService.
type Server struct {
	agentv1.UnimplementedEnrolmentServiceServer
	ServerOptions
	attempts *rate.Limiter
	peers    *peerLimiter
	refusals *peerLimiter
	places   *places
}

// NewServer makes the service.
func NewServer(o ServerOptions) *Server {
	if o.Limits == (Limits{}) {
		o.Limits = DefaultLimits()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		ServerOptions: o,
		attempts:      rate.NewLimiter(rate.Limit(o.Limits.Attempts.PerSecond), o.Limits.Attempts.Burst),
		peers:         newPeerLimiter(o.Limits.AttemptsPerPeer, o.Now),
		refusals:      newPeerLimiter(o.Limits.RefusalsPerPeer, o.Now),
		places:        newPlaces(o.Limits.Open, o.Limits.OpenPerPeer),
	}
}

type enrolStream = grpc.BidiStreamingServer[agentv1.EnrolRequest, agentv1.EnrolResponse]

// Enrol makes a device of an expected notebook: limit, read what it claims,
// challenge, judge the proof, gather the facts, decide, and issue or wait or
// refuse. What is ours is looked at only after the proof: where a stranger is
// refused tells nothing about the inventory, and all but cheap checks cost it
// a TPM's work first.
func (s *Server) Enrol(stream enrolStream) error {
	ctx, from := stream.Context(), peerAddress(stream.Context())
	release, err := s.limit(from)
	if err != nil {
		s.Metrics.count("limited")
		return err
	}
	defer release()

	hello, err := s.hello(stream)
	if err != nil {
		s.Metrics.count("invalid")
		return err
	}
	answer, err := s.enrol(ctx, stream, hello)
	var no *refusal
	switch {
	case err == nil && answer.GetPending() != nil:
		s.Metrics.count("pending")
		return stream.Send(answer)
	case err == nil:
		s.Metrics.count("issued")
		return stream.Send(answer)
	case errors.As(err, &no):
		s.Metrics.count("refused")
		s.refusals.take(from)
		return s.refused(ctx, no)
	}
	if _, ok := status.FromError(err); ok {
		s.Metrics.count("invalid")
		return err
	}
	s.Metrics.count("failed")
	s.Log.ErrorContext(ctx, "enrolment failed", "error", err)
	return status.Error(codes.Unavailable, "the collector cannot enrol now; try again later")
}

// enrol is the way from hello to issued or pending. A refusal is a *refusal, a
// malformed message a status.
func (s *Server) enrol(ctx context.Context, stream enrolStream, hello *agentv1.Hello) (*agentv1.EnrolResponse, error) {
	a, err := readHello(hello)
	if err != nil {
		return nil, err
	}
	if err := s.challenge(ctx, stream, a); err != nil {
		return nil, err
	}
	// A token that is spent, and two TPMs with one state, are not forgotten because
	// the connection breaks now.
	ctx = context.WithoutCancel(ctx)
	c, err := s.consider(ctx, a)
	if err != nil {
		return nil, err
	}
	switch d := decide(c.facts); d.outcome {
	case issue:
		return s.issue(ctx, a, c, d.reason)
	case wait:
		return s.wait(ctx, a, c, d.reason)
	default:
		return nil, a.refuse(c, d)
	}
}

// limit takes a place for one attempt. The caller releases it.
func (s *Server) limit(from netip.Addr) (release func(), err error) {
	if s.refusals.empty(from) || !s.peers.take(from) || !s.attempts.AllowN(s.Now(), 1) {
		return nil, status.Error(codes.ResourceExhausted, "too many attempts; try again later")
	}
	if !s.places.take(from) {
		return nil, status.Error(codes.ResourceExhausted, "too many attempts at once; try again later")
	}
	return func() { s.places.leave(from) }, nil
}

// hello waits for the first message.
func (s *Server) hello(stream enrolStream) (*agentv1.Hello, error) {
	m, err := receive(stream, helloTimeout)
	if err != nil {
		return nil, err
	}
	if m.GetHello() == nil {
		return nil, status.Error(codes.InvalidArgument, "the first message is not a hello")
	}
	return m.GetHello(), nil
}

// challenge lets the notebook prove, over this very connection, that it has what
// it claims to have: the key, and the TPM. Each challenge is of one attempt and
// is answered once.
func (s *Server) challenge(ctx context.Context, stream enrolStream, a *applicant) error {
	if a.tpm != nil && (s.Book == nil || s.Endorsements == nil) {
		return &refusal{reason: "tpm_not_served", says: a.says()}
	}
	exporter, err := mtls.Exporter(ctx)
	if err != nil {
		return err
	}
	a.asked = s.Now()
	challenge, judge, err := a.ask(exporter)
	if err != nil {
		return err
	}
	if err := stream.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Challenge{Challenge: challenge}}); err != nil {
		return err
	}
	m, err := receive(stream, proofTimeout)
	if err != nil {
		return err
	}
	if m.GetProof() == nil {
		return status.Error(codes.InvalidArgument, "the answer to the challenge is not a proof")
	}
	if err := judge(m.GetProof()); err != nil {
		return &refusal{reason: "proof", detail: err.Error(), says: a.says()}
	}
	return nil
}

// receive waits for a message and checks its limits.
func receive(stream enrolStream, timeout time.Duration) (*agentv1.EnrolRequest, error) {
	type arrival struct {
		m   *agentv1.EnrolRequest
		err error
	}
	arrived := make(chan arrival, 1)
	// Ends with the stream at the latest, and so with the handler.
	go func() {
		m, err := stream.Recv()
		arrived <- arrival{m, err}
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case a := <-arrived:
		if errors.Is(a.err, io.EOF) {
			return nil, status.Error(codes.Canceled, "the agent ended the enrolment")
		}
		if a.err != nil {
			return nil, a.err // a status: too large, not protobuf, gone
		}
		if err := posture.CheckLimits(a.m); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return a.m, nil
	case <-timer.C:
		return nil, status.Error(codes.DeadlineExceeded, "no answer in time")
	}
}

// peerAddress is where a call comes from; the zero address when it is unknown,
// which has a bucket of its own.
func peerAddress(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(p.Addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr()
}
