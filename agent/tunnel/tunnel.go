// Package tunnel proves to the collector that a VPN session is this notebook's
// own: it connects from the tunnel's address and signs, with the device key,
// which addresses this machine has.
//
// Rules. Nothing is proven but tunnels that this machine has, and none more
// often than needed: when one is new, when its addresses change, when the
// collector asks, and when the stream to it begins anew, because the collector
// keeps proofs in memory only. Of several tunnels the newest counts, as it does
// for the collector. Addresses are signed and forgotten: they are neither stored
// nor logged.
package tunnel

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/agent/identity"
	"pfoertner/agent/probe"
	"pfoertner/agent/uplink"
)

const (
	// patience is how long a proof is tried: the gateway may report the session
	// a little later than it comes up here.
	patience = 75 * time.Second
	// proveWithin is how long one attempt may take. A TPM is slow.
	proveWithin = 15 * time.Second
	// Attempts are at least attemptEvery apart, but for a few.
	attemptEvery = 4 * time.Second
	attemptBurst = 6
)

// State has this notebook's identity (identity.State).
type State interface {
	Load() (*identity.Identity, error)
}

// Options of a Prover; all are needed.
type Options struct {
	// Target is the collector as it is reached through the tunnel.
	Target uplink.Target
	State  State
	// Look reads this machine's own addresses.
	Look func(context.Context) (probe.Addresses, error)
	Log  *slog.Logger
}

// Prover proves this notebook's tunnels. Changed and Wanted may be called by
// anybody at any time; they do not wait.
type Prover struct {
	Options
	changed, wanted chan struct{}
	limiter         *rate.Limiter
	// retry makes the pauses between the attempts for one tunnel.
	retry func() *uplink.Backoff

	// tunnels are those that there are, the newest last. Run's own.
	tunnels []*tunnel
}

// tunnel is one of the machine's.
type tunnel struct {
	probe.TunnelAddresses
	// due is when it is tried next; zero: there is nothing to do.
	due, until time.Time
	pauses     *uplink.Backoff
}

// New returns a Prover that does nothing before Run.
func New(o Options) *Prover {
	return &Prover{
		Options: o, changed: make(chan struct{}, 1), wanted: make(chan struct{}, 1),
		limiter: rate.NewLimiter(rate.Every(attemptEvery), attemptBurst),
		retry: func() *uplink.Backoff {
			return &uplink.Backoff{Floor: time.Second, Base: time.Second, Cap: 15 * time.Second}
		},
	}
}

// Changed says that links or addresses may have changed.
func (p *Prover) Changed() { signal(p.changed) }

// Wanted says that the collector needs a proof, or may have forgotten those
// that it had.
func (p *Prover) Wanted() { signal(p.wanted) }

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run proves tunnels until ctx ends.
func (p *Prover) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	p.Changed()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-p.changed:
			p.look(ctx)
		case <-p.wanted:
			p.look(ctx)
			for _, t := range p.tunnels {
				p.begin(t)
			}
		}
		p.try(ctx)
		timer.Stop()
		if next, ok := p.next(); ok {
			timer.Reset(time.Until(next))
		}
	}
}

// look takes note of tunnels that came, changed or went.
func (p *Prover) look(ctx context.Context) {
	now, err := p.Look(ctx)
	if err != nil {
		if ctx.Err() == nil {
			p.Log.Warn("tunnels not read", "error", err)
		}
		return
	}
	is := func(there probe.TunnelAddresses) func(*tunnel) bool {
		return func(t *tunnel) bool { return t.Link == there.Link && slices.Equal(t.Addresses, there.Addresses) }
	}
	p.tunnels = slices.DeleteFunc(p.tunnels, func(t *tunnel) bool {
		return !slices.ContainsFunc(now.Tunnels, func(there probe.TunnelAddresses) bool { return is(there)(t) })
	})
	for _, there := range now.Tunnels {
		if !slices.ContainsFunc(p.tunnels, is(there)) {
			t := &tunnel{TunnelAddresses: there}
			p.tunnels = append(p.tunnels, t)
			p.begin(t)
		}
	}
}

// begin has a tunnel tried from now on.
func (p *Prover) begin(t *tunnel) {
	now := time.Now()
	t.due, t.until, t.pauses = now, now.Add(patience), p.retry()
}

// try proves the newest tunnel that is due. One that is proven makes the older
// ones idle: the collector counts one session of a device.
func (p *Prover) try(ctx context.Context) {
	i := len(p.tunnels) - 1
	for ; i >= 0; i-- {
		if due := p.tunnels[i].due; !due.IsZero() && !due.After(time.Now()) {
			break
		}
	}
	if i < 0 || p.limiter.Wait(ctx) != nil {
		return
	}
	t := p.tunnels[i]
	err := p.prove(ctx, t)
	now := time.Now()
	switch {
	case ctx.Err() != nil:
	case err == nil:
		for _, older := range p.tunnels[:i+1] {
			older.due = time.Time{}
		}
	case final(err) || now.After(t.until):
		t.due = time.Time{}
		p.Log.Warn("vpn session not proven", "link", t.Link, "reason", status.Code(err))
	default:
		t.due = now.Add(t.pauses.Next())
		p.Log.Debug("vpn session not proven yet", "link", t.Link, "reason", status.Code(err))
	}
}

// final says whether the same attempt could never end otherwise.
func final(err error) bool {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument, codes.Unimplemented:
		return true
	}
	return false
}

func (p *Prover) next() (at time.Time, ok bool) {
	for _, t := range p.tunnels {
		if !t.due.IsZero() && (!ok || t.due.Before(at)) {
			at, ok = t.due, true
		}
	}
	return at, ok
}

// prove tries a tunnel's addresses, one after the other, until one leads to the
// collector and has a session.
func (p *Prover) prove(ctx context.Context, t *tunnel) (err error) {
	for _, from := range t.Addresses {
		if err = p.proveFrom(ctx, uplink.Origin{Address: from, Link: t.Link}); err == nil || final(err) {
			return err
		}
	}
	return err
}
