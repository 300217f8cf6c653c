//go:build linux

// Package nft is the gate's packet filter: one nftables table that decides, by
// tunnel address, what may leave a VPN's tunnel interfaces.
//
// Rules. Default is drop: what is in no set gets nowhere, not to the network,
// not to other tunnels, not to the gateway itself. Sets are asked before any
// state of connections, so an address that leaves its set is cut in the middle
// of a download. Every element has a time-out and the kernel keeps it: when
// the gate is dead, access ends all the same. Foreign tables are never
// touched, and what they drop stays dropped.
package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"pfoertner/collector/gate/session"
)

// Options says what the filter guards.
type Options struct {
	// Devices are the tunnel interfaces: "tun0". They need not exist yet.
	Devices []string
	// Remedies are the destinations that quarantine leaves open: the collector
	// and the patch servers.
	Remedies []netip.Prefix
	// TCP and UDP are ports of the gateway itself that quarantine leaves open,
	// a name server for example.
	TCP, UDP []uint16
	// Namespace is a file descriptor of the network namespace to work in.
	// Zero: the process's own.
	Namespace int
}

// tableName is the one table that is ours.
const tableName = "pfoertner"

// longest is the time-out of an element that was given none. It never comes to
// that; if it did, access would still end.
const longest = time.Minute

// bufferSize holds the largest batch and its acknowledgements.
const bufferSize = 4 << 20

// batchSize is how many addresses change in one transaction, messageSize how
// many in one message of it (the list of elements is at most 64 KiB).
const (
	batchSize   = 4096
	messageSize = 1000
)

// Filter is the table. Its methods may be called from any goroutine.
type Filter struct {
	options Options
	mu      sync.Mutex // one transaction at a time
	table   *nftables.Table
	// sets by what they let through and by family: admit4, admit6, …
	admit, quarantine [2]*nftables.Set
}

// Open puts the table in place, in one transaction. A table that an earlier
// gate left keeps its elements with the time they have left: live sessions
// never notice. Errors: the kernel's, or options that make no sense.
func Open(o Options) (*Filter, error) {
	if len(o.Devices) == 0 {
		return nil, errors.New("packet filter without a tunnel interface")
	}
	for _, d := range o.Devices {
		if d == "" || len(d) > maxInterfaceName {
			return nil, fmt.Errorf("interface name %q: 1 to %d bytes are possible", d, maxInterfaceName)
		}
	}
	f := &Filter{options: o, table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}}
	// A table made by another version may have sets of another kind. Then it
	// is made anew: access of live sessions ends until they are admitted again.
	err := f.install(false)
	if err != nil {
		err = f.install(true)
	}
	if err != nil {
		return nil, fmt.Errorf("installing packet filter: %w", err)
	}
	return f, nil
}

// Apply implements session.Filter.
func (f *Filter) Apply(changes []session.Access) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for part := range slices.Chunk(changes, batchSize) {
		if err := f.transact(part); err != nil {
			return fmt.Errorf("changing packet filter: %w", err)
		}
	}
	return nil
}

// transact changes the sets in one transaction. An element that runs out
// between two messages of it makes the kernel refuse the whole; the next try
// finds it gone.
func (f *Filter) transact(changes []session.Access) error {
	const tries = 3
	var err error
	for range tries {
		if err = f.tryTransact(changes); !errors.Is(err, errNoElement) {
			return err
		}
	}
	return err
}

func (f *Filter) tryTransact(changes []session.Access) error {
	conn, err := f.dial()
	if err != nil {
		return err
	}
	for _, kind := range []struct {
		sets [2]*nftables.Set
		time func(session.Access) time.Duration
	}{
		{f.admit, func(a session.Access) time.Duration { return a.Admit }},
		{f.quarantine, func(a session.Access) time.Duration { return a.Quarantine }},
	} {
		for family, set := range kind.sets {
			if err := replace(conn, set, changes, family, kind.time); err != nil {
				return err
			}
		}
	}
	return conn.Flush()
}

// replace takes the addresses of one family out of a set and puts those back
// that have time. Deleting what is not there is an error that fails the
// transaction, and adding what is there changes its time only since Linux
// 6.12; so each is added, deleted, and added as it shall be.
func replace(conn *nftables.Conn, set *nftables.Set, changes []session.Access, family int, left func(session.Access) time.Duration) error {
	var all, stay []nftables.SetElement
	for _, c := range changes {
		a := c.Address.Unmap()
		if familyOf(a) != family {
			continue
		}
		all = append(all, nftables.SetElement{Key: a.AsSlice(), Timeout: longest})
		// The kernel counts milliseconds and takes zero for "for ever".
		if t := left(c).Truncate(time.Millisecond); t > 0 {
			stay = append(stay, nftables.SetElement{Key: a.AsSlice(), Timeout: t})
		}
	}
	for _, step := range []struct {
		do       func(*nftables.Set, []nftables.SetElement) error
		elements []nftables.SetElement
	}{{conn.SetAddElements, all}, {conn.SetDeleteElements, all}, {conn.SetAddElements, stay}} {
		for part := range slices.Chunk(step.elements, messageSize) {
			if err := step.do(set, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// Addresses implements session.Filter.
func (f *Filter) Addresses() ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn, err := f.dial()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, set := range slices.Concat(f.admit[:], f.quarantine[:]) {
		elements, err := conn.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("listing packet filter: %w", err)
		}
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

func (f *Filter) dial() (*nftables.Conn, error) {
	return nftables.New(
		nftables.WithNetNSFd(f.options.Namespace),
		nftables.WithSockOptions(func(c *netlink.Conn) error {
			return errors.Join(c.SetReadBuffer(bufferSize), c.SetWriteBuffer(bufferSize))
		}))
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return v4
	}
	return v6
}
