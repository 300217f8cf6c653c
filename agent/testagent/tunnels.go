package main

import (
	"context"

	"pfoertner/agent/probe"
	"pfoertner/agent/session"
	"pfoertner/agent/status"
	"pfoertner/agent/tunnel"
)

// proveTunnels proves the tunnels of this machine beside the session, as the
// agent does, until the function that it returns is called.
func (o options) proveTunnels(ctx context.Context, so *session.Options) (end func()) {
	target := o.target()
	target.Address = o.tunnel
	p := tunnel.New(tunnel.Options{
		Target: target, State: so.State, Log: so.Log,
		Look: func(ctx context.Context) (probe.Addresses, error) {
			return probe.ReadAddresses(ctx, probe.NewHost(), nil)
		},
	})
	so.TunnelProofWanted = p.Wanted
	so.Board = tunnelBoard{so.Board, p}
	watching := tunnel.Start(ctx, watched{p})
	proving := tunnel.Start(ctx, p)
	return func() {
		watching()
		proving()
	}
}

// watched tells the prover of this machine's links.
type watched struct{ *tunnel.Prover }

// Run implements tunnel.Runner.
func (w watched) Run(ctx context.Context) {
	_ = w.Following(probe.NewWatcher()).Watch(ctx, func(...string) {}) // it ends with ctx
}

// tunnelBoard tells the prover of every new stream.
type tunnelBoard struct {
	session.Board
	prover *tunnel.Prover
}

// Connection implements session.Board.
func (b tunnelBoard) Connection(c status.Connection) {
	b.Board.Connection(c)
	if c == status.Online {
		b.prover.Wanted()
	}
}
