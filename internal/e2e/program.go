//go:build linux

package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Program is a program that runs beside the test.
type Program struct {
	name string
	cmd  *exec.Cmd
	out  output
	done chan struct{}
	err  error
}

// Start starts cmd and keeps what it prints. It is killed when the test ends,
// and its output shown if the test failed.
func Start(t testing.TB, name string, cmd *exec.Cmd) *Program {
	t.Helper()
	p := &Program{name: name, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("── %s ──\n%s", name, p.Output())
		}
	})
	return p
}

// PID is its process id.
func (p *Program) PID() int { return p.cmd.Process.Pid }

// Kill ends it at once (SIGKILL) and waits for its end.
func (p *Program) Kill() { p.Stop(syscall.SIGKILL) }

// Signal sends a signal. An error says that the program has ended.
func (p *Program) Signal(signal os.Signal) error { return p.cmd.Process.Signal(signal) }

// Stop sends a signal and waits for the program's end.
func (p *Program) Stop(signal os.Signal) {
	_ = p.cmd.Process.Signal(signal) // an error says that it has ended
	<-p.done
}

// Ended says whether it has ended by itself or by a signal.
func (p *Program) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Output is all that it printed so far.
func (p *Program) Output() string { return p.out.String() }

// Await waits until the program has printed text, and fails the test when it
// ends or the context does before.
func (p *Program) Await(t testing.TB, ctx context.Context, text string) {
	t.Helper()
	for {
		said := p.out.changed()
		if strings.Contains(p.Output(), text) {
			return
		}
		select {
		case <-said:
		case <-p.done:
			if strings.Contains(p.Output(), text) {
				return
			}
			t.Fatalf("%s ended (%v) before it said %q:\n%s", p.name, p.err, text, p.Output())
		case <-ctx.Done():
			t.Fatalf("%s did not say %q:\n%s", p.name, text, p.Output())
		}
	}
}

// output is a buffer that tells when it has grown.
type output struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	grown chan struct{}
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.grown != nil {
		close(o.grown)
		o.grown = nil
	}
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func (o *output) changed() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.grown == nil {
		o.grown = make(chan struct{})
	}
	return o.grown
}

// Eventually polls until ok or the time is over; false says it never was. It
// is for states of other processes, which tell nobody when they change.
func Eventually(t testing.TB, within time.Duration, ok func() bool) bool {
	t.Helper()
	return EventuallyEvery(t, 2*time.Millisecond, within, ok)
}

// EventuallyEvery is Eventually for questions that cost something: it asks once
// in every interval.
func EventuallyEvery(t testing.TB, interval, within time.Duration, ok func() bool) bool {
	t.Helper()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	deadline := time.After(within)
	for {
		if ok() {
			return true
		}
		select {
		case <-tick.C:
		case <-deadline:
			return ok()
		}
	}
}
