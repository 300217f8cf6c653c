//go:build linux

package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// probeSize is one probe packet: the prober's number and the packet's.
const probeSize = 16

// Echo is a server that answers every probe and notes when it arrived.
type Echo struct {
	Address netip.AddrPort
	conn    *net.UDPConn
	mu      sync.Mutex
	seen    map[uint64]*arrivals
}

type arrivals struct {
	mu    sync.Mutex
	count int64
	last  time.Time
}

// StartEcho starts an echo server in a namespace.
func StartEcho(t testing.TB, in *Namespace, address netip.AddrPort) *Echo {
	t.Helper()
	e := &Echo{Address: address, seen: map[uint64]*arrivals{}}
	err := in.Do(func() (err error) {
		e.conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(address))
		return err
	})
	if err != nil {
		t.Fatalf("listening on %s: %v", address, err)
	}
	var serving sync.WaitGroup
	serving.Go(e.serve)
	t.Cleanup(func() {
		e.conn.Close()
		serving.Wait()
	})
	return e
}

func (e *Echo) serve() {
	buf := make([]byte, 64)
	for {
		n, from, err := e.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != probeSize {
			continue
		}
		if a := e.of(binary.BigEndian.Uint64(buf)); a != nil {
			a.note()
		}
		_, _ = e.conn.WriteToUDPAddrPort(buf[:n], from) // a lost answer is what is being measured
	}
}

// of is where the arrivals of a prober are noted; nil for a stranger's.
func (e *Echo) of(prober uint64) *arrivals {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.seen[prober]
}

// join gives a new prober its number.
func (e *Echo) join() (uint64, *arrivals) {
	e.mu.Lock()
	defer e.mu.Unlock()
	number, a := uint64(len(e.seen)+1), &arrivals{}
	e.seen[number] = a
	return number, a
}

func (a *arrivals) note() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count, a.last = a.count+1, time.Now()
}

func (a *arrivals) noted() (int64, time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.count, a.last
}

// Prober sends numbered packets to an Echo and notes which got through: there,
// and back.
type Prober struct {
	to    netip.AddrPort
	there *arrivals
	back  arrivals
}

// StartProber starts probing from a namespace, a packet a millisecond, until
// the test ends. It begins before there is a way: packets that can't be sent
// are not an error.
func StartProber(t testing.TB, from *Namespace, to *Echo) *Prober {
	t.Helper()
	return StartProberEvery(t, time.Millisecond, from, to)
}

// StartProberEvery is StartProber for tests that need no such fine times: it
// sends a packet in every interval.
func StartProberEvery(t testing.TB, interval time.Duration, from *Namespace, to *Echo) *Prober {
	t.Helper()
	number, there := to.join()
	p := &Prober{to: to.Address, there: there}
	network := "udp4"
	if to.Address.Addr().Is6() {
		network = "udp6"
	}
	var conn *net.UDPConn
	err := from.Do(func() (err error) {
		conn, err = net.ListenUDP(network, nil)
		return err
	})
	if err != nil {
		t.Fatalf("opening prober: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { p.send(ctx, interval, conn, to.Address, number) })
	running.Go(func() { p.receive(conn) })
	t.Cleanup(func() {
		cancel()
		conn.Close()
		running.Wait()
	})
	return p
}

func (p *Prober) send(ctx context.Context, interval time.Duration, conn *net.UDPConn, to netip.AddrPort, number uint64) {
	packet := binary.BigEndian.AppendUint64(nil, number)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := uint64(1); ; n++ {
		select {
		case <-tick.C:
			_, _ = conn.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(packet[:8:8], n), to)
		case <-ctx.Done():
			return
		}
	}
}

func (p *Prober) receive(conn *net.UDPConn) {
	buf := make([]byte, 64)
	for {
		n, _, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n == probeSize {
			p.back.note()
		}
	}
}

// Arrived is how many packets have reached the other side, and when the last
// did, to about two intervals; zero when none did.
func (p *Prober) Arrived() (int64, time.Time) { return p.there.noted() }

// Answered is how many answers came back, and when the last did.
func (p *Prober) Answered() (int64, time.Time) { return p.back.noted() }

// Last is when a packet last got through, either way; zero when none did.
func (p *Prober) Last() time.Time {
	_, there := p.Arrived()
	_, back := p.Answered()
	if there.After(back) {
		return there
	}
	return back
}

// AwaitFlow waits until packets get through now, there and back.
func (p *Prober) AwaitFlow(t testing.TB, within time.Duration) {
	t.Helper()
	before, _ := p.Answered()
	if !Eventually(t, within, func() bool { now, _ := p.Answered(); return now > before+3 }) {
		t.Fatalf("no traffic within %s: %s", within, p)
	}
}

// AwaitSilence waits until no packet has got through, either way, for the
// given time, and returns when the last one did. It fails the test when
// traffic still flows after within.
//
// Where the same way goes on carrying other packets, beside names who sends
// them: only while those arrive does silence count. A machine that is too busy
// to carry anything is no gate that closed.
func (p *Prober) AwaitSilence(t testing.TB, silent, within time.Duration, beside ...*Prober) time.Time {
	t.Helper()
	quiet := func() bool {
		last := p.Last()
		return time.Since(last) >= silent &&
			!slices.ContainsFunc(beside, func(b *Prober) bool { return b.Last().Sub(last) < silent })
	}
	for end := time.Now().Add(within); ; {
		if !Eventually(t, time.Until(end), quiet) {
			t.Fatalf("traffic still flows after %s: %s", within, p)
		}
		last := p.Last()
		for _, b := range beside {
			b.AwaitFlow(t, within)
		}
		if p.Last().Equal(last) {
			return last
		}
	}
}

func (p *Prober) String() string {
	arrived, _ := p.Arrived()
	answered, _ := p.Answered()
	return fmt.Sprintf("to %s %d packets arrived, %d answers came back", p.to, arrived, answered)
}
