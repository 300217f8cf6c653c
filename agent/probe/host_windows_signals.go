//go:build windows

package probe

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/windows"
)

// Windows tells of changes in two ways: it sets an event, or it calls back on a
// thread of its own. Sources wait for either without a thread that wakes up by
// itself.

// bell is rung by callbacks and heard by one goroutine. Rings while nobody
// listens are one.
type bell struct {
	number uintptr
	rung   chan struct{}
}

// bells finds the bell that a callback means. Windows is given numbers, never
// pointers: a callback that comes late, when its bell is gone, finds nothing.
// It is one for the process because callbacks are: Go cannot free them.
var bells = struct {
	sync.Mutex
	last uintptr
	all  map[uintptr]chan struct{}
}{all: map[uintptr]chan struct{}{}}

func newBell() bell {
	bells.Lock()
	defer bells.Unlock()
	bells.last++
	b := bell{bells.last, make(chan struct{}, 1)}
	bells.all[b.number] = b.rung
	return b
}

// remove makes callbacks that are still to come do nothing.
func (b bell) remove() {
	bells.Lock()
	defer bells.Unlock()
	delete(bells.all, b.number)
}

// hear tells of sections whenever the bell rings, until ctx ends.
func (b bell) hear(ctx context.Context, changed func(...string), sections ...string) error {
	for {
		select {
		case <-b.rung:
			changed(sections...)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func ring(number uintptr) uintptr {
	bells.Lock()
	defer bells.Unlock()
	select {
	case bells.all[number] <- struct{}{}: // blocks for a bell that is gone
	default:
	}
	return 0
}

// The callbacks, made once. On amd64 and arm64 a callback may leave out the
// last arguments that it is called with.
var (
	// onChange: the context comes first (NotifyIpInterfaceChange,
	// NotifyRouteChange2, WscRegisterForChanges).
	onChange = sync.OnceValue(func() uintptr { return windows.NewCallback(ring) })
	// onDevice is a PCM_NOTIFY_CALLBACK.
	onDevice = sync.OnceValue(func() uintptr {
		return windows.NewCallback(func(_, number uintptr) uintptr { return ring(number) })
	})
	// onPower is a DEVICE_NOTIFY_CALLBACK_ROUTINE.
	onPower = sync.OnceValue(func() uintptr {
		return windows.NewCallback(func(number, kind uintptr) uintptr {
			const resumeSuspend, resumeAutomatic = 0x07, 0x12
			if kind == resumeSuspend || kind == resumeAutomatic {
				ring(number)
			}
			return 0
		})
	})
)

// events are what one thread waits for: some that Windows sets, and one that
// the end of a context does.
type events struct {
	handles []windows.Handle
	stop    func() bool
	stopped chan struct{}
}

// newEvents makes n events that fall back by themselves.
func newEvents(ctx context.Context, n int) (*events, error) {
	e := &events{stopped: make(chan struct{})}
	for range n + 1 {
		h, err := windows.CreateEvent(nil, 0, 0, nil)
		if err != nil {
			e.closeHandles()
			return nil, fmt.Errorf("making an event: %w", err)
		}
		e.handles = append(e.handles, h)
	}
	e.stop = context.AfterFunc(ctx, func() {
		defer close(e.stopped)
		_ = windows.SetEvent(e.handles[n]) // cannot fail: it is open
	})
	return e, nil
}

// wait returns which event was set, or the end of ctx.
func (e *events) wait(ctx context.Context) (int, error) {
	i, err := windows.WaitForMultipleObjects(e.handles, false, windows.INFINITE)
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err != nil:
		return 0, fmt.Errorf("waiting for events: %w", err)
	case int(i) >= len(e.handles)-1:
		return 0, fmt.Errorf("waiting for events: answer %#x", i)
	}
	return int(i), nil
}

// close waits until nobody sets the last event any more.
func (e *events) close() {
	if !e.stop() {
		<-e.stopped
	}
	e.closeHandles()
}

func (e *events) closeHandles() {
	for _, h := range e.handles {
		_ = windows.CloseHandle(h)
	}
}

// registered calls what registers with another process and so may hang: ctx
// ends the waiting, and what is registered after that is taken back.
func registered(ctx context.Context, register func() (release func(), err error)) (release func(), err error) {
	type answer struct {
		release func()
		err     error
	}
	answers := make(chan answer, 1)
	go func() {
		release, err := register()
		answers <- answer{release, err}
	}()
	select {
	case a := <-answers:
		return a.release, a.err
	case <-ctx.Done():
		go func() {
			if a := <-answers; a.err == nil {
				a.release()
			}
		}()
		return nil, ctx.Err()
	}
}
