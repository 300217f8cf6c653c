package intake

import (
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// Limits of a statement: far above what a notebook has.
const (
	maxStatement = 8 << 10
	maxOwn       = 128
)

// statement is what a device has signed: which session it means, and its own
// addresses.
type statement struct {
	gateway, sessionID string
	addresses          []netip.Addr
}

// parseStatement reads a marshalled TunnelStatement. It returns an error when it
// is too long, malformed, or lists what is no address of an interface.
func parseStatement(raw []byte) (statement, error) {
	if len(raw) > maxStatement {
		return statement{}, fmt.Errorf("statement of %d bytes: at most %d are taken", len(raw), maxStatement)
	}
	var m agentv1.TunnelStatement
	if err := proto.Unmarshal(raw, &m); err != nil {
		return statement{}, fmt.Errorf("statement: %w", err)
	}
	if n := len(m.GetAddresses()); n > maxOwn {
		return statement{}, fmt.Errorf("statement: %d addresses, at most %d are taken", n, maxOwn)
	}
	s := statement{gateway: m.GetGateway(), sessionID: m.GetSessionId()}
	for i, text := range m.GetAddresses() {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			// Without its text: addresses are not for logs.
			return statement{}, fmt.Errorf("statement: addresses[%d] is no address", i)
		}
		s.addresses = append(s.addresses, a.Unmap())
	}
	return s, nil
}

func (s statement) has(a netip.Addr) bool { return slices.Contains(s.addresses, a) }
