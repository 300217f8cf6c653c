package intake

import "testing"

func TestADeviceIsToldThatAProofIsWanted(t *testing.T) {
	h := newHouse(t)
	n := h.enrolled(t, deviceA).hello()
	h.WantTunnelProof(deviceB) // not online
	h.WantTunnelProof(deviceA)
	for {
		m := n.receive()
		if m.GetTunnelProofWanted() != nil {
			return
		}
		if m.GetVpnCatalogue() == nil {
			t.Fatalf("got %v", m)
		}
	}
}
