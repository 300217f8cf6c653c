// Package gateway is the collector's side of gate.v1: VPN gateways ask here
// whom to admit, hear what changes, and report what happened.
//
// Rules. The gateway's name comes from its verified certificate, never from a
// message. Every lease and every standing leaves signed. The answer to a
// Report means that its audit records are durable. A gateway that takes its
// messages too slowly is sent away and begins again with a snapshot; nothing is
// queued for it.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"pfoertner/collector/admission"
	"pfoertner/collector/audit"
	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

// Desk decides (admission.Desk).
type Desk interface {
	Admit(gateway string, s *gatev1.SessionFacts) (admission.Answer, error)
	Report(gateway string, req *gatev1.ReportRequest) ([]audit.Record, error)
	Watch(gateway string, from lease.Position) (*admission.Watcher, error)
}

// Audit keeps records of cuts and alarms (collector/store).
type Audit interface {
	AppendAudit(ctx context.Context, records ...audit.Record) error
}

// Options of a Service. All but Heartbeat and Log are needed.
type Options struct {
	Desk   Desk
	Audit  Audit
	Signer *lease.Signer
	// SignerChain returns the certificate chain of the lease-signing key, DER,
	// leaf first: gateways verify it against the servers' CA. It is asked at the
	// beginning of every Watch, so a renewed certificate is used.
	SignerChain func() [][]byte
	// Heartbeat is the interval of signs of life on a Watch; zero:
	// admission.DefaultHeartbeat.
	Heartbeat time.Duration
	// Log hears of errors whose details are none of a gateway's business; nil:
	// discarded.
	Log *slog.Logger
}

// Service is gate.v1's GateService.
type Service struct {
	gatev1.UnimplementedGateServiceServer
	o      Options
	peers  peers
	drafts sync.Pool
}

// New returns a Service; register it with gatev1.RegisterGateServiceServer.
func New(o Options) *Service {
	if o.Heartbeat <= 0 {
		o.Heartbeat = admission.DefaultHeartbeat
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{o: o}
}

// ServerOptions are what the gateways' gRPC server needs beside its TLS
// configuration: limits, and a dead gateway noticed within three heartbeats.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxReportBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time:    admission.DefaultHeartbeat,
			Timeout: 2 * admission.DefaultHeartbeat,
			// A certificate is asked for at the handshake only.
			MaxConnectionAge:      12 * time.Hour,
			MaxConnectionAgeGrace: time.Minute,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime:             admission.DefaultHeartbeat / 2,
			PermitWithoutStream: true,
		}),
	}
}

// Admit answers for one new session with a signed lease, also when it denies.
func (s *Service) Admit(ctx context.Context, req *gatev1.AdmitRequest) (*gatev1.AdmitResponse, error) {
	gateway, err := s.peers.name(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkSession(req.GetSession()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	answer, err := s.o.Desk.Admit(gateway, req.GetSession())
	if err != nil {
		return nil, s.outward(ctx, err)
	}
	return s.answer(ctx, gateway, req.GetSession(), answer)
}

// Report takes what happened on the gateway. Sent again after an error, it
// does no harm.
func (s *Service) Report(ctx context.Context, req *gatev1.ReportRequest) (*gatev1.ReportResponse, error) {
	gateway, err := s.peers.name(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkReport(req); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	records, err := s.o.Desk.Report(gateway, req)
	if err != nil {
		return nil, s.outward(ctx, err)
	}
	if len(records) > 0 {
		if err := s.o.Audit.AppendAudit(ctx, records...); err != nil {
			return nil, s.outward(ctx, fmt.Errorf("recording a report: %w", err))
		}
	}
	return &gatev1.ReportResponse{}, nil
}

// Watch tells the gateway where identities stand, what changes, and renews its
// leases, until either side ends it.
func (s *Service) Watch(req *gatev1.WatchRequest, stream grpc.ServerStreamingServer[gatev1.WatchResponse]) error {
	ctx := stream.Context()
	gateway, err := s.peers.name(ctx)
	if err != nil {
		return err
	}
	w, err := s.o.Desk.Watch(gateway, lease.At(req))
	if err != nil {
		return s.outward(ctx, err)
	}
	defer w.Close()
	if err := s.begin(w, stream); err != nil {
		return s.outward(ctx, err)
	}
	beat := time.NewTicker(s.o.Heartbeat)
	defer beat.Stop()
	for {
		due := false
		select {
		case <-ctx.Done():
			return s.outward(ctx, context.Cause(ctx))
		case <-w.Woken():
		case <-beat.C:
			due = true
		}
		if err := s.tell(w, stream, due); err != nil {
			return s.outward(ctx, err)
		}
	}
}

// begin sends the first message, and the snapshot unless the gateway resumes.
func (s *Service) begin(w *admission.Watcher, stream grpc.ServerStreamingServer[gatev1.WatchResponse]) error {
	start := w.Start()
	start.SignerChain = s.o.SignerChain()
	if err := stream.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Start{Start: start}}); err != nil {
		return err
	}
	for standings := range w.Snapshot() {
		signed, err := s.o.Signer.SignStandings(standings)
		if err != nil {
			return err
		}
		if err := stream.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Snapshot{Snapshot: signed}}); err != nil {
			return err
		}
		w.Told(admission.News{})
	}
	return nil
}

// tell sends what is new: changes before leases, and a heartbeat when it is
// due.
func (s *Service) tell(w *admission.Watcher, stream grpc.ServerStreamingServer[gatev1.WatchResponse], heartbeat bool) error {
	news, err := w.Take()
	if err != nil {
		return err
	}
	for _, standings := range news.Changes {
		signed, err := s.o.Signer.SignStandings(standings)
		if err != nil {
			return err
		}
		if err := stream.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Change{Change: signed}}); err != nil {
			return err
		}
	}
	w.Told(news)
	for _, leases := range news.Renewals {
		signed, err := s.o.Signer.SignBatch(leases)
		if err != nil {
			return err
		}
		if err := stream.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Renewal{Renewal: signed}}); err != nil {
			return err
		}
	}
	if !heartbeat {
		return nil
	}
	return stream.Send(&gatev1.WatchResponse{Message: &gatev1.WatchResponse_Heartbeat{Heartbeat: &gatev1.WatchHeartbeat{
		Epoch:    news.Position.Epoch,
		Sequence: news.Position.Sequence,
	}}})
}

// outward is the error as a gateway gets it: known ones by their code, others
// without their text, which goes to the log.
func (s *Service) outward(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, admission.ErrNotReady):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, admission.ErrBehind):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, admission.ErrReplaced):
		return status.Error(codes.Aborted, err.Error())
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	s.o.Log.ErrorContext(ctx, "answering a gateway", "error", err)
	return status.Error(codes.Internal, "internal error")
}
