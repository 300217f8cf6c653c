package probe

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// The kernel's own answers, from a network namespace of the test.
func TestTheNetworkIsReadAsTheKernelSeesIt(t *testing.T) {
	ownNetwork(t)
	sh(t, `ip link set lo up
		ip link add wan0 type veth peer name wan1
		ip addr add 192.0.2.10/24 dev wan0
		ip link set wan0 up
		ip link set wan1 up
		ip route add default via 192.0.2.1
		ip tuntap add dev vpn0 mode tun
		ip addr add 10.8.0.2/24 dev vpn0
		ip link set vpn0 up
		ip route add 0.0.0.0/1 dev vpn0
		ip route add blackhole 198.51.100.0/24
		ip route add unreachable 203.0.113.0/24
		ip rule add not fwmark 0x1 table 51820 pref 100
		ip route add 128.0.0.0/1 dev vpn0 table 51820`)
	n := kernelNetwork{}
	links, err := n.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]Link{}
	for _, l := range links {
		byName[l.Name] = l
	}
	vpn, wan := byName["vpn0"], byName["wan0"]
	if vpn.Kind != "tun" || !vpn.Up || vpn.Running || vpn.OperState != "down" ||
		!slices.Contains(vpn.Addresses, netip.MustParsePrefix("10.8.0.2/24")) {
		t.Errorf("a tun that no process holds: %+v", vpn)
	}
	if wan.Kind != "veth" || !wan.Up || !wan.Running || wan.OperState != "up" {
		t.Errorf("%+v", wan)
	}
	if lo := byName["lo"]; !lo.Loopback || lo.Kind != "" {
		t.Errorf("%+v", lo)
	}

	for address, want := range map[string]Route{
		"9.9.9.9":   {LinkIndex: vpn.Index, Table: unix.RT_TABLE_MAIN, Source: netip.MustParseAddr("10.8.0.2")},
		"193.0.0.1": {LinkIndex: vpn.Index, Table: 51820, Source: netip.MustParseAddr("10.8.0.2")},
	} {
		if got, err := n.Route(t.Context(), netip.MustParseAddr(address)); err != nil || got != want {
			t.Errorf("to %s: %+v, %v, expected %+v", address, got, err, want)
		}
	}
	sh(t, "ip rule del pref 100")
	for address, want := range map[string]Route{
		"193.0.0.1": {LinkIndex: wan.Index, Table: unix.RT_TABLE_MAIN, Gateway: netip.MustParseAddr("192.0.2.1"), Source: netip.MustParseAddr("192.0.2.10")},
		"192.0.2.9": {LinkIndex: wan.Index, Table: unix.RT_TABLE_MAIN, Source: netip.MustParseAddr("192.0.2.10")},
	} {
		if got, err := n.Route(t.Context(), netip.MustParseAddr(address)); err != nil || got != want {
			t.Errorf("to %s: %+v, %v, expected %+v", address, got, err, want)
		}
	}
	for _, nowhere := range []string{"198.51.100.1", "203.0.113.1", "2001:db8::1"} {
		if got, err := n.Route(t.Context(), netip.MustParseAddr(nowhere)); !errors.Is(err, ErrNoRoute) {
			t.Errorf("to %s: %+v, %v", nowhere, got, err)
		}
	}
}

func TestIPsecPoliciesAreThoseThatBindAllTraffic(t *testing.T) {
	ownNetwork(t)
	n := kernelNetwork{}
	if policies, err := n.IPsecPolicies(t.Context()); err != nil || len(policies) != 0 {
		t.Fatalf("%+v, %v", policies, err)
	}
	if out, err := exec.Command("ip", "xfrm", "policy", "list").CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: this kernel has no IPsec policies: %s", out)
	}
	sh(t, `ip xfrm policy add src 10.0.0.2/32 dst 0.0.0.0/0 dir out tmpl src 10.0.0.2 dst 192.0.2.1 proto esp mode tunnel
		ip xfrm policy add src 10.0.0.2/32 dst 10.0.0.0/8 dir out action allow
		ip xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out if_id 7 tmpl src 10.0.0.2 dst 192.0.2.1 proto esp mode tunnel`)
	policies, err := n.IPsecPolicies(t.Context())
	source := netip.MustParsePrefix("10.0.0.2/32")
	want := []IPsecPolicy{
		{Direction: "out", Destination: netip.MustParsePrefix("0.0.0.0/0"), Source: source, Tunnel: true},
		{Direction: "out", Destination: netip.MustParsePrefix("10.0.0.0/8"), Source: source},
	}
	slices.SortFunc(policies, func(a, b IPsecPolicy) int { return a.Destination.Bits() - b.Destination.Bits() })
	if err != nil || !slices.Equal(policies, want) {
		t.Errorf("%+v, %v", policies, err)
	}
}

func TestInputChainsOfNftables(t *testing.T) {
	ownNetwork(t)
	sh(t, `nft add table inet a
		nft 'add chain inet a in { type filter hook input priority 0; policy drop; }'
		nft add rule inet a in ct state established accept
		nft 'add chain inet a out { type filter hook output priority 0; policy drop; }'
		nft add chain inet a helper
		nft add table ip b
		nft 'add chain ip b in { type filter hook input priority 1; policy accept; }'
		nft add rule ip b in tcp dport 22 accept
		nft add rule ip b in counter log reject
		nft add table ip6 c
		nft 'add chain ip6 c in { type filter hook input priority 1; policy accept; }'
		nft add rule ip6 c in tcp dport 22 drop
		nft add table bridge d
		nft 'add chain bridge d in { type filter hook input priority 0; policy drop; }'`)
	chains, err := kernelFirewall{}.InputChains(t.Context())
	slices.SortFunc(chains, func(a, b FilterChain) int { return strings.Compare(a.Table, b.Table) })
	want := []FilterChain{
		{Family: "inet", Table: "a", Name: "in", Drop: true, Rules: 1},
		{Family: "ip", Table: "b", Name: "in", Rules: 2, Rejects: true},
		{Family: "ip6", Table: "c", Name: "in", Rules: 1},
	}
	if err != nil || !slices.Equal(chains, want) {
		t.Errorf("%+v, %v", chains, err)
	}
}

func TestRunningProgramsByTheirNames(t *testing.T) {
	proc := fstest.MapFS{
		"1/comm":       {Data: []byte("systemd\n")},
		"77/comm":      {Data: []byte("openvpn\n")},
		"78/comm":      {Data: []byte("a-name-of-more-\n")},
		"self/comm":    {Data: []byte("charon\n")},
		"99/status":    {},
		"version":      {},
		"sys/x/77comm": {},
	}
	got, err := processes{proc}.Running(t.Context(), "openvpn", "charon", "a-name-of-more-than-15", "vpn")
	if want := []string{"openvpn", "a-name-of-more-than-15"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	self, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimSpace(string(self))
	if got, err := NewHost().Processes.Running(t.Context(), name, "no-such-program"); err != nil || !slices.Equal(got, []string{name}) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestZFSIsBelievedOnlyOnTheDatasetAsked(t *testing.T) {
	for answer, want := range map[string]string{
		"rpool/root\taes-256-gcm\n": "aes-256-gcm",
		"rpool/root\toff\n":         "off",
		"rpool/root\t-\n":           "-",
	} {
		if got, err := zfsValue(answer, "rpool/root"); err != nil || got != want {
			t.Errorf("%q: %q, %v", answer, got, err)
		}
	}
	for _, answer := range []string{"", "\n", "rpool/root", "rpool/other\taes-256-gcm\n", "rpool/root\toff\nrpool/root\taes-256-gcm\n"} {
		if got, err := zfsValue(answer, "rpool/root"); err == nil {
			t.Errorf("%q taken as %q", answer, got)
		}
	}
	for _, dataset := range []string{"", "-a"} {
		if _, err := (commands{}).ZFSEncryption(t.Context(), dataset); err == nil {
			t.Errorf("dataset %q was asked for", dataset)
		}
	}
}

func TestCommandsAreBounded(t *testing.T) {
	if out, err := run(t.Context(), "/bin/sh", "-c", `echo "$HOME$PATH$LC_ALL"`); err != nil || strings.Contains(out, "/root") || !strings.Contains(out, "C") {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := run(t.Context(), "/bin/cat", "/dev/zero"); err == nil {
		t.Errorf("%d bytes were taken", len(out))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := run(ctx, "/bin/sleep", "60"); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancelling: %v", err)
	}
}

// The whole way on the machine that runs the test, judged by another program.
func TestThisMachinesRootIsFound(t *testing.T) {
	fstype, err := exec.Command("findmnt", "--noheadings", "--task", "1", "--output", "FSTYPE", "--mountpoint", "/").Output()
	if err != nil {
		t.Skipf("NOT TESTED: findmnt does not tell the root: %v", err)
	}
	v := NewCollector(NewHost(), []Probe{volumesProbe()}).Collect(t.Context()).GetVolumes()
	if v.GetReading().GetState() != observed {
		t.Errorf("reading %v", v.GetReading())
	}
	lines := strings.Fields(string(fstype))
	if root := v.GetVolumes()[0]; root.GetMountClass() != posturev1.MountClass_MOUNT_CLASS_ROOT || root.GetFilesystem() != lines[len(lines)-1] {
		t.Errorf("root is %s, findmnt says %s", line(root), fstype)
	}
}

func TestThisSystemIsKnown(t *testing.T) {
	info, err := NewHost().System.Info(t.Context())
	if err != nil || info.OS != "linux" || info.KernelVersion == "" || info.KernelArch == "" || info.BootTime.IsZero() {
		t.Errorf("%+v, %v", info, err)
	}
}

// ownNetwork moves the test into a network namespace of its own. Its thread
// ends with it, and the namespace with the thread.
func ownNetwork(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: network namespaces need root")
	}
	for _, program := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("NOT TESTED: %v", err)
		}
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

func sh(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("/bin/sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// socketPath is a path short enough for a Unix socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "bus")
}
