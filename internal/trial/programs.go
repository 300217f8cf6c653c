package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// patience is how long the trial waits for any one thing.
const patience = 30 * time.Second

// trial is one set-up in a directory of its own.
type trial struct {
	bin, dir string
	// asset is the number under which this machine is in the inventory.
	asset   string
	address struct{ agents, gates, operators, health string }

	collector, agent *process
	// vpn is the SHA-256 of the VPN certificate that is bound to this machine.
	vpn string
}

func (t *trial) path(parts ...string) string {
	return filepath.Join(append([]string{t.dir}, parts...)...)
}

// process is a program that runs until it is stopped. What it says is kept for
// the case that it fails.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	said *tail
	err  error // valid after done
}

func (t *trial) start(program string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(filepath.Join(t.bin, program), args...), done: make(chan struct{}), said: &tail{}}
	p.cmd.Stdout, p.cmd.Stderr = p.said, p.said
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// ended says why a program is no longer there; nil while it is.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %v\n%s", filepath.Base(p.cmd.Path), p.err, p.said)
	default:
		return nil
	}
}

func (t *trial) aliveOrWhy() error {
	return errors.Join(t.collector.ended(), t.agent.ended())
}

func (t *trial) stopAll() {
	for _, p := range []*process{t.agent, t.collector} {
		if p == nil {
			continue
		}
		p.cmd.Process.Signal(os.Interrupt)
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
			p.kill()
		}
	}
}

// tail keeps the last 8 KiB written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if over := len(t.b) - 8<<10; over > 0 {
		t.b = t.b[over:]
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

// run runs one command to its end and returns what it printed, also when it
// ended with an error.
func (t *trial) run(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(t.bin, program), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return strings.TrimSpace(out.String()), fmt.Errorf("%s %s: %w: %s", program, args[0], err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// The two operators of the trial.
const (
	anna  = "anna"
	bernd = "bernd"
)

// operator runs an operator's command, as anna.
func (t *trial) operator(ctx context.Context, args ...string) (string, error) {
	return t.as(ctx, anna, args...)
}

// both lets one operator give an order and the other the same: what weakens
// something takes two.
func (t *trial) both(ctx context.Context, args ...string) error {
	for _, name := range []string{anna, bernd} {
		if _, err := t.as(ctx, name, args...); err != nil {
			return err
		}
	}
	return nil
}

func (t *trial) as(ctx context.Context, name string, args ...string) (string, error) {
	return t.run(ctx, "pfoertner-collector", append([]string{"--collector", t.address.operators, "--operator", t.path(name)}, args...)...)
}

// await tries until it works, the patience ends, or a program ends.
func (t *trial) await(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		for _, p := range []*process{t.collector, t.agent} {
			if p != nil && p.ended() != nil {
				return p.ended()
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func (t *trial) startCollector(ctx context.Context) error {
	for _, a := range []*string{&t.address.agents, &t.address.gates, &t.address.operators, &t.address.health} {
		free, err := freeAddress()
		if err != nil {
			return err
		}
		*a = free
	}
	config := fmt.Sprintf("state: %q\nlisten: {agents: %q, gates: %q, operators: %q, health: %q}\n",
		t.path("collector"), t.address.agents, t.address.gates, t.address.operators, t.address.health)
	if err := os.WriteFile(t.path("collector.yaml"), []byte(config), 0o600); err != nil {
		return err
	}
	if _, err := t.run(ctx, "pfoertner-collector", "init", "--config", t.path("collector.yaml"), "--operator-name", anna, "--operator-out", t.path(anna)); err != nil {
		return err
	}
	for role, name := range map[string]string{"operator": bernd, "gate": "vpn1"} {
		if _, err := t.run(ctx, "pfoertner-collector", "bundle", role, name, "--config", t.path("collector.yaml"), "--out", t.path(name)); err != nil {
			return err
		}
	}
	gate := fmt.Sprintf("collectors: [%q]\npki: %q\nstate: %q\n", t.address.gates, t.path("vpn1"), t.path("vpn1"))
	if err := os.WriteFile(t.path("gate.yaml"), []byte(gate), 0o600); err != nil {
		return err
	}
	return t.serve(ctx)
}

// serve starts the collector and waits until it can decide.
func (t *trial) serve(ctx context.Context) (err error) {
	if t.collector, err = t.start("pfoertner-collector", "serve", "--config", t.path("collector.yaml")); err != nil {
		return err
	}
	return t.await(ctx, func() error {
		answer, err := http.Get("http://" + t.address.health + "/readyz")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("readiness: %s", answer.Status)
		}
		return nil
	})
}

// freeAddress is a loopback address that nobody listens on at this moment.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// device asks the collector for this machine.
func (t *trial) device(ctx context.Context) (*device, error) {
	text, err := t.operator(ctx, "devices", t.asset, "--json")
	if err != nil {
		return nil, err
	}
	d := &device{}
	if err := json.Unmarshal([]byte(text), d); err != nil {
		return nil, fmt.Errorf("reading the collector's answer: %w", err)
	}
	return d, nil
}

// awaitEvidence waits until evidence was stored and judged, and the agent is
// connected.
func (t *trial) awaitEvidence(ctx context.Context) (d *device, err error) {
	err = t.await(ctx, func() (err error) {
		if d, err = t.device(ctx); err != nil {
			return err
		}
		if d.Evidence == nil || d.Result == nil || !d.Online {
			return errors.New("no evidence yet")
		}
		return nil
	})
	return d, err
}
