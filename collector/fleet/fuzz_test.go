package fleet

import (
	"context"
	"log/slog"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"pfoertner/collector/appraisal"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// entry is one method as gRPC calls it: bytes from the network in, a status out.
type entry struct {
	name string
	call func(ctx context.Context, body []byte) error
}

// entries are all methods of all services, behind the guard, but with an
// operator.
func entries(h *house) (all []entry) {
	o := h.options()
	g := guard{log: slog.New(slog.DiscardHandler)}
	for _, service := range []struct {
		desc grpc.ServiceDesc
		impl any
	}{
		{fleetv1.FleetService_ServiceDesc, newFleetService(o)},
		{fleetv1.InventoryService_ServiceDesc, &inventoryService{inventory: o.Inventory}},
		{fleetv1.OrderService_ServiceDesc, &orderService{orders: o.Orders}},
		{fleetv1.EndorsementService_ServiceDesc, &endorsementService{authorities: o.Authorities}},
		{fleetv1.BootReferenceService_ServiceDesc, &bootReferenceService{references: o.BootReferences}},
		{fleetv1.PolicyService_ServiceDesc, &policyService{life: context.Background(), policies: o.Policies, verifier: o.Verifier, now: o.Now}},
		{fleetv1.ReferenceService_ServiceDesc, newReferenceService(context.Background(), o)},
		{fleetv1.AuditService_ServiceDesc, &auditService{log: o.Audit}},
	} {
		for _, m := range service.desc.Methods {
			all = append(all, entry{m.MethodName, func(ctx context.Context, body []byte) error {
				read := func(req any) error { return proto.Unmarshal(body, req.(proto.Message)) }
				_, err := m.Handler(service.impl, ctx, read, func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
					if err := checkRequest(req); err != nil {
						return nil, err
					}
					answer, err := handle(ctx, req)
					return answer, g.explain(ctx, m.MethodName, err)
				})
				return err
			}})
		}
		for _, m := range service.desc.Streams {
			all = append(all, entry{m.StreamName, func(ctx context.Context, body []byte) error {
				s := &guardedStream{ServerStream: &oneRequest{body: body}, ctx: ctx}
				return g.explain(ctx, m.StreamName, m.Handler(service.impl, s))
			}})
		}
	}
	return all
}

// oneRequest is a stream on which one request arrived.
type oneRequest struct {
	grpc.ServerStream
	body []byte
}

func (s *oneRequest) RecvMsg(m any) error {
	if err := proto.Unmarshal(s.body, m.(proto.Message)); err != nil {
		return status.Error(codes.InvalidArgument, err.Error()) // as gRPC does
	}
	return nil
}

func (s *oneRequest) SendMsg(any) error { return nil }

// Whatever arrives is answered or refused with a reason; nothing of it is ever
// our own fault.
func FuzzRequest(f *testing.F) {
	for i, req := range []proto.Message{
		&fleetv1.ListDevicesRequest{Filter: `asset.unit == "x"`, OrderBy: "-verdict", PageSize: 3, PageToken: "AAAA"},
		&fleetv1.GetDeviceRequest{Device: assetNumber(1)},
		byCode("7k4-qx2"), byDevice(deviceID(1)),
		&fleetv1.ListEventsRequest{Device: assetNumber(1), Limit: 3},
		&fleetv1.ImportRequest{Csv: []byte(csv)},
		&fleetv1.BindRequest{Device: assetNumber(1), CertificateSha256: make([]byte, 32)},
		&fleetv1.CreateTokenRequest{AssetNumber: assetNumber(1)},
		&fleetv1.SetStateRequest{Device: assetNumber(1), State: fleetv1.AssetState_ASSET_STATE_SUSPENDED},
		&fleetv1.ApplyRequest{Yaml: appraisal.DefaultPolicy()},
		&fleetv1.ShowRequest{Version: 1 << 63},
		&fleetv1.VerifyRequest{NotedHead: make([]byte, 32)},
		&fleetv1.CollectRequest{Device: assetNumber(1), Quote: true},
		&fleetv1.GiveOrderRequest{Order: allow(assetNumber(1), morning.AddDate(0, 1, 0), "kein TPM")},
		&fleetv1.GiveOrderRequest{Order: approve(assetNumber(1), "0000-0000-0000-0000-0000-0000", "verglichen")},
		&fleetv1.WithdrawProposalRequest{Id: "1"},
		&fleetv1.AddAuthoritiesRequest{Certificates: []byte("-----BEGIN CERTIFICATE-----"), DryRun: true},
		&fleetv1.SetBootReferenceRequest{Model: "T14", Pcr: 7, Sha256: make([]byte, 32), State: posturev1.PcrReference_PCR_REFERENCE_APPROVED},
	} {
		body, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), body)
	}
	h := build(f)
	h.add(f, device(1, "inneres"), device(2, "finanzen"))
	all := entries(h)
	if len(all) != methods() {
		f.Fatalf("%d methods, want %d", len(all), methods())
	}
	f.Fuzz(func(t *testing.T, method uint8, body []byte) {
		ctx := context.WithValue(t.Context(), operatorKey{}, "anna")
		for i, e := range all {
			// Every request is tried on its own method and on its neighbours'.
			if i != int(method)%len(all) && i%4 != int(method)%4 {
				continue
			}
			switch err := e.call(ctx, body); status.Code(err) {
			case codes.Internal, codes.Unauthenticated:
				t.Errorf("%s: %v", e.name, err)
			}
		}
	})
}
