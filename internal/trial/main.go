// Command trial is behind `make run` and `make smoke`: it sets up a collector,
// enrols the agent of this machine, lets it report the machine's real posture,
// and asks for admission as a gateway would. It uses the released programs as
// people do, by their command lines, and needs neither root nor configuration.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	bin := flag.String("bin", "bin", "directory with the three programs")
	once := flag.Bool("once", false, "check everything once and end")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, *bin, *once)
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled) && !*once:
		fmt.Println("\nstopped")
	default:
		fmt.Fprintln(os.Stderr, "trial:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string, once bool) (err error) {
	dir, err := os.MkdirTemp("", "pfoertner-trial-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	t := &trial{bin: bin, dir: dir}
	defer t.stopAll()

	if err := t.startCollector(ctx); err != nil {
		return fmt.Errorf("collector: %w", err)
	}
	step("collector", "ready on embedded SQLite, policy dienstgeraete in force")

	if err := t.enrolThisMachine(ctx); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	step("agent", "enrolled as "+t.asset)

	device, err := t.awaitEvidence(ctx)
	if err != nil {
		return fmt.Errorf("evidence: %w", err)
	}
	if err := device.isThisMachine(); err != nil {
		return fmt.Errorf("evidence: %w", err)
	}
	step("evidence", device.summary())

	if err := t.askAsGateway(ctx, device); err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	explanation, err := t.operator(ctx, "explain", t.asset)
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	fmt.Println()
	fmt.Println(explanation)

	if once {
		return t.survivesKill(ctx, device)
	}
	t.showAddresses()
	return t.untilEnd(ctx)
}

// survivesKill ends the collector the hard way: what it had acknowledged is
// there when it comes back, and decides again.
func (t *trial) survivesKill(ctx context.Context, before *device) error {
	t.collector.kill()
	if err := t.serve(ctx); err != nil {
		return fmt.Errorf("collector, again: %w", err)
	}
	after, err := t.awaitEvidence(ctx)
	if err != nil {
		return fmt.Errorf("evidence after a kill: %w", err)
	}
	if after.Result.Verdict != before.Result.Verdict {
		return fmt.Errorf("verdict was %s before the collector was killed, is %s after", before.Result.Verdict, after.Result.Verdict)
	}
	if err := t.askAsGateway(ctx, after); err != nil {
		return fmt.Errorf("gate after a kill: %w", err)
	}
	if _, err := t.operator(ctx, "audit", "verify"); err != nil {
		return fmt.Errorf("audit log after a kill: %w", err)
	}
	step("restart", "killed and started again: evidence, verdict and audit log are whole")
	return nil
}

func (t *trial) showAddresses() {
	fmt.Println("Ctrl-C ends it. Until then, look at it:")
	fmt.Printf("  health and metrics  http://%s/metrics\n", t.address.health)
	fmt.Printf("  ask                 %s --collector %s --operator %s devices\n",
		filepath.Join(t.bin, "pfoertner-collector"), t.address.operators, t.path(anna))
	fmt.Printf("  on the notebook     %s status --status-file %s\n", filepath.Join(t.bin, "pfoertner-agent"), t.path("agent", "status.json"))
}

// untilEnd shows every change of the verdict until the context ends.
func (t *trial) untilEnd(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := t.aliveOrWhy(); err != nil {
			return err
		}
		d, err := t.device(ctx)
		if err != nil {
			return err
		}
		if now := d.verdict(); now != last {
			fmt.Printf("%s  %s\n", time.Now().Format("15:04:05"), now)
			last = now
		}
	}
}

// step tells how far the trial is.
func step(what, done string) { fmt.Printf("%-10s %s\n", what, done) }
