//go:build linux

package e2e_test

import (
	"net/netip"
	"testing"
	"time"

	"pfoertner/internal/e2e"
)

// The bench itself: what it calls traffic is traffic, what it calls silence is
// silence, and it knows when one became the other.
func TestProberSeesTheLastPacket(t *testing.T) {
	e2e.Require(t, "nft", "sysctl")
	a, b := e2e.NewNamespace(t, "left"), e2e.NewNamespace(t, "right")
	e2e.Cable(t, e2e.End{In: a, Device: "eth0", Addresses: []string{"192.0.2.1/24", "2001:db8::1/64"}},
		e2e.End{In: b, Device: "eth0", Addresses: []string{"192.0.2.2/24", "2001:db8::2/64"}})
	for _, address := range []string{"192.0.2.2:7", "[2001:db8::2]:7"} {
		echo := e2e.StartEcho(t, b, netip.MustParseAddrPort(address))
		p := e2e.StartProber(t, a, echo)
		p.AwaitFlow(t, 5*time.Second)
		before := time.Now()
		b.Run(t, "nft", "add table inet wall; add chain inet wall in { type filter hook input priority 0; policy drop; }")
		after := time.Now()
		last := p.AwaitSilence(t, 200*time.Millisecond, 5*time.Second)
		if last.Before(before.Add(-100*time.Millisecond)) || last.After(after.Add(100*time.Millisecond)) {
			t.Errorf("%s: last packet at %s, the wall went up between %s and %s", address, last, before, after)
		}
		b.Run(t, "nft", "delete table inet wall")
		p.AwaitFlow(t, 5*time.Second)
	}
}
