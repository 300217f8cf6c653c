// Package fleet is what operators ask and order over gRPC: devices and why they
// stand where they stand, sessions, events, inventory, orders about one asset,
// policies, reference values, authorities of TPMs, values of boot registers, the
// audit log.
//
// Rules. NewServer is the only way in: no call reaches a service before its
// operator is known from the verified certificate and its request is within
// the limits. The package keeps nothing itself; it reads from where things
// are, and what it changes is changed, and audited with the operator's name, by
// the room that owns it. Errors are written for the person at the other end.
package fleet

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"pfoertner/collector/appraisal"
	"pfoertner/internal/mtls"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Options are the rooms that the services speak to. All but Log are needed.
type Options struct {
	Devices   Devices
	Reports   Reports
	Desk      Desk
	Presence  Presence
	Inventory Inventory
	Orders    Orders
	Policies  Policies
	Verifier  Verifier
	Audit     AuditLog
	TPMs      TPMs
	// Collector asks notebooks to report now.
	Collector      Collector
	Authorities    Authorities
	BootReferences BootReferences
	// References keeps signed files, Shipped are the reference values that stand
	// below what is imported.
	References References
	Shipped    *appraisal.References
	// Open verifies a signed file and returns its content and its signer
	// (internal/signed).
	Open func(kind string, file []byte) (content []byte, signer string, err error)
	// Catalogue puts a VPN catalogue, as a signed file, in force.
	Catalogue func(signedFile []byte)
	// Now is the wall clock.
	Now func() time.Time
	// Log hears of errors that are ours, not the caller's; nil: nobody does.
	Log *slog.Logger
}

// NewServer returns a gRPC server with the operators' services. options
// must contain credentials that verify operators' certificates
// (mtls.ServerConfig with RoleOperator): without, every call is refused. What an
// operator has ordered goes on when he hangs up, until life ends.
func NewServer(life context.Context, o Options, options ...grpc.ServerOption) *grpc.Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	g := guard{log: o.Log}
	server := grpc.NewServer(append([]grpc.ServerOption{
		grpc.UnaryInterceptor(g.unary),
		grpc.StreamInterceptor(g.stream),
		grpc.MaxRecvMsgSize(maxRequest),
	}, options...)...)
	fleetv1.RegisterFleetServiceServer(server, newFleetService(o))
	fleetv1.RegisterInventoryServiceServer(server, &inventoryService{inventory: o.Inventory})
	fleetv1.RegisterOrderServiceServer(server, &orderService{orders: o.Orders})
	fleetv1.RegisterEndorsementServiceServer(server, &endorsementService{authorities: o.Authorities})
	fleetv1.RegisterBootReferenceServiceServer(server, &bootReferenceService{references: o.BootReferences})
	fleetv1.RegisterPolicyServiceServer(server, &policyService{life: life, policies: o.Policies, verifier: o.Verifier, now: o.Now})
	fleetv1.RegisterReferenceServiceServer(server, newReferenceService(life, o))
	fleetv1.RegisterAuditServiceServer(server, &auditService{log: o.Audit})
	return server
}

func newReferenceService(life context.Context, o Options) *referenceService {
	return &referenceService{
		life: life, files: o.References, verifier: o.Verifier, shipped: o.Shipped, open: o.Open, catalogue: o.Catalogue, now: o.Now,
	}
}

// guard stands before every service.
type guard struct{ log *slog.Logger }

func (g guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	ctx, err := identify(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkRequest(req); err != nil {
		return nil, err
	}
	answer, err := handle(ctx, req)
	return answer, g.explain(ctx, info.FullMethod, err)
}

func (g guard) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, err := identify(ss.Context())
	if err != nil {
		return err
	}
	err = handle(srv, &guardedStream{ServerStream: ss, ctx: ctx})
	return g.explain(ctx, info.FullMethod, err)
}

// guardedStream checks what arrives on a stream and knows its operator.
type guardedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *guardedStream) Context() context.Context { return s.ctx }

func (s *guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return checkRequest(m)
}

type operatorKey struct{}

// identify puts the operator's name into the context.
func identify(ctx context.Context) (context.Context, error) {
	name, _, err := mtls.Peer(ctx, mtls.RoleOperator)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, "only operators with a certificate of their own may ask here: "+err.Error())
	}
	return context.WithValue(ctx, operatorKey{}, name), nil
}

// operator returns who calls. Without one it fails: nothing is done in nobody's
// name.
func operator(ctx context.Context) (string, error) {
	name, ok := ctx.Value(operatorKey{}).(string)
	if !ok || name == "" {
		return "", status.Error(codes.Unauthenticated, "the call has no operator")
	}
	return name, nil
}

// checkRequest refuses what is too large before anyone looks at it.
func checkRequest(req any) error {
	m, ok := req.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "request is no message: %T", req)
	}
	if err := checkLimits(m); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}
