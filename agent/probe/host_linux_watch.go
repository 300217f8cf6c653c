//go:build linux

package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"pfoertner/internal/posture"
)

// NewWatcher returns a Watcher of the machine this program runs on.
func NewWatcher() *Watcher {
	return &Watcher{sources: []source{
		{name: "links and routes", watch: watchLinks, covers: []string{"vpn"}},
		{name: "block devices", watch: watchBlockDevices, covers: []string{"volumes"}},
		{name: "mounts and swap", watch: watchMounts, covers: []string{"volumes"}},
		{name: "packages", watch: packageFiles("/").watch, covers: []string{"patch", "volumes"}},
		{name: "resume", watch: watchResume, covers: posture.Sections()},
	}}
}

// watchLinks hears of links, addresses, routes and rules.
func watchLinks(ctx context.Context, changed func(...string)) error {
	const groups = unix.RTMGRP_LINK |
		unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV4_RULE |
		unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV6_ROUTE | 1<<(unix.RTNLGRP_IPV6_RULE-1)
	return hear(ctx, unix.NETLINK_ROUTE, groups, func([]byte) { changed("vpn") })
}

// watchBlockDevices hears of disks and mappings that come, go or change: a
// mapping that is reloaded with another table does not show in the mounts.
func watchBlockDevices(ctx context.Context, changed func(...string)) error {
	const kernelGroup = 1
	return hear(ctx, unix.NETLINK_KOBJECT_UEVENT, kernelGroup, func(message []byte) {
		// No message at all means that some were lost.
		if message == nil || bytes.Contains(message, []byte("\x00SUBSYSTEM=block\x00")) {
			changed("volumes")
		}
	})
}

// hear joins multicast groups of a netlink protocol and passes each datagram
// on; nil when the kernel had to drop some.
func hear(ctx context.Context, protocol int, groups uint32, message func([]byte)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	socket := os.NewFile(uintptr(fd), "netlink")
	defer socket.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return fmt.Errorf("joining netlink groups: %w", err)
	}
	defer context.AfterFunc(ctx, func() { socket.Close() })()

	buffer := make([]byte, 64<<10)
	for {
		n, err := socket.Read(buffer)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			message(nil)
		case err != nil:
			return fmt.Errorf("reading netlink: %w", err)
		default:
			message(buffer[:n])
		}
	}
}

// watchMounts waits for the mounts of pid 1 and the swap spaces to change: the
// kernel raises POLLPRI and POLLERR on these files (proc_pid_mounts(5)), once
// for each open file. They are not opened by package os, whose own poller
// would take the event away.
func watchMounts(ctx context.Context, changed func(...string)) error {
	var polled []unix.PollFd
	for _, name := range []string{sourceMounts, sourceSwaps} {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, fs.ErrNotExist) && name == sourceSwaps { // a kernel without swap
			continue
		}
		if err != nil {
			return fmt.Errorf("opening %s: %w", name, err)
		}
		defer unix.Close(fd)
		polled = append(polled, unix.PollFd{Fd: int32(fd), Events: unix.POLLPRI})
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("making an event: %w", err)
	}
	// The event must stay open until nobody can write to it any more.
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		one := [8]byte{0: 1, 7: 1} // not zero in either byte order
		unix.Write(wake, one[:])   // cannot fail: the counter is far from full
	})
	defer func() {
		if !stop() {
			<-woken
		}
		unix.Close(wake)
	}()
	polled = append(polled, unix.PollFd{Fd: int32(wake), Events: unix.POLLIN})
	for ctx.Err() == nil {
		if _, err := unix.Poll(polled, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for mounts: %w", err)
		}
		files := polled[:len(polled)-1]
		if slices.ContainsFunc(files, func(p unix.PollFd) bool { return p.Revents != 0 }) {
			changed("volumes")
		}
	}
	return ctx.Err()
}

// packageFiles watches below the root of a file tree.
type packageFiles string

// watched lists the files to look at by directory; nil means all of them.
// Directories are watched, not files: programs replace these by renaming.
var watched = []struct {
	dir     string
	names   []string
	section string
}{
	{"var/lib/dpkg", []string{"status"}, "patch"},
	{"var/lib/apt/lists", nil, "patch"},
	{"var/lib/apt", []string{"extended_states"}, "patch"},
	{"etc/apt", nil, "patch"},
	{"etc/apt/sources.list.d", nil, "patch"},
	{"etc/apt/preferences.d", nil, "patch"},
	{"run", []string{"reboot-required"}, "patch"},
	{"etc", []string{"crypttab"}, "volumes"},
}

// watch hears of changes to what the patch probe reads, and to crypttab.
func (root packageFiles) watch(ctx context.Context, changed func(...string)) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("opening inotify: %w", err)
	}
	defer watcher.Close()
	for _, w := range watched {
		err := watcher.Add(path.Join(string(root), w.dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // not every system has all of them
			return fmt.Errorf("watching files: %w", err)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err, ok := <-watcher.Errors:
			if !ok {
				return errors.New("inotify ended")
			}
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				changed("patch", "volumes")
				continue
			}
			return fmt.Errorf("inotify: %w", err)
		case event, ok := <-watcher.Events:
			if !ok {
				return errors.New("inotify ended")
			}
			if section := root.sectionOf(event); section != "" {
				changed(section)
			}
		}
	}
}

// sectionOf returns the section that an event concerns, "" for none. Reading a
// file or changing its mode and times is no change.
func (root packageFiles) sectionOf(event fsnotify.Event) string {
	if event.Op == fsnotify.Chmod {
		return ""
	}
	dir, name := path.Split(event.Name)
	for _, w := range watched {
		if path.Clean(dir) == path.Join(string(root), w.dir) && (w.names == nil || slices.Contains(w.names, name)) {
			return w.section
		}
	}
	return ""
}

// watchResume waits on a timer that the kernel cancels whenever the wall clock
// jumps (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET): that costs no wake-ups.
func watchResume(ctx context.Context, changed func(...string)) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("making a timer: %w", err)
	}
	timer := os.NewFile(uintptr(fd), "timer")
	defer timer.Close()
	control, err := timer.SyscallConn()
	if err != nil {
		return fmt.Errorf("holding a timer: %w", err)
	}
	defer context.AfterFunc(ctx, func() { timer.Close() })()
	wait := func() error {
		const never = 1 << 40 // seconds after 1970
		spec := &unix.ItimerSpec{Value: unix.Timespec{Sec: never}}
		var errSet error
		errHeld := control.Control(func(fd uintptr) {
			errSet = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, spec, nil)
		})
		if err := errors.Join(errHeld, errSet); err != nil {
			return fmt.Errorf("setting a timer: %w", err)
		}
		var expirations [8]byte
		if _, err := timer.Read(expirations[:]); err != nil && !errors.Is(err, unix.ECANCELED) {
			return fmt.Errorf("waiting for the clock: %w", err)
		}
		return nil
	}
	return watchSleep(wait, suspended, changed)
}

// suspended is how long the machine has slept since it booted: only one of the
// two clocks stands still meanwhile (clock_gettime(2)).
func suspended() (time.Duration, error) {
	var awake, all unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &awake); err != nil {
		return 0, fmt.Errorf("reading the clock: %w", err)
	}
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &all); err != nil {
		return 0, fmt.Errorf("reading the clock: %w", err)
	}
	return time.Duration(all.Nano() - awake.Nano()), nil
}
