package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"pfoertner/agent/identity"
	"pfoertner/agent/notice"
	"pfoertner/agent/probe"
	"pfoertner/agent/service"
	"pfoertner/agent/session"
	"pfoertner/agent/status"
	"pfoertner/agent/tunnel"
	"pfoertner/agent/uplink"
	"pfoertner/agent/vpnkey"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// The agent is small and mostly waits. It collects garbage early rather
	// than keeping what one full collection, or an event log on its way, needed.
	// The limit is soft, and counts nothing of the program itself, which is most
	// of what is resident: a quiet agent has 5 MB under it.
	gcPercent   = 40
	memoryLimit = 8 << 20
	// rereadEvery is how often the service looks whether its configuration has
	// changed.
	rereadEvery = 30 * time.Second
)

// newRun is what the service does. Under a service manager it obeys that; in a
// terminal it ends with Ctrl-C, or with the first error.
func newRun(f *flag.FlagSet, _ io.Writer) func(context.Context) error {
	var s settings
	s.register(f)
	return func(ctx context.Context) error {
		debug.SetGCPercent(gcPercent)
		debug.SetMemoryLimit(memoryLimit)
		level := new(slog.LevelVar)
		if !service.Managed() {
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			return (&keeper{settings: &s, level: level, log: log, guard: service.Protect}).untilError(ctx)
		}
		k := &keeper{settings: &s, level: level, log: service.NewLogger(level), guard: service.Protect}
		return service.Run(k.keep, k.log)
	}
}

// keeper keeps the agent at work, whatever is missing or wrong: configuration
// that is not there yet, a token that comes later, a directory that cannot be
// written. A service that dies of it would only be started into the same again.
type keeper struct {
	settings *settings
	level    *slog.LevelVar
	log      *slog.Logger
	// guard is service.Protect.
	guard func(service.Directories) (aside []string, err error)

	complaint  string // the last one
	complained time.Time
}

// keep works until ctx ends.
func (k *keeper) keep(ctx context.Context) error {
	if different, err := service.Assert(); err != nil {
		k.log.Warn("service settings are not known", "error", err)
	} else if len(different) > 0 {
		k.log.Info("service settings put right", "settings", strings.Join(different, ", "))
	}
	retry := uplink.Retry()
	for {
		err := k.once(ctx)
		if ctx.Err() != nil {
			k.log.Info("agent stopped")
			return nil
		}
		if errors.Is(err, errChanged) {
			k.log.Info("configuration has changed")
			retry.Reset()
			continue
		}
		// A missing configuration is looked for steadily: an installation that
		// goes on meanwhile is soon over.
		k.complain(err)
		select {
		case <-ctx.Done():
		case <-time.After(min(retry.Next(), rereadEvery)):
		}
	}
}

// untilError is for a terminal: somebody is there to read why it ends.
func (k *keeper) untilError(ctx context.Context) error {
	for {
		if err := k.once(ctx); !errors.Is(err, errChanged) {
			return err
		}
		k.log.Info("configuration has changed")
	}
}

// complain logs why the agent cannot work: once, and every hour as long as that
// is so.
func (k *keeper) complain(err error) {
	if text := err.Error(); text != k.complaint || time.Since(k.complained) > time.Hour {
		k.complaint, k.complained = text, time.Now()
		k.log.Error("agent cannot work", "error", err)
	}
}

// errChanged ends the work under a configuration that holds no more.
var errChanged = errors.New("the configuration has changed")

// once is the agent: straight from configuration to the stream. It returns
// errChanged when the configuration does not hold any more, nil when ctx ends.
func (k *keeper) once(ctx context.Context) error {
	// A configuration that somebody has planted must be gone before it is read.
	if err := k.protect((config{}).fill()); err != nil {
		return err
	}
	c, err := k.settings.load()
	if err == nil && c.Collector == "" {
		err = errNoCollector
	}
	// The configuration may name other directories. Where one of them is
	// somebody else's nothing is written, not even a status.
	if err := k.protect(c); err != nil {
		return err
	}
	board := status.NewBoard(c.StatusFile, k.log)
	if err != nil {
		board.Connection(status.NotConfigured)
		return err
	}
	if err := k.level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel(nil)
	parts.Go(func() { k.watch(ctx, c, cancel) })

	held, err := identity.Hold(c.StateDir)
	if errors.Is(err, identity.ErrInUse) {
		return err // the other one says how things are
	}
	if err != nil {
		board.Connection(status.Broken)
		return err
	}
	defer held.Close()
	state, err := c.openState(func(other *identity.CopiedError) {
		k.log.Warn("identity of another machine set aside", "file", other.Aside, "not_in_tpm", other.Foreign)
		board.Copied(other.Foreign)
	})
	if err != nil {
		board.Connection(status.Broken)
		return err
	}
	defer state.Close()
	bell := notice.New(notice.Options{Screens: notice.NewScreens(), File: c.notices(), Now: time.Now, Log: k.log})
	parts.Go(func() { bell.Run(ctx) })
	k.log.Info("agent started", "version", version, "collector", c.Collector)
	catalogue := &probe.VPNCatalogue{}
	searches := probe.NewUpdateSearches(c.searches())
	watcher := probe.NewWatcher()
	watcher.Follow(searches)
	prover := tunnel.New(tunnel.Options{
		Target: c.target(), State: state, Log: k.log,
		Look: func(ctx context.Context) (probe.Addresses, error) {
			return probe.ReadAddresses(ctx, probe.NewHost(), catalogue)
		},
	})
	defer tunnel.Start(ctx, prover)() // it ends before the keys are closed
	err = session.Run(ctx, session.Options{
		Target: c.target(), State: state, Enrolment: c.enrolment,
		Collector: probe.NewCollector(probe.NewHost(), probe.Probes(probe.Options{
			AgentVersion:   version,
			Ledger:         probe.FileLedger{Path: c.ledger()},
			UpdateSearches: searches,
			VPNCatalogue:   catalogue,
		})),
		Watcher: prover.Following(watcher), VPNCatalogue: catalogue,
		TunnelProofWanted: prover.Wanted,
		Board:             audience{board, bell, prover}, Log: k.log,
	})
	switch {
	case errors.Is(err, identity.ErrOtherKind):
		board.Connection(status.OtherProtection)
		return err
	case err != nil:
		board.Connection(status.Broken)
		return err
	}
	if cause := context.Cause(ctx); errors.Is(cause, errChanged) {
		return cause
	}
	return nil
}

// audience are all who are told a result.
type audience struct {
	*status.Board
	bell   *notice.Bell
	prover *tunnel.Prover
}

// Connection implements session.Board. A collector that was away has forgotten
// which tunnels were proven.
func (a audience) Connection(c status.Connection) {
	a.Board.Connection(c)
	if c == status.Online {
		a.prover.Wanted()
	}
}

// Judged implements session.Board.
func (a audience) Judged(r *posturev1.Result) {
	a.Board.Judged(r)
	a.bell.Judged(r)
}

// watch ends the work when another configuration holds, or the token is another
// one: both come when they come. A new configuration with a mistake in it is
// said, and the one before goes on.
func (k *keeper) watch(ctx context.Context, c config, cancel context.CancelCauseFunc) {
	token, mistake := stamp(c.TokenFile), ""
	tick := time.NewTicker(rereadEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, err := k.settings.load()
		switch {
		case err != nil && err.Error() != mistake:
			mistake = err.Error()
			k.log.Warn("new configuration is not used", "error", err)
		case err == nil && now.Collector != "" && now != c:
			cancel(errChanged)
			return
		}
		if newer := stamp(c.TokenFile); newer != token && !newer.IsZero() {
			cancel(errChanged)
			return
		}
	}
}

// stamp is when a file was last written; zero when it is not there.
func stamp(name string) time.Time {
	info, err := os.Stat(name)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// protect sees that nobody but the administration decides about the agent's
// files.
func (k *keeper) protect(c config) error {
	aside, err := k.guard(c.directories())
	if len(aside) > 0 {
		k.log.Warn("files of unknown origin set aside", "names", strings.Join(aside, ", "))
	}
	return err
}

// directories are the agent's own on Windows. A status file that somebody wants
// elsewhere lies in somebody else's directory.
func (c config) directories() service.Directories {
	base := dataDirectory()
	d := service.Directories{Base: base, State: c.StateDir, Readable: defaults().config}
	if public := filepath.Join(base, "public"); filepath.Dir(c.StatusFile) == public {
		d.Public = public
	}
	return d
}

// openState opens the state directory for this machine. When the identity in it
// was another machine's, copied is told where that is now, what else was known
// of that machine is removed, and the rest is opened.
func (c config) openState(copied func(*identity.CopiedError)) (*identity.State, error) {
	state, err := c.bind()
	var other *identity.CopiedError
	if !errors.As(err, &other) {
		return state, err
	}
	copied(other)
	if err := state.Close(); err != nil {
		return nil, err
	}
	if err := remove(append(c.memory(), vpnkey.Files(c.vpnDirectory())...)...); err != nil {
		return nil, err
	}
	return c.bind()
}

func (c config) bind() (*identity.State, error) {
	state, err := identity.Open(c.StateDir, c.keys())
	if err != nil {
		return nil, err
	}
	return state, state.Bind(traits(probe.NewHost()))
}

// traits are those of the machine h shows.
func traits(h probe.Host) identity.Traits {
	return identity.TraitsOf(identity.Stated(probe.Machine(h)), installation(h))
}

// installation names the installed system: what systemd, or Windows' setup,
// has drawn for it (machine-id(5)). Empty: not known.
func installation(h probe.Host) string {
	if h.Windows != nil {
		if h.Windows.Registry == nil {
			return ""
		}
		v, err := h.Windows.Registry.Value(`SOFTWARE\Microsoft\Cryptography`, "MachineGuid")
		if err != nil {
			return ""
		}
		return v.Text
	}
	if h.Files == nil {
		return ""
	}
	id, err := fs.ReadFile(h.Files, "etc/machine-id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}
