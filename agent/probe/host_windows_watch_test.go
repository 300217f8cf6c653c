//go:build windows

package probe

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"pfoertner/internal/posture"
)

// windowsPatience is far above what Windows takes, and above what Wine takes on
// a busy machine.
const windowsPatience = 20 * time.Second

func TestWindowsRegistryChangesAreHeard(t *testing.T) {
	k, name := scratchKey(t)
	told := hearWindows(t, registryKeys{{section: "patch", key: name}}.watch)
	for _, number := range []uint32{1, 2, 3} {
		if err := k.SetDWordValue("UBR", number); err != nil {
			t.Fatal(err)
		}
		told.expect(t, "patch")
	}
	makeKey(t, name+`\RebootPending`)
	told.expect(t, "patch")
}

func TestWindowsRegistryKeysAreHeardOfWhenTheyComeAndGo(t *testing.T) {
	_, name := scratchKey(t)
	below := name + `\A\B`
	told := hearWindows(t, registryKeys{
		{section: "firewall", key: below, tree: true},
		{section: "patch", key: `SOFTWARE\Pfoertner test that nobody makes\X`},
	}.watch)
	makeKey(t, name+`\A`)
	told.expect(t, "firewall")
	b := makeKey(t, below)
	told.expect(t, "firewall")
	if err := b.SetDWordValue("x", 1); err != nil {
		t.Fatal(err)
	}
	told.expect(t, "firewall")
	deep := makeKey(t, below+`\Deep`)
	told.expect(t, "firewall")
	if err := deep.SetDWordValue("x", 1); err != nil {
		t.Fatal(err)
	}
	told.expect(t, "firewall")
}

func makeKey(t *testing.T, name string) registry.Key {
	t.Helper()
	k, _, err := registry.CreateKey(registry.LOCAL_MACHINE, name, registry.ALL_ACCESS|registry.WOW64_64KEY)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Close()
		if err := registry.DeleteKey(registry.LOCAL_MACHINE, name); err != nil && !errors.Is(err, registry.ErrNotExist) {
			t.Error(err)
		}
	})
	return k
}

func TestWindowsKeysAboveAKey(t *testing.T) {
	for key, want := range map[string]string{`SOFTWARE\A\B`: `SOFTWARE\A`, `SOFTWARE`: ``, ``: ``} {
		if got := above(key); got != want {
			t.Errorf("above %q: %q", key, got)
		}
	}
}

// Windows calls back on threads that it made; here its thread pool does.
func TestWindowsCallbacksRingTheirBellAndNoOther(t *testing.T) {
	b, other := newBell(), newBell()
	defer other.remove()
	callBack := func(callback, context uintptr) {
		t.Helper()
		const inThreadPool = 0
		ok, _, err := windows.NewLazySystemDLL("kernel32.dll").NewProc("QueueUserWorkItem").Call(callback, context, inThreadPool)
		if ok == 0 {
			t.Fatal(err)
		}
	}
	callBack(onChange(), b.number)
	select {
	case <-b.rung:
	case <-time.After(windowsPatience):
		t.Fatal("the bell is silent")
	}
	// All of these ring other's, or none that is there.
	b.remove()
	callBack(onChange(), b.number)
	callBack(onChange(), 1<<40)
	for range 3 {
		callBack(onChange(), other.number)
	}
	select {
	case <-other.rung:
	case <-time.After(windowsPatience):
		t.Fatal("the bell is silent")
	}
	select {
	case <-b.rung:
		t.Error("a removed bell rings")
	default:
	}
}

func TestWindowsPowerCallbackRingsOnResumeAlone(t *testing.T) {
	b := newBell()
	defer b.remove()
	for kind, want := range map[uintptr]bool{0x04: false, 0x0A: false, 0x07: true, 0x12: true} {
		syscall.SyscallN(onPower(), b.number, kind, 0)
		select {
		case <-b.rung:
			if !want {
				t.Errorf("%#x rings", kind)
			}
		default:
			if want {
				t.Errorf("%#x is silent", kind)
			}
		}
	}
	syscall.SyscallN(onDevice(), 0, b.number, 0, 0, 0)
	select {
	case <-b.rung:
	default:
		t.Error("a volume that comes is silent")
	}
}

// A registration that hangs does not keep the service from stopping, and is
// taken back when it comes at last.
func TestWindowsRegistrationThatHangsEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	hang, released := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := registered(ctx, func() (func(), error) {
			<-hang
			return func() { close(released) }, nil
		})
		ended <- err
	}()
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended by %v", err)
		}
	case <-time.After(windowsPatience):
		t.Fatal("still waiting")
	}
	close(hang)
	select {
	case <-released:
	case <-time.After(windowsPatience):
		t.Fatal("what was registered stays")
	}
}

func TestWindowsEverySourceStartsAndEnds(t *testing.T) {
	for _, s := range NewWatcher().sources {
		t.Run(s.name, func(t *testing.T) {
			if len(s.covers) == 0 {
				t.Error("it covers nothing")
			}
			for _, section := range s.covers {
				if !slices.Contains(posture.Sections(), section) {
					t.Errorf("it covers %q", section)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- s.watch(ctx, func(...string) {}) }()
			select {
			case err := <-ended:
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("ended by %v", err)
				}
			case <-time.After(windowsPatience):
				t.Fatal("the source outlives its context")
			}
		})
	}
}

func TestWindowsWatchingLeavesNothingBehind(t *testing.T) {
	watch := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := NewWatcher().Watch(ctx, func(...string) {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ended by %v", err)
		}
	}
	leavesNoHandles(t, watch)
	bells.Lock()
	defer bells.Unlock()
	if len(bells.all) != 0 {
		t.Errorf("%d bells stay", len(bells.all))
	}
}

// leavesNoHandles does something so often that a handle lost each time shows
// beside those of the threads that the Go runtime happens to make.
func leavesNoHandles(t *testing.T, do func()) {
	t.Helper()
	for range 4 { // libraries and threads that stay come first
		do()
	}
	before := openHandles(t)
	const times = 20
	for range times {
		do()
	}
	after := openHandles(t)
	t.Logf("%d handles, before %d", after, before)
	if after >= before+times*3/4 {
		t.Errorf("%d handles, before %d", after, before)
	}
}

// openHandles counts the process's handles. Wine does not count; there a new
// handle is the lowest number that is free, so that numbers rise with leaks.
func openHandles(t *testing.T) int {
	t.Helper()
	runtime.GC()
	var n uint32
	ok, _, err := windows.NewLazySystemDLL("kernel32.dll").NewProc("GetProcessHandleCount").
		Call(uintptr(windows.CurrentProcess()), uintptr(unsafe.Pointer(&n)))
	if ok == 0 {
		t.Fatal(err)
	}
	if n > 0 || !underWine() {
		return int(n)
	}
	var last windows.Handle
	for range 64 { // past the gaps that others left
		h, err := windows.CreateEvent(nil, 0, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer windows.CloseHandle(h)
		last = max(last, h)
	}
	return int(last) / 4
}

func TestWindowsLayoutOfTheDeviceFilter(t *testing.T) {
	if size := unsafe.Sizeof(cmNotifyFilter{}); size != 416 {
		t.Errorf("CM_NOTIFY_FILTER: %d", size)
	}
}

// windowsEar hears what a source tells.
type windowsEar chan string

// hearWindows runs a source until the test ends. Sources give no sign when they
// are sure to hear: it waits a moment.
func hearWindows(t *testing.T, watch func(context.Context, func(...string)) error) windowsEar {
	t.Helper()
	told := make(windowsEar, 1024)
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
		case <-time.After(windowsPatience):
			t.Error("the source outlives its context")
		}
	})
	select {
	case err := <-ended:
		ended <- err
		t.Fatalf("the source ended: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	return told
}

func (e windowsEar) expect(t *testing.T, section string) {
	t.Helper()
	select {
	case told := <-e:
		if told != section {
			t.Fatalf("told of %s", told)
		}
	case <-time.After(windowsPatience):
		t.Fatalf("not told of %s", section)
	}
}
