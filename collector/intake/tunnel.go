package intake

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"pfoertner/collector/admission"
	"pfoertner/collector/audit"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

const (
	// tunnelHelloWithin is how long a device may take to say hello, tunnelWithin
	// how long a challenge is valid.
	tunnelHelloWithin = 5 * time.Second
	tunnelWithin      = 10 * time.Second
)

// TunnelDesk is where live sessions are (admission.Desk).
type TunnelDesk interface {
	// SessionAt finds the one session with a tunnel address, and whose
	// certificate it has.
	SessionAt(addr netip.Addr) (gateway, sessionID, deviceID string, ok bool)
	// Prove takes a device's proof for a session. Errors:
	// admission.ErrNoSession, admission.ErrNotItsSession.
	Prove(gateway, sessionID, deviceID string, from netip.Addr) (changed bool, err error)
	// Unprove takes a proof back.
	Unprove(gateway, sessionID string)
}

// TunnelRegistry knows which devices are accepted (enrolment.Registry).
type TunnelRegistry interface {
	Accepts(deviceID string, spki []byte) error
	Device(id string) (*fleetv1.Device, bool)
}

// TunnelAudit keeps records of proofs and refusals (collector/store).
type TunnelAudit interface {
	AppendAudit(ctx context.Context, records ...audit.Record) error
}

// TunnelOptions is what a TunnelService needs; Metrics, Log and Now may be
// missing.
type TunnelOptions struct {
	Desk     TunnelDesk
	Registry TunnelRegistry
	Audit    TunnelAudit
	Metrics  *TunnelMetrics
	Log      *slog.Logger
	Now      func() time.Time
}

// TunnelService is agent.v1 TunnelService: a device that connects from a VPN
// session's tunnel address proves that the session is its own. It has to be
// three things at once: the device whose certificate the session has, at the
// other end of this very connection, and the owner of the address that the
// gateway has given the session. Addresses are compared and forgotten: they are
// neither stored nor logged.
type TunnelService struct {
	agentv1.UnimplementedTunnelServiceServer
	o      TunnelOptions
	limits *tunnelLimits
}

// NewTunnelService makes the service; register it beside the SessionService.
func NewTunnelService(o TunnelOptions) *TunnelService {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &TunnelService{o: o, limits: newTunnelLimits(o.Now)}
}

type proveStream = grpc.BidiStreamingServer[agentv1.ProveRequest, agentv1.ProveResponse]

// Prove is hello → challenge → proof → result. The handler waits for the end
// alone, so that no client that sends nothing can hold it up.
func (s *TunnelService) Prove(stream proveStream) error {
	deviceID, cert, err := mtls.Peer(stream.Context(), mtls.RoleDevice)
	if err != nil {
		return status.Error(codes.Unauthenticated, "a device certificate is needed")
	}
	release, ok := s.limits.enter(deviceID)
	if !ok {
		s.o.Metrics.ended("limited")
		return status.Error(codes.ResourceExhausted, "too many proofs, wait")
	}
	defer release()
	ctx, cancel := context.WithTimeout(stream.Context(), tunnelHelloWithin+tunnelWithin)
	defer cancel()
	p := &tunnelProof{TunnelService: s, stream: stream, deviceID: deviceID, cert: cert}
	ended := make(chan error, 1)
	go func() { ended <- p.serve(ctx) }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = status.FromContextError(ctx.Err()).Err()
	}
	s.o.Metrics.ended(tunnelOutcomes[status.Code(err)])
	return err
}

// tunnelProof is one call.
type tunnelProof struct {
	*TunnelService
	stream   proveStream
	deviceID string
	cert     *x509.Certificate

	from               netip.Addr // the tunnel address, as the kernel says
	gateway, sessionID string
}

func (p *tunnelProof) serve(ctx context.Context) error {
	if err := p.accepted(); err != nil {
		return err
	}
	m, err := p.receive()
	if err != nil {
		return err
	}
	if m.GetHello() == nil {
		return invalid("the first message is not a hello")
	}
	if err := p.find(ctx); err != nil {
		return err
	}
	nonce := make([]byte, attest.NonceBytes)
	if _, err := rand.Read(nonce); err != nil {
		return err
	}
	until := p.o.Now().Add(tunnelWithin)
	err = p.stream.Send(&agentv1.ProveResponse{Message: &agentv1.ProveResponse_Challenge{Challenge: &agentv1.TunnelChallenge{
		Nonce: nonce, Gateway: p.gateway, SessionId: p.sessionID,
	}}})
	if err != nil {
		return err
	}
	if m, err = p.receive(); err != nil {
		return err
	}
	if p.o.Now().After(until) {
		return status.Error(codes.DeadlineExceeded, "the challenge has ended")
	}
	if m.GetProof() == nil {
		return invalid("a challenge is answered by a proof")
	}
	if err := p.verify(ctx, nonce, m.GetProof()); err != nil {
		return err
	}
	if err := p.accepted(); err != nil {
		return err
	}
	if err := p.take(ctx); err != nil {
		return err
	}
	return p.stream.Send(&agentv1.ProveResponse{Message: &agentv1.ProveResponse_Result{Result: &agentv1.TunnelResult{}}})
}

func (p *tunnelProof) receive() (*agentv1.ProveRequest, error) {
	m, err := p.stream.Recv()
	switch {
	case errors.Is(err, io.EOF):
		return nil, status.Error(codes.Aborted, "ended before the proof")
	case err != nil:
		return nil, err
	}
	if err := posture.CheckLimits(m); err != nil {
		return nil, invalid("%v", err)
	}
	return m, nil
}

// accepted asks the Registry whether this device with this key may be here.
func (p *tunnelProof) accepted() error {
	spki, err := attest.SPKI(p.cert.PublicKey)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	if err := p.o.Registry.Accepts(p.deviceID, spki); err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return nil
}

// find looks up the session that the connection comes from.
func (p *tunnelProof) find(ctx context.Context) error {
	from, err := sourceOf(ctx)
	if err != nil {
		return err
	}
	p.from = from
	gateway, sessionID, owner, ok := p.o.Desk.SessionAt(from)
	if !ok {
		return status.Error(codes.NotFound, admission.ErrNoSession.Error())
	}
	p.gateway, p.sessionID = gateway, sessionID
	if owner != p.deviceID {
		return p.refuse(ctx, "other_device", admission.ErrNotItsSession)
	}
	return nil
}

// sourceOf is the address that a call's connection comes from.
func sourceOf(ctx context.Context) (netip.Addr, error) {
	if caller, ok := peer.FromContext(ctx); ok {
		if tcp, ok := caller.Addr.(*net.TCPAddr); ok {
			return tcp.AddrPort().Addr().Unmap().WithZone(""), nil
		}
	}
	return netip.Addr{}, status.Error(codes.Internal, "the connection has no address")
}

// verify holds the proof against this connection, this challenge and this
// address.
func (p *tunnelProof) verify(ctx context.Context, nonce []byte, proof *agentv1.TunnelProof) error {
	exporter, err := mtls.Exporter(ctx)
	if err != nil {
		return err
	}
	said, err := parseStatement(proof.GetStatement())
	if err != nil {
		return invalid("%v", err)
	}
	if err := attest.Verify(p.cert.PublicKey, attest.TunnelDigest(nonce, exporter, proof.GetStatement()), proof.GetSignature()); err != nil {
		return p.refuse(ctx, "signature", err)
	}
	if said.gateway != p.gateway || said.sessionID != p.sessionID {
		return p.refuse(ctx, "statement", errors.New("the statement is for another session"))
	}
	if !said.has(p.from) {
		return p.refuse(ctx, "address", errors.New("the session's address is on none of the device's interfaces"))
	}
	return nil
}

// take gives the proof to the Desk and records it. A proof that cannot be
// recorded is none.
func (p *tunnelProof) take(ctx context.Context) error {
	changed, err := p.o.Desk.Prove(p.gateway, p.sessionID, p.deviceID, p.from)
	switch {
	case errors.Is(err, admission.ErrNoSession):
		return status.Error(codes.NotFound, err.Error())
	case err != nil:
		return p.refuse(ctx, "other_device", err)
	case !changed:
		return nil
	}
	if err := p.record(ctx, "tunnel.proven", ""); err != nil {
		p.o.Desk.Unprove(p.gateway, p.sessionID)
		p.o.Log.ErrorContext(ctx, "tunnel proof not recorded", "device_id", p.deviceID, "error", err)
		return status.Error(codes.Unavailable, "the collector cannot record proofs now")
	}
	return nil
}

// refuse records a refusal, the first of its kind in a while, and returns what
// the device is told.
func (p *tunnelProof) refuse(ctx context.Context, reason string, cause error) error {
	if p.limits.news(p.deviceID, p.sessionID+" "+reason) {
		p.o.Log.WarnContext(ctx, "tunnel proof refused", "device_id", p.deviceID, "gateway", p.gateway, "reason", reason)
		if err := p.record(ctx, "tunnel.refused", reason); err != nil {
			p.o.Log.ErrorContext(ctx, "refused tunnel proof not recorded", "device_id", p.deviceID, "error", err)
		}
	}
	return status.Error(codes.PermissionDenied, cause.Error())
}

func (p *tunnelProof) record(ctx context.Context, kind, reason string) error {
	device, _ := p.o.Registry.Device(p.deviceID)
	details := map[string]string{"gateway": p.gateway, "session": p.sessionID}
	if reason != "" {
		details["reason"] = reason
	}
	return p.o.Audit.AppendAudit(ctx, audit.Record{
		At: p.o.Now(), Kind: kind, Actor: p.deviceID, DeviceID: p.deviceID,
		AssetNumber: device.GetAsset().GetAssetNumber(), Details: details,
	})
}
