package fleet

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func byDevice(key string) *fleetv1.ExplainRequest {
	return &fleetv1.ExplainRequest{Subject: &fleetv1.ExplainRequest_Device{Device: key}}
}

func byCode(code string) *fleetv1.ExplainRequest {
	return &fleetv1.ExplainRequest{Subject: &fleetv1.ExplainRequest_Code{Code: code}}
}

func TestADeviceIsFoundByItsNumberAndItsID(t *testing.T) {
	_, s := fiveDevices(t)
	for _, key := range []string{assetNumber(0), deviceID(0)} {
		answer, err := s.GetDevice(t.Context(), &fleetv1.GetDeviceRequest{Device: key})
		check(t, err)
		if d := answer.GetDevice(); d.GetId() != deviceID(0) || d.GetEvidence().GetPatch().GetPendingSecurity() != 7 {
			t.Errorf("%s: got %v", key, d)
		}
	}
	_, err := s.GetDevice(t.Context(), &fleetv1.GetDeviceRequest{Device: "HB-0815"})
	refused(t, err, codes.NotFound, `no device has the asset number or the id "HB-0815"`)
	_, err = s.GetDevice(t.Context(), &fleetv1.GetDeviceRequest{})
	refused(t, err, codes.InvalidArgument, "no device named")
}

func TestADeviceIsExplainedAsItStandsNow(t *testing.T) {
	h, s := fiveDevices(t)
	h.desk.verdicts = map[string]posturev1.Verdict{deviceID(0): quarantine}
	h.desk.sessions = []*fleetv1.Session{
		{Gateway: "vpn-1", SessionId: "1", DeviceId: deviceID(1)},
		{Gateway: "vpn-1", SessionId: "2", DeviceId: deviceID(0)},
	}
	answer, err := s.Explain(t.Context(), byDevice(assetNumber(0)))
	check(t, err)
	e := answer.GetExplanations()[0]
	if e.GetVerdict() != quarantine || e.GetReason().GetEn() != "now quarantine" {
		t.Errorf("got %v %v, want what the Desk says", e.GetVerdict(), e.GetReason())
	}
	if e.GetResult().GetVerdict() != deny || e.GetDevice().GetAsset().GetAssetNumber() != assetNumber(0) {
		t.Errorf("got %v", e)
	}
	if len(e.GetSessions()) != 1 || e.GetSessions()[0].GetSessionId() != "2" {
		t.Errorf("sessions %v, want its own", e.GetSessions())
	}
	if e.GetDevice().GetEvidence() != nil || e.GetDevice().GetResult() != nil || e.GetOutdated() {
		t.Errorf("device in the explanation: %v", e.GetDevice())
	}
}

func TestAnAssetThatHasNotEnrolledIsDenied(t *testing.T) {
	h, s := fiveDevices(t)
	h.desk.verdicts = map[string]posturev1.Verdict{"": admit}
	answer, err := s.Explain(t.Context(), byDevice(assetNumber(4)))
	check(t, err)
	e := answer.GetExplanations()[0]
	if e.GetVerdict() != deny || e.GetReason().GetDe() == "" || !strings.Contains(e.GetReason().GetEn(), "not enrolled") {
		t.Errorf("got %v", e)
	}
}

func TestACodeIsResolvedHoweverItIsReadOut(t *testing.T) {
	h, s := fiveDevices(t)
	h.report(t, deviceID(2), admit, 0, morning)
	stranger := &fleetv1.Explanation{
		Gateway: "vpn-1", CertificateSha256: bytes.Repeat([]byte{7}, 32), RefusedAt: timestamppb.New(morning.Add(time.Minute)),
	}
	check(t, h.store.SaveRefusal(t.Context(), stranger, "7K4-QX2"))
	for _, said := range []string{"7K4-QX2", "7k4qx2", " 7k4 – qx2 ", "7.k.4.q.x.2", "7K4—QX2"} {
		answer, err := s.Explain(t.Context(), byCode(said))
		check(t, err)
		all := answer.GetExplanations()
		if len(all) != 3 {
			t.Fatalf("%q: %d explanations, want those of two devices and a stranger", said, len(all))
		}
		if !proto.Equal(all[0], stranger) {
			t.Errorf("%q: stranger is %v", said, all[0])
		}
		for _, e := range all[1:] {
			outdated := e.GetDevice().GetId() == deviceID(2)
			if e.GetOutdated() != outdated || e.GetResult().GetCode() != "7K4-QX2" || e.GetRefusedAt() == nil {
				t.Errorf("%q: got %v", said, e)
			}
		}
	}
	_, err := s.Explain(t.Context(), byCode("222-333"))
	refused(t, err, codes.NotFound, "222-333")
	_, err = s.Explain(t.Context(), byCode("7K4-QX"))
	refused(t, err, codes.InvalidArgument, `"7K4-QX2"`)
	_, err = s.Explain(t.Context(), &fleetv1.ExplainRequest{})
	refused(t, err, codes.InvalidArgument, "a device or a refusal code")
}

// A suspended device is refused without a result: the code stands for the
// reason that it was told.
func TestACodeWithoutAResultKeepsItsReason(t *testing.T) {
	h, s := fiveDevices(t)
	told := &posturev1.LocalText{De: "Das Gerät ist gesperrt.", En: "The device is suspended."}
	check(t, h.store.SaveRefusal(t.Context(), &fleetv1.Explanation{
		Device: &fleetv1.Device{Id: deviceID(1)}, Verdict: deny, Reason: told, RefusedAt: timestamppb.New(morning), Gateway: "vpn-1",
	}, "222-333"))
	for verdict, outdated := range map[posturev1.Verdict]bool{deny: false, admit: true} {
		h.desk.verdicts = map[string]posturev1.Verdict{deviceID(1): verdict}
		answer, err := s.Explain(t.Context(), byCode("222333"))
		check(t, err)
		e := answer.GetExplanations()[0]
		if e.GetOutdated() != outdated || e.GetVerdict() != verdict || e.GetResult() != nil ||
			!proto.Equal(e.GetReason(), told) || e.GetGateway() != "vpn-1" || e.GetDevice().GetAsset() == nil {
			t.Errorf("when the desk says %v: got %v", verdict, e)
		}
	}
}

func TestSessionsAreListedByGateway(t *testing.T) {
	h, s := fiveDevices(t)
	h.desk.sessions = []*fleetv1.Session{{Gateway: "vpn-1"}, {Gateway: "vpn-2"}}
	for gateway, want := range map[string]int{"": 2, "vpn-2": 1, "vpn-3": 0} {
		answer, err := s.ListSessions(t.Context(), &fleetv1.ListSessionsRequest{Gateway: gateway})
		check(t, err)
		if got := len(answer.GetSessions()); got != want {
			t.Errorf("%q: %d sessions, want %d", gateway, got, want)
		}
	}
}

func TestEventsAreListedNewestFirst(t *testing.T) {
	h, s := fiveDevices(t)
	for i, r := range []audit.Record{
		{Kind: "token.created", AssetNumber: assetNumber(0)},
		{Kind: "verdict.changed", DeviceID: deviceID(0)},
		{Kind: "token.created", AssetNumber: assetNumber(4)},
	} {
		r.At = morning.Add(time.Duration(i) * time.Hour)
		check(t, h.store.AppendAudit(t.Context(), r))
	}
	for _, tt := range []struct {
		req  *fleetv1.ListEventsRequest
		want []uint64
	}{
		{&fleetv1.ListEventsRequest{}, []uint64{3, 2, 1}},
		{&fleetv1.ListEventsRequest{Limit: 1}, []uint64{3}},
		{&fleetv1.ListEventsRequest{Since: timestamppb.New(morning.Add(time.Hour))}, []uint64{3, 2}},
		{&fleetv1.ListEventsRequest{Device: assetNumber(0)}, []uint64{2, 1}},
		{&fleetv1.ListEventsRequest{Device: deviceID(0)}, []uint64{2, 1}},
		{&fleetv1.ListEventsRequest{Device: assetNumber(4)}, []uint64{3}},
	} {
		answer, err := s.ListEvents(t.Context(), tt.req)
		check(t, err)
		var got []uint64
		for _, e := range answer.GetEvents() {
			got = append(got, e.GetSequence())
		}
		if len(got) != len(tt.want) || len(got) > 0 && got[0] != tt.want[0] {
			t.Errorf("%v: events %v, want %v", tt.req, got, tt.want)
		}
	}
	for want, req := range map[string]*fleetv1.ListEventsRequest{
		"at most 1000": {Limit: 1001},
		"since":        {Since: &timestamppb.Timestamp{Nanos: -1}},
	} {
		_, err := s.ListEvents(t.Context(), req)
		refused(t, err, codes.InvalidArgument, want)
	}
	_, err := s.ListEvents(t.Context(), &fleetv1.ListEventsRequest{Device: "HB-0815"})
	refused(t, err, codes.NotFound, "HB-0815")
}
