package enrolment

import (
	"context"
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/audit"
	"pfoertner/collector/authority"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Issuer issues device certificates.
type Issuer interface {
	IssueDevice(deviceID string, key crypto.PublicKey, lifetime time.Duration) (*authority.Certificate, error)
	TrustBundle() [][]byte
}

// ServerOptions is what the enrolment service needs.
type ServerOptions struct {
	Registry *Registry
	Issuer   Issuer
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
	open     chan struct{}
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
		open:          make(chan struct{}, o.Limits.Open),
	}
}

type enrolStream = grpc.BidiStreamingServer[agentv1.EnrolRequest, agentv1.EnrolResponse]

// Enrol makes a device of an expected notebook: limit, validate, challenge,
// verify the proof, use the token, check the asset, issue, save with its audit
// records, reply.
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
	issued, err := s.enrol(ctx, stream, hello)
	var no *refusal
	switch {
	case err == nil:
		s.Metrics.count("issued")
		return stream.Send(issued)
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

// enrol is the way from hello to issued. A refusal is a *refusal, a malformed
// message a status.
func (s *Server) enrol(ctx context.Context, stream enrolStream, hello *agentv1.Hello) (*agentv1.EnrolResponse, error) {
	key, err := attest.ParseRequest(hello.GetCsr())
	if err != nil {
		return nil, &refusal{reason: "csr", detail: err.Error()}
	}
	if err := s.challenge(ctx, stream, hello, key); err != nil {
		return nil, err
	}
	device, err := s.useToken(ctx, hello, key)
	if err != nil {
		return nil, err
	}
	if no := check(device, hello.GetMachine()); no != nil {
		return nil, no
	}
	id := device.GetId()
	if id == "" {
		id = uuid.NewString()
	}
	cert, err := s.Issuer.IssueDevice(id, key, 0)
	if err != nil {
		return nil, err
	}
	number := device.GetAsset().GetAssetNumber()
	if err := s.save(ctx, number, id, key, cert, hello); err != nil {
		return nil, err
	}
	return &agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Issued{Issued: &agentv1.Issued{
		Chain: cert.Chain, DeviceId: id, AssetNumber: number,
		RenewAfter: timestamppb.New(cert.RenewAfter), TrustBundle: s.Issuer.TrustBundle(),
	}}}, nil
}

// limit takes a place for one attempt. The caller releases it.
func (s *Server) limit(from netip.Addr) (release func(), err error) {
	if s.refusals.empty(from) || !s.peers.take(from) || !s.attempts.AllowN(s.Now(), 1) {
		return nil, status.Error(codes.ResourceExhausted, "too many attempts; try again later")
	}
	select {
	case s.open <- struct{}{}:
		return func() { <-s.open }, nil
	default:
		return nil, status.Error(codes.ResourceExhausted, "too many attempts at once; try again later")
	}
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

// challenge lets the agent prove, over this very connection, that it has the
// key that it wants a certificate for.
func (s *Server) challenge(ctx context.Context, stream enrolStream, hello *agentv1.Hello, key crypto.PublicKey) error {
	nonce := make([]byte, attest.NonceBytes)
	if _, err := rand.Read(nonce); err != nil {
		return fmt.Errorf("making nonce: %w", err)
	}
	exporter, err := mtls.Exporter(ctx)
	if err != nil {
		return err
	}
	transcript, err := attest.Transcript(hello)
	if err != nil {
		return err
	}
	err = stream.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Challenge{Challenge: &agentv1.Challenge{Nonce: nonce}}})
	if err != nil {
		return err
	}
	m, err := receive(stream, proofTimeout)
	if err != nil {
		return err
	}
	if m.GetProof() == nil {
		return status.Error(codes.InvalidArgument, "the answer to the challenge is not a proof")
	}
	if err := attest.Verify(key, attest.EnrolDigest(nonce, exporter, transcript), m.GetProof().GetSignature()); err != nil {
		return &refusal{reason: "proof", detail: err.Error()}
	}
	return nil
}

// useToken spends the token and returns the asset that it is bound to.
func (s *Server) useToken(ctx context.Context, hello *agentv1.Hello, key crypto.PublicKey) (*fleetv1.Device, error) {
	hash := hashToken(hello.GetToken())
	number, err := s.Registry.store.UseToken(ctx, hash, s.Now())
	no := &refusal{kind: "token.refused", asset: number, detail: hex.EncodeToString(hash[:8])}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		no.reason = "unknown"
		return nil, no
	case errors.Is(err, fs.ErrExist) && (errors.Is(err, os.ErrDeadlineExceeded) || !s.answerWasLost(number, key)):
		no.reason = "used"
		return nil, no
	case errors.Is(err, fs.ErrExist): // the lost answer, once more
	case errors.Is(err, os.ErrDeadlineExceeded):
		no.reason = "expired"
		return nil, no
	case err != nil:
		return nil, err
	}
	device, ok := s.Registry.Find(number)
	if !ok {
		no.reason = "asset_unknown"
		return nil, no
	}
	return device, nil
}

// answerWasLost says whether a used token comes again with the very key that
// was enrolled with it: the notebook has proved the key, but never got its
// certificate. It is issued once more.
func (s *Server) answerWasLost(assetNumber string, key crypto.PublicKey) bool {
	device, ok := s.Registry.Find(assetNumber)
	if !ok {
		return false
	}
	spki, err := attest.SPKI(key)
	return err == nil && s.Registry.Accepts(device.GetId(), spki) == nil
}

// check compares what the inventory says with what the notebook says of
// itself. A serial number proves nothing, but another one than expected is an
// alarm.
func check(d *fleetv1.Device, m *agentv1.Machine) *refusal {
	a := d.GetAsset()
	no := &refusal{device: d.GetId(), asset: a.GetAssetNumber()}
	if no.reason = notEnrollable(d); no.reason != "" {
		return no
	}
	if a.GetSerial() != "" && serialKey(a.GetSerial()) != serialKey(m.GetSerial()) {
		no.kind, no.reason = "device.serial_mismatch", "serial"
		no.detail = fmt.Sprintf("inventory %q, notebook %q", a.GetSerial(), m.GetSerial())
		return no
	}
	switch a.GetKeyProtection() {
	case fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE, fleetv1.KeyProtection_KEY_PROTECTION_UNSPECIFIED:
		return nil
	}
	no.reason = "key_protection"
	return no
}

func (s *Server) save(ctx context.Context, number, id string, key crypto.PublicKey, cert *authority.Certificate, hello *agentv1.Hello) error {
	spki, err := attest.SPKI(key)
	if err != nil {
		return err
	}
	fingerprint, err := attest.Fingerprint(key)
	if err != nil {
		return err
	}
	err = s.Registry.enrol(ctx, number, id, spki, cert, map[string]string{
		"key_fingerprint": fingerprint, "key_protection": "software", "certificate_serial": cert.Serial,
		"vendor": hello.GetMachine().GetVendor(), "model": hello.GetMachine().GetModel(), "serial": hello.GetMachine().GetSerial(),
	})
	if errors.Is(err, ErrTransition) {
		return &refusal{asset: number, device: id, reason: "asset_changed"}
	}
	return err
}

// refusal is why an attempt is refused, for the audit log.
type refusal struct {
	kind   string // audit record; empty: "enrolment.refused"
	reason string // one word
	device string
	asset  string
	detail string
}

func (r *refusal) Error() string { return "refused: " + r.reason }

// refused puts a refusal into the audit log and returns what the stranger gets
// to see, which is always the same.
func (s *Server) refused(ctx context.Context, r *refusal) error {
	if r.kind == "" {
		r.kind = "enrolment.refused"
	}
	record := audit.Record{
		At: s.Now(), Kind: r.kind, DeviceID: r.device, AssetNumber: r.asset,
		Details: map[string]string{"reason": r.reason, "detail": r.detail},
	}
	// The stranger may be gone: the record is written all the same.
	if err := s.Registry.store.AppendAudit(context.WithoutCancel(ctx), record); err != nil {
		s.Log.ErrorContext(ctx, "recording refusal failed", "kind", r.kind, "reason", r.reason, "error", err)
	}
	return errRefused
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
