//go:build linux

package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"pfoertner/internal/e2e"
)

// The attacker's own VPN: his server's address outside and inside.
const (
	trapOutside = "198.51.100.1"
	trapInside  = "10.77.0.1"
)

// A private PC with a copied VPN profile has the real notebook, which is online
// and in good order, give the proof for it. The notebook takes part in a second
// VPN, by the attacker, and believes that the collector is at its other end: it
// connects through it and signs what the collector asks. All that it sends goes
// through the copied session, so that it arrives from that session's address.
func TestRelayedTunnelProofIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{})
	s.provesTunnels(t, "5m")
	s.runAgent(t, collectorOutside, "--tunnel", trapInside+":7601", "--server-name", collectorInside)
	s.awaitVerdict(t, admit)

	pc := s.privatePC(t)
	administration := e2e.StartProberEvery(t, pace, pc, s.office)
	quarantined := e2e.StartProberEvery(t, pace, pc, s.collectorEcho)
	s.vpn.StartClient(t, pc, s.device)
	flows(t, quarantined)

	s.joinTrap(t, pc)
	relay(t, pc, trapInside+":7601", tunnelAddress(t, pc), collectorInside+":7601")

	refusal := regexp.MustCompile(`tunnel\.refused.*reason=address`)
	if !e2e.EventuallyEvery(t, patience, soon, func() bool { return refusal.MatchString(s.operator(t, "events")) }) {
		t.Errorf("no refused proof:\n%s\n%s", s.operator(t, "events"), s.agent.Output())
	}
	never(t, administration)
	if listed := s.operator(t, "sessions", "--json"); strings.Contains(listed, "TUNNEL_PROOF_STATE_PROVEN") || strings.Contains(listed, admit.String()) {
		t.Errorf("the copied session is proven:\n%s", listed)
	}
}

// joinTrap makes the notebook a client of a VPN whose server is the attacker's
// machine.
func (s *site) joinTrap(t *testing.T, attacker *e2e.Namespace) {
	t.Helper()
	e2e.Cable(t, e2e.End{In: attacker, Device: "trap0", Addresses: []string{trapOutside + "/24"}},
		e2e.End{In: s.notebook, Device: "trap0", Addresses: []string{"198.51.100.2/24"}})
	vpn := e2e.NewVPN(t, netip.MustParseAddr(trapOutside))
	lines := []string{
		"dev trap1", "dev-type tun", "topology subnet", "proto udp4", fmt.Sprintf("port %d", vpn.Port), "server 10.77.0.0 255.255.255.0",
		"ca " + vpn.Dir + "/ca.crt", "cert " + vpn.Dir + "/server.crt", "key " + vpn.Dir + "/server.key", "dh none",
	}
	if err := os.WriteFile(vpn.ServerConfig(), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	vpn.StartServer(t, attacker)
	victim := vpn.Authority.Issue(t, e2e.Subject{CommonName: "victim", Client: true})
	says(t, vpn.StartClient(t, s.notebook, victim), "Initialization Sequence Completed")
}

// tunnelAddress is the address that a VPN session has given a machine.
func tunnelAddress(t *testing.T, in *e2e.Namespace) (address netip.Addr) {
	t.Helper()
	err := in.Do(func() error {
		link, err := net.InterfaceByName("tun0")
		if err != nil {
			return err
		}
		all, err := link.Addrs()
		for _, a := range all {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
				address = p.Addr()
			}
		}
		return err
	})
	if err != nil || !address.IsValid() {
		t.Fatalf("the session has no address: %v", err)
	}
	return address
}

// relay hands on, byte by byte, what arrives at an address, and the answers. It
// ends with the test.
func relay(t *testing.T, in *e2e.Namespace, at string, from netip.Addr, to string) {
	t.Helper()
	var l net.Listener
	err := in.Do(func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		l.Close()
		running.Wait()
	})
	dialer := net.Dialer{Timeout: soon, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	running.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer near.Close()
				var far net.Conn
				if in.Do(func() (err error) { far, err = dialer.DialContext(ctx, "tcp", to); return err }) != nil {
					return
				}
				defer far.Close()
				defer context.AfterFunc(ctx, func() { near.Close(); far.Close() })()
				done := make(chan struct{})
				go func() { // ends when either is closed
					defer close(done)
					_, _ = io.Copy(far, near)
					far.Close()
				}()
				_, _ = io.Copy(near, far)
				near.Close()
				<-done
			})
		}
	})
}
