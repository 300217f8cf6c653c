package session

import (
	"context"
	"net/netip"
	"time"

	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

// Driver is one VPN server. It tells what happens on it (Tried, Established,
// Ended, Attached, Detached) in the order in which it happened, and does what
// it is told.
type Driver interface {
	// Run connects to the server, and again when the connection is lost, and
	// hands every event to told. It returns when ctx ends.
	Run(ctx context.Context, told func(Event)) error
	// Allow lets an attempt in.
	Allow(ctx context.Context, a Attempt) error
	// Deny refuses an attempt; text is what the user reads.
	Deny(ctx context.Context, a Attempt, text string) error
	// Dismiss asks a client to leave and shows text to its user. A hostile
	// client ignores it.
	Dismiss(ctx context.Context, k Key, text string) error
	// End ends exactly these sessions, or, when force is set, by any means.
	// That it returned nil is no proof: ask Live.
	End(ctx context.Context, keys []Key, force bool) error
	// Live lists the sessions that are up.
	Live(ctx context.Context) ([]Live, error)
}

// Event is Tried, Established, Ended, Attached or Detached.
type Event interface{ on() string }

// Key names a session on a VPN server for as long as the server's process
// lives.
type Key struct {
	Server string
	CID    uint64
}

// Peer is the other end of a session.
type Peer struct {
	// Fingerprint is the SHA-256 of the client certificate. Nil: not known,
	// and denied.
	Fingerprint []byte
	// Name is the certificate's common name: shown to people, decides nothing.
	Name string
	// Outer is the address the client comes from: may only lower a verdict.
	Outer    string
	Protocol gatev1.Protocol
}

// Attempt is what has to be allowed or denied.
type Attempt struct {
	Key
	// Handshake is the number of the TLS handshake inside the session.
	Handshake uint64
}

// Tried says that a client has proven its certificate and waits, at first or
// (Again) at the renegotiation of its keys.
type Tried struct {
	Attempt
	Peer
	Again bool
}

// Established says that a session is up and has these tunnel addresses.
type Established struct {
	Key
	Peer
	Addresses []netip.Addr
	// Since is when the server made the session, to the second.
	Since time.Time
	// Process is the server's process id.
	Process int
}

// Ended says that a session is over.
type Ended struct{ Key }

// Attached says that the gate and the server talk again, and what is up there
// now. Everything else may have happened meanwhile.
type Attached struct {
	Server string
	// Process is the server's process id.
	Process int
	Live    []Live
}

// Detached says that the gate has lost the server.
type Detached struct {
	Server string
	Cause  error
}

// Live is one session as the server lists it.
type Live struct {
	Key
	Name      string
	Outer     string
	Addresses []netip.Addr
	Since     time.Time
}

func (e Tried) on() string       { return e.Server }
func (e Established) on() string { return e.Server }
func (e Ended) on() string       { return e.Server }
func (e Attached) on() string    { return e.Server }
func (e Detached) on() string    { return e.Server }
