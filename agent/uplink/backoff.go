package uplink

import (
	"math/rand/v2"
	"time"
)

// Backoff spreads attempts of many notebooks over time: exponential with full
// jitter, a random wait between zero and a bound that doubles. The zero value
// never waits; use Retry or Refused.
type Backoff struct {
	// Floor is added to every wait.
	Floor time.Duration
	// Base bounds the random part of the first wait, Cap that of every wait.
	Base, Cap time.Duration

	attempts int
}

// Retry is for a collector that cannot be reached.
func Retry() *Backoff { return &Backoff{Base: time.Second, Cap: 5 * time.Minute} }

// Refused is for a collector that does not accept this device: somebody has to
// act before that changes, so it is asked less often.
func Refused() *Backoff {
	return &Backoff{Floor: 10 * time.Second, Base: 20 * time.Second, Cap: 10 * time.Minute}
}

// Next returns how long to wait before the next attempt.
func (b *Backoff) Next() time.Duration {
	bound := b.Cap
	// 2^30 of any base is beyond every cap; more would overflow.
	if b.attempts < 30 {
		if grown := b.Base << b.attempts; grown > 0 {
			bound = min(grown, b.Cap)
		}
		b.attempts++
	}
	if bound <= 0 {
		return b.Floor
	}
	return b.Floor + rand.N(bound)
}

// Reset starts again at Base.
func (b *Backoff) Reset() { b.attempts = 0 }
