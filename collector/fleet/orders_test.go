package fleet

import (
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

func approve(device, fingerprint, reason string) *fleetv1.Order {
	return &fleetv1.Order{Device: device, Reason: reason, Action: &fleetv1.Order_Approve{Approve: &fleetv1.Approve{Fingerprint: fingerprint}}}
}

func allow(device string, until time.Time, reason string) *fleetv1.Order {
	return &fleetv1.Order{Device: device, Reason: reason, Action: &fleetv1.Order_AllowSoftwareKey{
		AllowSoftwareKey: &fleetv1.AllowSoftwareKey{Until: timestamppb.New(until)},
	}}
}

func resume(device, reason string) *fleetv1.Order {
	return &fleetv1.Order{Device: device, Reason: reason, Action: &fleetv1.Order_Resume{Resume: &fleetv1.Resume{}}}
}

func give(t *testing.T, conn *grpc.ClientConn, o *fleetv1.Order) (*fleetv1.GiveOrderResponse, error) {
	t.Helper()
	return fleetv1.NewOrderServiceClient(conn).GiveOrder(t.Context(), &fleetv1.GiveOrderRequest{Order: o})
}

// given gives an order that must not be refused.
func given(t *testing.T, conn *grpc.ClientConn, o *fleetv1.Order) *fleetv1.GiveOrderResponse {
	t.Helper()
	answer, err := give(t, conn, o)
	check(t, err)
	return answer
}

func (h *house) asset(t *testing.T, n int) *fleetv1.Asset {
	t.Helper()
	d, ok := h.registry.Find(assetNumber(n))
	if !ok {
		t.Fatalf("%s is gone", assetNumber(n))
	}
	return d.GetAsset()
}

// What weakens something takes two operators, and the same one twice is not two.
func TestTwoDifferentOperatorsAllowASoftwareKey(t *testing.T) {
	h := build(t)
	h.add(t, expected(1))
	h.serve(t)
	anna, anna2, bernd := h.operator(t, "anna"), h.operator(t, "anna"), h.operator(t, "bernd")
	until := morning.AddDate(0, 6, 0)

	first := given(t, anna, allow(assetNumber(1), until, "kein TPM im Gerät"))
	if p := first.GetProposal(); first.GetDone() || p.GetProposedBy() != "anna" || p.GetConfirmedBy() != "" || p.GetAssetNumber() != assetNumber(1) {
		t.Fatalf("the first order: %v", first)
	}
	// Another certificate of the same operator is still the same operator.
	for _, conn := range []*grpc.ClientConn{anna, anna2} {
		if again, err := give(t, conn, allow(assetNumber(1), until, "wirklich")); err == nil && again.GetDone() {
			t.Fatal("one operator was taken for two")
		}
	}
	// Another end is another order.
	if other := given(t, bernd, allow(assetNumber(1), until.AddDate(0, 1, 0), "länger")); other.GetDone() {
		t.Fatal("two different orders were taken for one")
	}
	if p := h.asset(t, 1).GetSoftwareKey(); p != nil {
		t.Fatalf("allowed by one: %v", p)
	}
	waiting, err := fleetv1.NewOrderServiceClient(anna).ListProposals(t.Context(), &fleetv1.ListProposalsRequest{})
	check(t, err)
	if len(waiting.GetProposals()) != 2 {
		t.Errorf("%d proposals wait, want 2", len(waiting.GetProposals()))
	}

	second := given(t, bernd, allow(assetNumber(1), until, "habe das Gerät gesehen"))
	if !second.GetDone() || second.GetProposal().GetConfirmedBy() != "bernd" {
		t.Fatalf("the second order: %v", second)
	}
	p := h.asset(t, 1).GetSoftwareKey()
	if len(p.GetAllowedBy()) != 2 || !p.GetUntil().AsTime().Equal(until) || p.GetReason() == "" {
		t.Errorf("the permission is %v", p)
	}
}

func TestAProposalIsWithdrawnByAnyOperator(t *testing.T) {
	h := build(t)
	h.add(t, expected(1))
	h.serve(t)
	anna, bernd := h.operator(t, "anna"), h.operator(t, "bernd")
	until := morning.AddDate(0, 6, 0)
	id := given(t, anna, allow(assetNumber(1), until, "kein TPM")).GetProposal().GetId()
	orders := fleetv1.NewOrderServiceClient(bernd)
	_, err := orders.WithdrawProposal(t.Context(), &fleetv1.WithdrawProposalRequest{Id: id})
	check(t, err)
	_, err = orders.WithdrawProposal(t.Context(), &fleetv1.WithdrawProposalRequest{Id: id})
	refused(t, err, codes.NotFound, "not known here")
	if given(t, bernd, allow(assetNumber(1), until, "kein TPM")).GetDone() {
		t.Error("a withdrawn proposal was carried out")
	}
}

// A program of before knows only SetState: with it one person gets no further.
func TestAnOldProgramCannotDoAloneWhatTakesTwo(t *testing.T) {
	h := build(t)
	h.add(t, device(1, "inneres"))
	h.serve(t)
	check(t, h.registry.Alarm(t.Context(), deviceID(1), "cloned", "two live streams"))
	anna, bernd := h.operator(t, "anna"), h.operator(t, "bernd")
	for _, state := range []fleetv1.AssetState{fleetv1.AssetState_ASSET_STATE_ACTIVE, fleetv1.AssetState_ASSET_STATE_EXPECTED} {
		for _, conn := range []*grpc.ClientConn{anna, bernd} {
			_, err := fleetv1.NewInventoryServiceClient(conn).SetState(t.Context(), &fleetv1.SetStateRequest{
				Device: assetNumber(1), State: state, Reason: "gefunden",
			})
			refused(t, err, codes.FailedPrecondition, assetNumber(1))
		}
	}
	if a := h.asset(t, 1); a.GetState() != fleetv1.AssetState_ASSET_STATE_SUSPENDED || a.GetAlarm() == nil {
		t.Fatalf("after SetState: %v", a)
	}
	if given(t, anna, resume(assetNumber(1), "gefunden")).GetDone() {
		t.Fatal("one operator resumed after an alarm")
	}
	if !given(t, bernd, resume(assetNumber(1), "gefunden")).GetDone() {
		t.Fatal("two operators did not resume after an alarm")
	}
	if a := h.asset(t, 1); a.GetState() == fleetv1.AssetState_ASSET_STATE_ACTIVE || a.GetAlarm() != nil {
		t.Errorf("after both: %v", a)
	}
}

func TestOrdersThatSayTooLittleAreRefused(t *testing.T) {
	h := build(t)
	h.add(t, expected(1), device(2, "inneres"))
	h.serve(t)
	anna := h.operator(t, "anna")
	until := morning.AddDate(0, 6, 0)
	for _, tt := range []struct {
		order *fleetv1.Order
		code  codes.Code
		text  string
	}{
		{nil, codes.InvalidArgument, "no device named"},
		{&fleetv1.Order{Device: assetNumber(1)}, codes.InvalidArgument, "does not say what to do"},
		{approve(assetNumber(1), " ", "verglichen"), codes.InvalidArgument, "pfoertner-agent id"},
		{approve(assetNumber(1), "0000-0000-0000-0000-0000-0000", " "), codes.InvalidArgument, "no reason"},
		{approve(assetNumber(2), "0000-0000-0000-0000-0000-0000", "verglichen"), codes.FailedPrecondition, assetNumber(2)},
		{allow(assetNumber(1), until, ""), codes.InvalidArgument, "no reason"},
		{allow("HB-0815", until, "kein TPM"), codes.NotFound, "not known here"},
		{&fleetv1.Order{Device: assetNumber(1), Reason: "x", Action: &fleetv1.Order_AllowSoftwareKey{AllowSoftwareKey: &fleetv1.AllowSoftwareKey{}}}, codes.InvalidArgument, "needs an end"},
		{allow(assetNumber(1), morning.Add(-time.Hour), "kein TPM"), codes.InvalidArgument, ""},
		{allow(assetNumber(1), morning.AddDate(2, 0, 0), "kein TPM"), codes.InvalidArgument, "year"},
		{&fleetv1.Order{Device: assetNumber(2), Action: &fleetv1.Order_ExchangeTpm{ExchangeTpm: &fleetv1.ExchangeTpm{}}}, codes.InvalidArgument, "no reason"},
		{&fleetv1.Order{Device: assetNumber(2), Action: &fleetv1.Order_OpenReimageWindow{OpenReimageWindow: &fleetv1.OpenReimageWindow{
			Lifetime: &durationpb.Duration{Seconds: 1 << 60},
		}}}, codes.InvalidArgument, "lifetime"},
	} {
		_, err := give(t, anna, tt.order)
		refused(t, err, tt.code, tt.text)
	}
	_, err := fleetv1.NewOrderServiceClient(anna).WithdrawProposal(t.Context(), &fleetv1.WithdrawProposalRequest{})
	refused(t, err, codes.InvalidArgument, "no proposal named")
	if n := len(h.registry.Proposals()); n != 0 {
		t.Errorf("%d proposals of refused orders", n)
	}
}

// expected is an asset that nobody has enrolled yet.
func expected(n int) *fleetv1.Device {
	d := device(n, "inneres")
	d.Id, d.Asset.State = "", fleetv1.AssetState_ASSET_STATE_EXPECTED
	return d
}
