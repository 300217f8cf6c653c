package enrolment

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits bound what strangers can make the collector do: anyone who reaches
// the listener may try to enrol.
type Limits struct {
	// Attempts are all, of everybody together and of one address.
	Attempts, AttemptsPerPeer Rate
	// Refusals are attempts that were refused, of one address. Each is an audit
	// record; an address that used them up waits.
	RefusalsPerPeer Rate
	// Open is how many attempts may be under way at once, OpenPerPeer how many of
	// one address; zero: as many as of all.
	Open, OpenPerPeer int
}

// Rate is a token bucket: Burst at once, then PerSecond.
type Rate struct {
	PerSecond float64
	Burst     int
}

// DefaultLimits let a staging room of some hundred notebooks behind one address
// enrol without noticing.
func DefaultLimits() Limits {
	return Limits{
		Attempts:        Rate{PerSecond: 50, Burst: 200},
		AttemptsPerPeer: Rate{PerSecond: 2, Burst: 50},
		RefusalsPerPeer: Rate{PerSecond: 1.0 / 60, Burst: 10},
		Open:            1024,
		OpenPerPeer:     128,
	}
}

// maxPeers bounds the memory of a peerLimiter: two generations of this many.
const maxPeers = 4096

// peerLimiter is a token bucket for each address (IPv6: each /64). Addresses
// that have not been seen for a whole generation are forgotten.
type peerLimiter struct {
	rate Rate
	now  func() time.Time

	mu            sync.Mutex
	young, elders map[netip.Prefix]*rate.Limiter
}

func newPeerLimiter(r Rate, now func() time.Time) *peerLimiter {
	return &peerLimiter{rate: r, now: now, young: map[netip.Prefix]*rate.Limiter{}}
}

// take takes one from the address's bucket; false when there is none.
func (p *peerLimiter) take(addr netip.Addr) bool {
	return p.bucket(addr).AllowN(p.now(), 1)
}

// empty says whether the address's bucket is empty, and takes nothing.
func (p *peerLimiter) empty(addr netip.Addr) bool {
	return p.bucket(addr).TokensAt(p.now()) < 1
}

func (p *peerLimiter) bucket(addr netip.Addr) *rate.Limiter {
	key := peerOf(addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.young[key]
	if b != nil {
		return b
	}
	if b = p.elders[key]; b == nil {
		b = rate.NewLimiter(rate.Limit(p.rate.PerSecond), p.rate.Burst)
	}
	if len(p.young) >= maxPeers {
		p.young, p.elders = map[netip.Prefix]*rate.Limiter{}, p.young
	}
	p.young[key] = b
	return b
}

// peerOf is what counts as one address.
func peerOf(addr netip.Addr) netip.Prefix {
	bits := 64
	if addr = addr.Unmap(); addr.Is4() {
		bits = 32
	}
	peer, _ := addr.WithZone("").Prefix(bits) // of an invalid address one, too
	return peer
}

// places are those for attempts under way: whoever says nothing holds one until
// it is timed out, and nobody may hold them all.
type places struct {
	all, perPeer int

	mu    sync.Mutex
	taken int
	of    map[netip.Prefix]int
}

func newPlaces(all, perPeer int) *places {
	if perPeer == 0 {
		perPeer = all
	}
	return &places{all: all, perPeer: perPeer, of: map[netip.Prefix]int{}}
}

// take takes a place, if there is one.
func (p *places) take(addr netip.Addr) bool {
	peer := peerOf(addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.all || p.of[peer] >= p.perPeer {
		return false
	}
	p.taken++
	p.of[peer]++
	return true
}

// leave gives a place back.
func (p *places) leave(addr netip.Addr) {
	peer := peerOf(addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if p.of[peer]--; p.of[peer] == 0 {
		delete(p.of, peer)
	}
}
