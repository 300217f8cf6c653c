//go:build linux

package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pfoertner/internal/posture"
)

// patience is far above the few milliseconds that the kernel takes.
const patience = 10 * time.Second

func TestLinkAndRouteChangesAreHeard(t *testing.T) {
	ownNetwork(t)
	namespace, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		t.Fatal(err)
	}
	defer namespace.Close()
	told := listen(t, func(ctx context.Context, changed func(...string)) error {
		runtime.LockOSThread() // never unlocked: the thread must not go on in this namespace
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return watchLinks(ctx, changed)
	})
	sh(t, "ip link add probe0 type veth peer name probe1")
	told.expect(t, "vpn")
	sh(t, "ip addr add 192.0.2.1/24 dev probe0; ip link set probe0 up")
	told.expect(t, "vpn")
	sh(t, "ip route add 198.51.100.0/24 dev probe0")
	told.expect(t, "vpn")
	sh(t, "ip -6 rule add pref 77 table 77")
	told.expect(t, "vpn")
	sh(t, "ip link del probe0")
	told.expect(t, "vpn")
}

func TestMountsAreHeard(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: mounting needs root")
	}
	point := t.TempDir()
	mounts := listen(t, watchMounts)
	if err := unix.Mount("probe", point, "tmpfs", 0, "size=4k"); err != nil {
		t.Skipf("NOT TESTED: mounting: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(point, unix.MNT_DETACH) })
	mounts.expect(t, "volumes")
	if err := unix.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	mounts.expect(t, "volumes")
}

func TestBlockDevicesAreHeard(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: loop devices need root")
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	disks := listen(t, watchBlockDevices)
	loop, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Skipf("NOT TESTED: loop devices: %v", err)
	}
	disks.expect(t, "volumes")
	sh(t, "losetup --detach "+string(loop))
	disks.expect(t, "volumes")
}

func TestPackageChangesAreHeard(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"var/lib/dpkg", "var/lib/apt/lists/partial", "etc/apt/sources.list.d", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("var/lib/dpkg/status")
	told := listen(t, packageFiles(root).watch)

	write("var/lib/dpkg/status-new")
	write("var/lib/dpkg/lock")
	write("run/something.pid")
	write("etc/passwd")
	told.expectNothing(t)

	if err := os.Rename(filepath.Join(root, "var/lib/dpkg/status-new"), filepath.Join(root, "var/lib/dpkg/status")); err != nil {
		t.Fatal(err)
	}
	told.expect(t, "patch")
	for _, name := range []string{"var/lib/apt/lists/deb_InRelease", "etc/apt/sources.list.d/x.sources", "run/reboot-required"} {
		write(name)
		told.expect(t, "patch")
	}
	write("etc/crypttab")
	told.expect(t, "volumes")
}

func TestWaitingForSleepEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- watchResume(ctx, func(...string) { t.Error("this machine has not slept") }) }()
	select {
	case err := <-ended:
		t.Fatalf("ended by itself: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("still waiting")
	}
	if slept, err := suspended(); err != nil || slept < 0 {
		t.Errorf("suspended for %v, %v", slept, err)
	}
}

func TestTheWatcherOfThisMachineStartsAndEnds(t *testing.T) {
	w := NewWatcher()
	for _, s := range w.sources {
		for _, section := range s.covers {
			if !slices.Contains(posture.Sections(), section) {
				t.Errorf("%s covers %q", s.name, section)
			}
		}
	}
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := w.Watch(ctx, func(...string) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended by %v", err)
	}
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines, before %d", after, before)
	}
}

// ear hears what a source tells.
type ear chan string

// listen runs a source until the test ends. It returns once the source is
// sure to hear: sources give no sign, so it waits until they sleep in the
// kernel.
func listen(t *testing.T, watch func(context.Context, func(...string)) error) ear {
	t.Helper()
	told := make(ear, 1024)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- watch(ctx, func(sections ...string) {
			for _, s := range sections {
				told <- s
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("the source outlives its context")
		}
	})
	select {
	case err := <-ended:
		ended <- err
		t.Fatalf("the source ended: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	return told
}

func (e ear) expect(t *testing.T, section string) {
	t.Helper()
	began := time.Now()
	select {
	case got := <-e:
		if got != section {
			t.Errorf("heard %q, expected %q", got, section)
		}
		t.Logf("heard after %v", time.Since(began))
	case <-time.After(patience):
		t.Fatalf("nothing heard of %s", section)
	}
	e.drain()
}

// drain takes what else belongs to the same change.
func (e ear) drain() {
	for {
		select {
		case <-e:
		case <-time.After(50 * time.Millisecond):
			return
		}
	}
}

func (e ear) expectNothing(t *testing.T) {
	t.Helper()
	select {
	case got := <-e:
		t.Errorf("heard of %s", got)
	case <-time.After(100 * time.Millisecond):
	}
}
