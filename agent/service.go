package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/kardianos/service"

	"pfoertner/agent/identity"
	"pfoertner/agent/probe"
	"pfoertner/agent/session"
	"pfoertner/agent/status"
)

const (
	// The agent is small and mostly waits. It collects garbage early rather
	// than keeping what one full collection needed; the limit is soft.
	gcPercent   = 40
	memoryLimit = 24 << 20
	// stopTimeout is how long the service manager waits for the end.
	stopTimeout = 10 * time.Second
)

// newRun is what the service does. Under a service manager it obeys that; in a
// terminal it ends with Ctrl-C.
func newRun(f *flag.FlagSet, _ io.Writer) func(context.Context) error {
	var s settings
	s.register(f)
	return func(ctx context.Context) error {
		debug.SetGCPercent(gcPercent)
		debug.SetMemoryLimit(memoryLimit)
		c, err := s.load()
		if err != nil {
			return err
		}
		if service.ChosenSystem() == nil || service.Interactive() {
			return report(ctx, c)
		}
		return serve(c)
	}
}

// report is the agent: straight from configuration to the stream.
func report(ctx context.Context, c config) error {
	if c.Collector == "" {
		return errors.New("the collector is not named: set collector")
	}
	level, err := c.level()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	state, err := identity.Open(c.StateDir, identity.Software{})
	if err != nil {
		return err
	}
	host := probe.NewHost()
	probes := probe.Probes(probe.Options{
		AgentVersion: version,
		Ledger:       probe.FileLedger{Path: c.ledger()},
	})
	log.Info("agent started", "version", version, "collector", c.Collector)
	return session.Run(ctx, session.Options{
		Target: c.target(), State: state, Enrolment: c.enrolment,
		Collector: probe.NewCollector(host, probes), Watcher: probe.NewWatcher(),
		Board: status.NewBoard(c.StatusFile, log), Log: log,
	})
}

// program is the agent as a service manager sees it.
type program struct {
	config config
	stop   context.CancelFunc
	ended  chan struct{}
	err    error // valid once ended is closed
}

// Start implements service.Interface: it reports running at once, before
// anything slow.
func (p *program) Start(service.Service) error {
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	go func() {
		defer close(p.ended)
		p.err = report(ctx, p.config)
		if p.err != nil && runtime.GOOS == "windows" {
			// The library waits only for the service manager. A process that
			// is gone without a word is what makes it restart the service.
			fmt.Fprintln(os.Stderr, "pfoertner-agent:", p.err)
			os.Exit(1)
		}
	}()
	return nil
}

// Stop implements service.Interface.
func (p *program) Stop(service.Service) error {
	p.stop()
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopTimeout):
		return errors.New("the agent does not stop")
	}
}

// serve runs under a service manager. It returns why the agent died, so that
// the manager restarts it.
func serve(c config) error {
	p := &program{config: c, ended: make(chan struct{})}
	conf := description(nil)
	conf.Option["RunWait"] = func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		defer signal.Stop(signals)
		select {
		case <-signals:
		case <-p.ended:
		}
	}
	s, err := service.New(p, conf)
	if err != nil {
		return fmt.Errorf("opening service: %w", err)
	}
	if err := s.Run(); err != nil {
		return fmt.Errorf("running service: %w", err)
	}
	return p.err
}

// unit is the systemd unit, in the template language of kardianos/service.
//
//go:embed pfoertner-agent.service
var unit string

// description is the service as the system knows it.
func description(arguments []string) *service.Config {
	return &service.Config{
		Name:        "pfoertner-agent",
		DisplayName: "Pförtner agent",
		Description: "Reports the security posture of this service notebook",
		Arguments:   arguments,
		Option: service.KeyValue{
			"SystemdScript":          unit,
			"OnFailure":              "restart",
			"OnFailureDelayDuration": "10s",
			"OnFailureResetPeriod":   3600,
		},
	}
}

// newInstall registers and starts the service. Where there is no configuration
// yet it writes the documented one and leaves starting to whoever fills it in.
func newInstall(f *flag.FlagSet, out io.Writer) func(context.Context) error {
	file := f.String("config", defaults().config, "configuration `file` that the service reads")
	return func(context.Context) error {
		name, err := filepath.Abs(*file)
		if err != nil {
			return err
		}
		fresh, err := placeTemplate(name)
		if err != nil {
			return err
		}
		s, err := service.New(&program{}, description([]string{"run", "--config", name}))
		if err != nil {
			return fmt.Errorf("opening service: %w", err)
		}
		if err := s.Install(); err != nil {
			return fmt.Errorf("installing service: %w", err)
		}
		if fresh {
			fmt.Fprintf(out, "Installed. Name the collector in %s, then start the service.\n", name)
			return nil
		}
		if _, err := (&settings{file: name}).load(); err != nil {
			return fmt.Errorf("installed, but not started: %w", err)
		}
		if err := s.Start(); err != nil {
			return fmt.Errorf("installed, but not started: %w", err)
		}
		fmt.Fprintln(out, "Installed and started.")
		return nil
	}
}

// placeTemplate writes the documented configuration unless there is one.
func placeTemplate(name string) (fresh bool, err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return false, fmt.Errorf("placing configuration: %w", err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("placing configuration: %w", err)
	}
	_, err = f.Write(template)
	if err := errors.Join(err, f.Close()); err != nil {
		return false, fmt.Errorf("placing configuration: %w", err)
	}
	return true, nil
}

// newUninstall removes the service. Key and certificate stay: this notebook is
// still a device until the inventory says otherwise.
func newUninstall(_ *flag.FlagSet, out io.Writer) func(context.Context) error {
	return func(context.Context) error {
		s, err := service.New(&program{}, description(nil))
		if err != nil {
			return fmt.Errorf("opening service: %w", err)
		}
		stopErr := s.Stop()
		if err := s.Uninstall(); err != nil {
			return fmt.Errorf("removing service: %w", errors.Join(err, stopErr))
		}
		fmt.Fprintln(out, "Removed. Key and certificate were kept.")
		return nil
	}
}
