package service

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"
)

// Assert compares what the service control manager knows with what is wanted,
// puts right what differs, and returns its names.
func Assert() ([]string, error) {
	m, err := mgr.Connect()
	if err != nil {
		return nil, fmt.Errorf("connecting to the service manager: %w", err)
	}
	defer m.Disconnect()
	s, err := m.OpenService(Name)
	if err != nil {
		return nil, fmt.Errorf("opening service: %w", err)
	}
	defer s.Close()
	have, known := read(s)
	want := wanted()
	different := want.differences(have)
	if len(different) == 0 {
		return nil, nil
	}
	// What could not be read is set all the same.
	return different, errors.Join(known, write(s, want))
}

// read returns what the manager knows. What it does not tell is zero, which is
// never what is wanted.
func read(s *mgr.Service) (settings, error) {
	var have settings
	var errs []error
	told := func(err error) bool {
		if err != nil {
			errs = append(errs, fmt.Errorf("reading service settings: %w", err))
		}
		return err == nil
	}
	if config, err := s.Config(); told(err) {
		// An administrator who has disabled the service or starts it by hand
		// keeps that: delay is a property of automatic start alone.
		have.Delayed = config.DelayedAutoStart || config.StartType != mgr.StartAutomatic
	}
	if actions, err := s.RecoveryActions(); told(err) {
		for _, a := range actions {
			wait := a.Delay
			if a.Type != mgr.ServiceRestart {
				wait = -1 // some other action: never what is wanted
			}
			have.Restarts = append(have.Restarts, wait)
		}
	}
	if reset, err := s.ResetPeriod(); told(err) {
		have.Reset = time.Duration(reset) * time.Second
	}
	if on, err := s.RecoveryActionsOnNonCrashFailures(); told(err) {
		have.NonCrash = on
	}
	return have, errors.Join(errs...)
}

func write(s *mgr.Service, want settings) error {
	var actions []mgr.RecoveryAction
	for _, wait := range want.Restarts {
		actions = append(actions, mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: wait})
	}
	var errs []error
	set := func(err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("setting service settings: %w", err))
		}
	}
	set(s.SetRecoveryActions(actions, uint32(want.Reset/time.Second)))
	set(s.SetRecoveryActionsOnNonCrashFailures(want.NonCrash))
	if config, err := s.Config(); err != nil {
		set(err)
	} else if config.StartType == mgr.StartAutomatic && config.DelayedAutoStart != want.Delayed {
		config.DelayedAutoStart = want.Delayed
		set(s.UpdateConfig(config))
	}
	return errors.Join(errs...)
}

// NewLogger returns the service's logger. It writes what matters to people to
// the Application log, under the service's name, in the system's language.
func NewLogger(slog.Leveler) *slog.Logger {
	return slog.New(newEvents(&applicationLog{}, SystemLanguage(), time.Now))
}

// applicationLog opens the log when the first event is written.
type applicationLog struct{ open *eventlog.Log }

// Write implements eventWriter.
func (a *applicationLog) Write(level slog.Level, id uint32, text string) error {
	if a.open == nil {
		// Registering again what an installer has registered is an error that
		// says only that: without it the text is shown all the same, with a
		// remark of the viewer.
		_ = eventlog.InstallAsEventCreate(Name, eventlog.Error|eventlog.Warning|eventlog.Info)
		log, err := eventlog.Open(Name)
		if err != nil {
			return fmt.Errorf("opening event log: %w", err)
		}
		a.open = log
	}
	switch {
	case level >= slog.LevelError:
		return a.open.Error(id, text)
	case level >= slog.LevelWarn:
		return a.open.Warning(id, text)
	}
	return a.open.Info(id, text)
}

// Forget removes the source of events: an uninstallation leaves nothing. Events
// that were written stay, without the text around them.
func Forget() error {
	err := eventlog.Remove(Name)
	if err == nil || errors.Is(err, registry.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("removing event source: %w", err)
}

// SystemLanguage is the language that Windows speaks to everybody ("de-DE");
// empty when it does not tell.
func SystemLanguage() string { return first(windows.GetSystemPreferredUILanguages) }

// UserLanguage is the language that Windows speaks to whoever runs this program.
func UserLanguage() string { return first(windows.GetUserPreferredUILanguages) }

func first(preferred func(flags uint32) ([]string, error)) string {
	languages, err := preferred(windows.MUI_LANGUAGE_NAME)
	if err != nil || len(languages) == 0 {
		return ""
	}
	return languages[0]
}

// DataDirectory is ProgramData as Windows knows it: whoever starts this program
// has no say in it.
func DataDirectory() string {
	path, err := windows.KnownFolderPath(windows.FOLDERID_ProgramData, 0)
	if err != nil {
		return `C:\ProgramData`
	}
	return path
}
