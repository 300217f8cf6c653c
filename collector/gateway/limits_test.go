package gateway

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

func up(id string) *gatev1.SessionEvent {
	return &gatev1.SessionEvent{Event: &gatev1.SessionEvent_Up{Up: &gatev1.SessionUp{Session: &gatev1.SessionFacts{SessionId: id}}}}
}

func TestAReportOfEverySessionOfALargeGatewayIsTaken(t *testing.T) {
	req := &gatev1.ReportRequest{Full: true}
	for i := range 4750 {
		req.Events = append(req.Events, up(fmt.Sprintf("ovpn/1763720000/4711/%d", i)))
	}
	if err := checkReport(req); err != nil {
		t.Error(err)
	}
}

func TestAReportBeyondItsLimitsIsRefusedWhole(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for says, events := range map[string][]*gatev1.SessionEvent{
		"events[1]: session_id is missing":              {up("a"), up("")},
		"events[0]: SessionEvent.up.session.session_id": {up(long)},
		"65537 events": make([]*gatev1.SessionEvent, maxEvents+1),
		"events[0]: cut_confirmed": {{Event: &gatev1.SessionEvent_CutConfirmed{CutConfirmed: &gatev1.CutConfirmed{
			SessionId: "a", PacketsCutAfter: durationpb.New(-1)}}}},
		"events[0]: tunnel_addresses": {{Event: &gatev1.SessionEvent_Roamed{Roamed: &gatev1.SessionRoamed{
			SessionId: "a", TunnelAddresses: make([]string, maxAddresses+1)}}}},
		"events[0]: SessionEvent.alarm.detail": {{Event: &gatev1.SessionEvent_Alarm{Alarm: &gatev1.GateAlarm{Detail: long}}}},
	} {
		err := checkReport(&gatev1.ReportRequest{Events: events})
		if err == nil || !strings.HasPrefix(err.Error(), says) {
			t.Errorf("got %v, want an error that begins with %q", err, says)
		}
	}
}
