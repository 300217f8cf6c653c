package session

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/agent/testcollector"
	"pfoertner/internal/attest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

func TestVPNKeyIsChallengedOnce(t *testing.T) {
	o := newChipOffice(t)
	o.Listen()
	_, state := o.device(t)
	var busy *agent
	start(t, o.Collector, state, func(a *agent) { busy = a })
	s, _ := opened(t, o.Collector)
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnKeyWanted{
		VpnKeyWanted: &agentv1.VpnKeyWanted{RenewBefore: durationpb.New(time.Hour)},
	}})
	if m := s.Take(t); m.GetVpnKey() == nil {
		t.Fatalf("asked with %v", m)
	}
	busy.turn <- struct{}{} // the TPM works on something
	defer func() { <-busy.turn }()
	challenge := &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnKeyChallenge{
		VpnKeyChallenge: &agentv1.VpnKeyChallenge{Nonce: make([]byte, attest.NonceBytes)},
	}}
	s.Say(t, challenge)
	isPresent(t, s)
	s.Say(t, challenge)
	select {
	case <-s.Gone():
	case <-testcollector.Within(t).Done():
		t.Error("the stream goes on")
	}
}
