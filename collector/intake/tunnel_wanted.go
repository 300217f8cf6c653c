package intake

import agentv1 "pfoertner/proto/pfoertner/agent/v1"

// WantTunnelProof tells a device that the Desk waits for the proof of one of
// its VPN sessions (admission.Desk.OnProofWanted). A device that is not online
// is told nothing: it proves its tunnels by itself when its next stream begins.
// It does not wait. Agents that know of no tunnel proofs ignore it.
func (s *Service) WantTunnelProof(deviceID string) {
	if st := s.session(deviceID); st != nil {
		st.order(func(o *orders) { o.tunnelProof = true })
	}
}

func tunnelProofWanted() *agentv1.ConnectResponse {
	return &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_TunnelProofWanted{TunnelProofWanted: &agentv1.TunnelProofWanted{}}}
}
