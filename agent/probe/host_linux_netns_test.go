//go:build linux

package probe

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// inOwnNetwork runs f on a thread with a network namespace of its own, in
// which eth0 leads everywhere. The thread ends with f, the namespace with it.
func inOwnNetwork(t *testing.T, f func(ip func(arguments string))) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: routing cases on a real kernel need root for a network namespace")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("SKIPPED: routing cases on a real kernel need iproute2")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread must not be used again
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("making a network namespace: %v", err)
			return
		}
		ip := func(arguments string) {
			// A new process starts in the namespace of this thread.
			if out, err := exec.Command("ip", strings.Fields(arguments)...).CombinedOutput(); err != nil {
				t.Errorf("ip %s: %v %s", arguments, err, out)
			}
		}
		ip("link set lo up")
		ip("link add eth0 type veth peer name world0")
		ip("link set world0 up")
		ip("address add 192.0.2.20/24 dev eth0")
		ip("-6 address add 2001:db8::20/64 dev eth0 nodad")
		ip("link set eth0 up")
		ip("route add default via 192.0.2.1")
		ip("-6 route add default via 2001:db8::1")
		f(ip)
	}()
	<-done
}

// holdTun makes a tun device that lives as long as the test holds it, as a VPN
// client does.
func holdTun(t *testing.T, name string) {
	t.Helper()
	tun := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TUN, NonPersist: true,
		Flags: netlink.TUNTAP_DEFAULTS, Queues: 1,
	}
	if err := netlink.LinkAdd(tun); err != nil {
		t.Errorf("making a tun device: %v", err)
		return
	}
	t.Cleanup(func() {
		for _, f := range tun.Fds {
			f.Close()
		}
	})
}

// readRealVPN runs the probe on this thread, in its namespace.
func readRealVPN(t *testing.T, files fstest.MapFS, running ...string) *posturev1.Vpn {
	t.Helper()
	ev := &posturev1.Evidence{}
	h := Host{Files: files, Network: kernelNetwork{}, Processes: fakeProcesses(running), Bus: fakeBus{}, Now: time.Now}
	if err := vpnProbe(nil).Collect(t.Context(), h, ev); err != nil {
		t.Error(err)
	}
	wantState(t, ev.Vpn.RoutingReading, observed)
	return ev.Vpn
}

func wantFacts(t *testing.T, v *posturev1.Vpn, product, want string) {
	t.Helper()
	for _, c := range v.Clients {
		if c.Product == product {
			if got := facts(c); got != want {
				t.Errorf("%s is %s, want %s", product, got, want)
			}
			return
		}
	}
	t.Errorf("no client %s in %v", product, v.Clients)
}

func TestRealKernelNoTunnel(t *testing.T) {
	inOwnNetwork(t, func(func(string)) {
		wantFacts(t, readRealVPN(t, openvpnFiles), "openvpn", "yes/no/no/no NONE NONE")
	})
}

func TestRealKernelOpenVPNDef1LeaksIPv6(t *testing.T) {
	inOwnNetwork(t, func(ip func(string)) {
		holdTun(t, "tun0")
		ip("address add 10.8.0.6/24 dev tun0")
		ip("link set tun0 up")
		ip("route add 0.0.0.0/1 dev tun0")
		ip("route add 128.0.0.0/1 dev tun0")
		wantFacts(t, readRealVPN(t, openvpnFiles, "openvpn"), "openvpn", "yes/yes/yes/? FULL NONE")

		ip("-6 address add fd00:8::6/64 dev tun0 nodad")
		ip("-6 route add 2000::/3 dev tun0")
		wantFacts(t, readRealVPN(t, openvpnFiles, "openvpn"), "openvpn", "yes/yes/yes/? FULL FULL")
	})
}

func TestRealKernelSplitTunnel(t *testing.T) {
	inOwnNetwork(t, func(ip func(string)) {
		holdTun(t, "tun0")
		ip("address add 10.8.0.6/24 dev tun0")
		ip("link set tun0 up")
		ip("route add 10.0.0.0/8 dev tun0")
		wantFacts(t, readRealVPN(t, openvpnFiles, "openvpn"), "openvpn", "yes/yes/yes/? SPLIT NONE")
	})
}

func TestRealKernelRulesOfWGQuick(t *testing.T) {
	// Without WireGuard in the kernel a tun stands for its link: what is tested
	// are the rules, by which the main table shows eth0 alone.
	inOwnNetwork(t, func(ip func(string)) {
		holdTun(t, "tun0")
		ip("address add 10.8.0.6/32 dev tun0")
		ip("link set tun0 up")
		ip("route add default dev tun0 table 51820")
		ip("rule add not fwmark 51820 table 51820")
		ip("rule add table main suppress_prefixlength 0")
		wantFacts(t, readRealVPN(t, openvpnFiles, "openvpn"), "openvpn", "yes/yes/yes/? FULL NONE")
	})
}

func TestRealKernelTunWithoutAProcessStillAttractsRoutes(t *testing.T) {
	inOwnNetwork(t, func(ip func(string)) {
		ip("tuntap add dev tun0 mode tun") // persistent, held by nobody
		ip("address add 10.8.0.6/24 dev tun0")
		ip("link set tun0 up")
		ip("route add 0.0.0.0/1 dev tun0")
		ip("route add 128.0.0.0/1 dev tun0")
		v := readRealVPN(t, openvpnFiles)
		wantFacts(t, v, "openvpn", "yes/no/no/no FULL NONE")
		if len(v.Contradictions) != 1 || len(clientOf(t, v, "openvpn").Contradictions) != 1 {
			t.Errorf("contradictions: %v, %v", v.Contradictions, clientOf(t, v, "openvpn").Contradictions)
		}
	})
}

func TestRealKernelStrongSwanNeedsItsPolicy(t *testing.T) {
	files := fstest.MapFS{"usr/lib/ipsec/charon": {}}
	inOwnNetwork(t, func(ip func(string)) {
		ip("address add 10.10.0.5/32 dev eth0")
		ip("route add default via 192.0.2.1 dev eth0 src 10.10.0.5 table 220")
		ip("rule add table 220 priority 220")
		wantFacts(t, readRealVPN(t, files, "charon"), "strongswan", "yes/yes/no/no NONE NONE")

		ip("xfrm policy add src 10.10.0.5/32 dst 0.0.0.0/0 dir out tmpl src 192.0.2.20 dst 198.51.100.1 proto esp reqid 1 mode tunnel")
		wantFacts(t, readRealVPN(t, files, "charon"), "strongswan", "yes/yes/yes/? FULL NONE")
	})
}
