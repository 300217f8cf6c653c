package main

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"time"

	"pfoertner/collector/audit"
	"pfoertner/collector/authority"
)

func (p *Program) keysDir() string { return filepath.Join(p.config.State, keysDir) }

// recordKeys puts what happens to certificates into the audit log.
func (p *Program) recordKeys(records ...audit.Record) error {
	return p.store.AppendAudit(context.Background(), records...)
}

// followKeys takes over what `ca` commands change in the directory of the keys.
func (p *Program) followKeys(ctx context.Context) error {
	tick := time.NewTicker(authority.FollowEvery)
	defer tick.Stop()
	renew := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		changed, revoked, err := p.keys.Follow()
		if err != nil {
			p.log.Error("changed CAs not taken over", "error", err)
			continue
		}
		if renew = renew || changed; !renew {
			continue
		}
		p.log.Info("the CAs have changed", "revoked", revoked)
		// Before the connections end: who comes back sees the new certificate.
		if err := p.keys.Renew(); err != nil {
			p.log.Error("own certificates not renewed", "error", err)
		} else {
			renew = false
		}
		p.cut(revoked)
	}
}

// cut ends all connections that may rest on a revoked CA. Who has another
// certificate comes back at once.
func (p *Program) cut(kinds []string) {
	for _, kind := range kinds {
		switch kind {
		case "device", "vpn": // agents come back, and ask for VPN certificates anew
			p.agents.cut()
		case "gate":
			p.gates.cut()
		case "operator":
			p.operators.cut()
		default: // of the servers: all have to hear whom to trust now
			p.agents.cut()
			p.gates.cut()
			p.operators.cut()
		}
	}
}

// peers is a listener whose connections can be ended all at once.
type peers struct {
	net.Listener

	mu   sync.Mutex
	live map[*connection]struct{}
}

// connection leaves its peers when it is closed.
type connection struct {
	net.Conn
	of *peers
}

func newPeers(l net.Listener) *peers {
	return &peers{Listener: l, live: map[*connection]struct{}{}}
}

// Accept implements net.Listener.
func (p *peers) Accept() (net.Conn, error) {
	conn, err := p.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &connection{conn, p}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live[c] = struct{}{}
	return c, nil
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.of.mu.Lock()
	delete(c.of.live, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// cut ends all connections. Those that are in the middle of a handshake are
// among them.
func (p *peers) cut() {
	p.mu.Lock()
	ending := make([]*connection, 0, len(p.live))
	for c := range p.live {
		ending = append(ending, c)
	}
	p.mu.Unlock()
	for _, c := range ending {
		c.Close() // its server sees it gone; there is nothing else to do
	}
}
