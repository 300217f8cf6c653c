package intake

import (
	"testing"

	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// says connects as an agent of that capability and gets through the welcome.
func (n *notebook) says(capability uint32) *notebook {
	n.t.Helper()
	n.open()
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.ClientHello{Capability: capability}}})
	n.nonce = n.receive().GetWelcome().GetNonce()
	return n
}

// catalogue expects a catalogue as the next message.
func (n *notebook) catalogue(want string) {
	n.t.Helper()
	m, ok := n.receive().GetMessage().(*agentv1.ConnectResponse_VpnCatalogue)
	if !ok || string(m.VpnCatalogue.GetSignedFile()) != want {
		n.t.Errorf("%v, want the catalogue %q", m, want)
	}
}

func TestTheCatalogueInForceIsSentToWhoUnderstandsIt(t *testing.T) {
	h := newHouse(t)
	first, old := h.enrolled(t, deviceA).says(2), h.enrolled(t, deviceB).says(1)
	first.catalogue("") // none is in force: an agent forgets what it has
	h.SetVPNCatalogue([]byte("one"))
	first.catalogue("one")
	h.SetVPNCatalogue(nil)
	first.catalogue("")
	h.SetVPNCatalogue([]byte("two"))
	first.catalogue("two")
	again := h.enrolled(t, deviceA).says(3) // a newer agent
	again.catalogue("two")

	// The old agent is told nothing but what it understands.
	h.Collect(deviceB, "test", false)
	if m := old.receive(); m.GetCollect().GetReason() != "test" {
		t.Errorf("an agent of capability 1 got %v", m)
	}
}
