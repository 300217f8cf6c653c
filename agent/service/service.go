// Package service is the agent as the operating system's service manager sees
// it: registered, started, stopped, restarted after a death, and heard in the
// system's log.
//
// Rules. The manager is told that the service runs before anything slow
// begins. A stop that was asked for is over within 15 s, whatever hangs, and is
// never a failure. An end that nobody asked for is one, so that the manager
// starts the service again, each time later. What has to be decided is decided
// in portable files; host*.go only calls the system.
package service

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	manager "github.com/kardianos/service"
)

// Name is what the system calls the service, and the source of its events.
const Name = "pfoertner-agent"

// stopTimeout is how long a stop waits for the work to end. Managers allow 15 s
// at least; the rest is for them.
const stopTimeout = 10 * time.Second

// Work is what the service does until ctx ends; then it returns nil. Any other
// end is a failure.
type Work func(ctx context.Context) error

// Managed says whether a service manager has started this process. It is false
// in a terminal.
func Managed() bool {
	return manager.ChosenSystem() != nil && !manager.Interactive()
}

// Run does the work under the service manager until that says stop. It returns
// why the work ended when nobody had asked for it.
func Run(work Work, log *slog.Logger) error {
	p := newProgram(work, log)
	conf := description(nil)
	// Only systemd's side of the library waits for this; for Windows see die.
	conf.Option["RunWait"] = func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		defer signal.Stop(signals)
		select {
		case <-signals:
		case <-p.ended:
		}
	}
	if runtime.GOOS == "windows" {
		p.die = func() { os.Exit(1) }
	}
	s, err := manager.New(p, conf)
	if err != nil {
		return fmt.Errorf("opening service: %w", err)
	}
	if err := s.Run(); err != nil {
		return fmt.Errorf("running service: %w", err)
	}
	return p.failure()
}

// program is the work with a beginning and an end.
type program struct {
	work Work
	log  *slog.Logger
	// die ends the process after a failure; nil: Run returns it. Windows needs
	// it: there the library waits only for the service manager, and a process
	// that is gone without a word is what makes that restart the service.
	die func()

	stop  context.CancelFunc
	ended chan struct{}
	err   error // valid once ended is closed
}

func newProgram(work Work, log *slog.Logger) *program {
	return &program{work: work, log: log, ended: make(chan struct{})}
}

// Start implements manager.Interface. It returns at once: what the work has to
// read or wait for must not keep the manager from hearing that it runs.
func (p *program) Start(manager.Service) error {
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	go func() {
		defer close(p.ended)
		p.err = p.work(ctx)
		if ctx.Err() != nil {
			return
		}
		if p.err == nil {
			p.err = errors.New("the work is over, but nobody has asked for that")
		}
		p.log.Error("service ends unexpectedly", "error", p.err)
		if p.die != nil {
			p.die()
		}
	}()
	return nil
}

// Stop implements manager.Interface. Work that does not end in time is left
// behind: the process ends with it. That is no failure, or the manager would
// start again what somebody has just stopped to replace it.
func (p *program) Stop(manager.Service) error {
	p.stop()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
		p.log.Warn("service stops without waiting any longer", "waited", stopTimeout)
	}
	return nil
}

// failure is why the work ended; nil while it goes on.
func (p *program) failure() error {
	select {
	case <-p.ended:
		return p.err
	default:
		return nil
	}
}

// unit is the systemd unit, in the library's template language.
//
//go:embed pfoertner-agent.service
var unit string

// description is the service as the system knows it.
func description(arguments []string) *manager.Config {
	return &manager.Config{
		Name:        Name,
		DisplayName: "Pförtner agent",
		Description: "Reports the security posture of this service notebook",
		Arguments:   arguments,
		Option: manager.KeyValue{
			"SystemdScript":    unit,
			"DelayedAutoStart": true,
		},
	}
}

// Install registers the service with arguments for its command line. It does
// not start it.
func Install(arguments ...string) error {
	s, err := manager.New(newProgram(nil, nil), description(arguments))
	if err != nil {
		return fmt.Errorf("opening service: %w", err)
	}
	if err := s.Install(); err != nil {
		return fmt.Errorf("installing service: %w", err)
	}
	// The service does it again at every start, and says what it cannot.
	_, _ = Assert()
	return nil
}

// Start starts the registered service.
func Start() error {
	s, err := manager.New(newProgram(nil, nil), description(nil))
	if err != nil {
		return fmt.Errorf("opening service: %w", err)
	}
	if err := s.Start(); err != nil {
		return fmt.Errorf("starting service: %w", err)
	}
	return nil
}

// Uninstall stops the service and removes it.
func Uninstall() error {
	s, err := manager.New(newProgram(nil, nil), description(nil))
	if err != nil {
		return fmt.Errorf("opening service: %w", err)
	}
	stopErr := s.Stop()
	if err := s.Uninstall(); err != nil {
		return fmt.Errorf("removing service: %w", errors.Join(err, stopErr))
	}
	return nil
}

// Running says whether the registered service runs. A service that is not
// registered does not.
func Running() (bool, error) {
	s, err := manager.New(newProgram(nil, nil), description(nil))
	if err != nil {
		return false, fmt.Errorf("opening service: %w", err)
	}
	switch state, err := s.Status(); {
	case errors.Is(err, manager.ErrNotInstalled):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("asking for service: %w", err)
	default:
		return state == manager.StatusRunning, nil
	}
}
