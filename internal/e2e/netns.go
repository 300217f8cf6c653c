//go:build linux

// Package e2e is the bench on which Pförtner is tried as a whole: network
// namespaces, a real OpenVPN in them, and traffic whose last packet is timed.
//
// Rules. It runs programs and moves packets; it imports neither agent nor
// collector. Everything it makes carries a name of its own and is gone when
// the test ends. What it says was seen is what packets did, never what a log
// claims.
package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Require skips the test, loudly, unless it runs as root and finds the named
// programs.
func Require(t testing.TB, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: this test makes network namespaces and needs root")
	}
	for _, p := range append(programs, "ip") {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("SKIPPED: this test needs the program %q: %v", p, err)
		}
	}
}

// Namespace is one network namespace: a machine of the test network.
type Namespace struct {
	Name string
}

// NewNamespace makes a namespace with loopback up. It is removed, with all its
// links, when the test ends.
func NewNamespace(t testing.TB, role string) *Namespace {
	t.Helper()
	n := &Namespace{Name: fmt.Sprintf("pfg-%d-%s-%s", os.Getpid(), role, strings.ToLower(rand.Text()[:6]))}
	run(t, "ip", "netns", "add", n.Name)
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", n.Name).CombinedOutput(); err != nil {
			t.Errorf("removing namespace: %v: %s", err, out)
		}
	})
	n.IP(t, "link", "set", "lo", "up")
	return n
}

// IP runs `ip -n NAMESPACE args`.
func (n *Namespace) IP(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, "ip", append([]string{"-n", n.Name}, args...)...)
}

// Run runs a program inside the namespace to its end and returns its output.
func (n *Namespace) Run(t testing.TB, program string, args ...string) string {
	t.Helper()
	return run(t, "ip", append([]string{"netns", "exec", n.Name, program}, args...)...)
}

// Command is a program that will run inside the namespace; its process is the
// program itself, so its process id is the program's.
func (n *Namespace) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.Name, program}, args...)...)
}

// Forward makes the namespace a router for IPv4 and IPv6.
func (n *Namespace) Forward(t testing.TB) {
	t.Helper()
	n.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
}

// Do calls fn on a thread that is inside the namespace. Sockets opened there
// stay in the namespace after Do has returned.
func (n *Namespace) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread is not unlocked: it ends with this goroutine, so that no
		// other goroutine ever runs in the namespace by accident.
		runtime.LockOSThread()
		done <- n.enter(fn)
	}()
	return <-done
}

func (n *Namespace) enter(fn func() error) error {
	f, err := os.Open("/run/netns/" + n.Name)
	if err != nil {
		return fmt.Errorf("opening namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering namespace: %w", err)
	}
	return fn()
}

// End is one end of a cable.
type End struct {
	In        *Namespace
	Device    string
	Addresses []string // with prefix length: "192.0.2.1/24", "2001:db8::1/64"
}

// Cable joins two namespaces with a virtual Ethernet cable.
func Cable(t testing.TB, a, b End) {
	t.Helper()
	run(t, "ip", "link", "add", a.Device, "netns", a.In.Name, "type", "veth",
		"peer", "name", b.Device, "netns", b.In.Name)
	for _, end := range []End{a, b} {
		for _, address := range end.Addresses {
			args := []string{"address", "add", address, "dev", end.Device}
			if strings.Contains(address, ":") {
				args = append(args, "nodad")
			}
			end.In.IP(t, args...)
		}
		end.In.IP(t, "link", "set", end.Device, "up")
	}
}

func run(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}
