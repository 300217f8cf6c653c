package uplink

import (
	"runtime"
	"syscall"
	"testing"
	"unsafe"
)

// descriptor is a socket as net.Dialer hands it out.
type descriptor int

func (d descriptor) Control(f func(uintptr)) error            { f(uintptr(d)); return nil }
func (d descriptor) Read(func(fd uintptr) (done bool)) error  { return nil }
func (d descriptor) Write(func(fd uintptr) (done bool)) error { return nil }

// withoutRawSockets runs f without CAP_NET_RAW, which the service does not have.
func withoutRawSockets(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		header := struct {
			version uint32
			pid     int32
		}{version: 0x20080522} // _LINUX_CAPABILITY_VERSION_3
		var none [2]struct{ effective, permitted, inheritable uint32 }
		if _, _, err := syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none)), 0); err != 0 {
			t.Errorf("capset: %v", err)
			return
		}
		f()
	}()
	<-done
}

// Kernels before 5.7 (Red Hat's of version 8) let only those with CAP_NET_RAW
// choose the interface, as newer ones do when one is chosen already. The address
// is the tunnel's all the same, and the route decides.
func TestWhoMayNotChooseTheInterfaceConnectsAllTheSame(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.BindToDevice(fd, "lo"); err != nil {
		t.Fatal(err)
	}
	withoutRawSockets(t, func() {
		if err := syscall.BindToDevice(fd, "lo"); err != syscall.EPERM {
			t.Errorf("the kernel says %v", err)
		}
		if err := keepTo("lo")("tcp", "", descriptor(fd)); err != nil {
			t.Errorf("not connected: %v", err)
		}
	})
	if err := keepTo("no such link")("tcp", "", descriptor(fd)); err == nil {
		t.Error("an interface that is not there")
	}
}
