package enrolment

import (
	"net/netip"
	"testing"
)

// Whoever opens attempts and says nothing does not keep the others out.
func TestOneAddressDoesNotHoldAllPlaces(t *testing.T) {
	p := newPlaces(4, 2)
	stranger, neighbour := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	other, third := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.2")
	for i, step := range []struct {
		from netip.Addr
		want bool
	}{{stranger, true}, {neighbour, true}, {stranger, false}, {other, true}, {third, true}, {other, false}} {
		if got := p.take(step.from); got != step.want {
			t.Errorf("%d: %s takes a place: %v", i, step.from, got)
		}
	}
	p.leave(third)
	if p.take(stranger) {
		t.Error("what another gives back is the stranger's")
	}
	p.leave(neighbour)
	if !p.take(stranger) {
		t.Error("a place that was given back is not free")
	}
	for _, from := range []netip.Addr{stranger, stranger, other} {
		p.leave(from)
	}
	if len(p.of) != 0 || p.taken != 0 {
		t.Errorf("%d places taken, of %v", p.taken, p.of)
	}
}
