package service

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/windows"
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
	have, config, err := read(s)
	if err != nil {
		return nil, err
	}
	want := wanted()
	different := want.differences(have)
	if len(different) == 0 {
		return nil, nil
	}
	return different, write(s, config, want)
}

func read(s *mgr.Service) (have settings, config mgr.Config, err error) {
	if config, err = s.Config(); err != nil {
		return have, config, fmt.Errorf("reading service configuration: %w", err)
	}
	have.Delayed = config.DelayedAutoStart
	actions, err := s.RecoveryActions()
	if err != nil {
		return have, config, fmt.Errorf("reading recovery actions: %w", err)
	}
	for _, a := range actions {
		if a.Type != mgr.ServiceRestart {
			have.Restarts = append(have.Restarts, -1) // some other action: never what is wanted
			continue
		}
		have.Restarts = append(have.Restarts, a.Delay)
	}
	reset, err := s.ResetPeriod()
	if err != nil {
		return have, config, fmt.Errorf("reading recovery actions: %w", err)
	}
	have.Reset = time.Duration(reset) * time.Second
	if have.NonCrash, err = s.RecoveryActionsOnNonCrashFailures(); err != nil {
		return have, config, fmt.Errorf("reading recovery actions: %w", err)
	}
	return have, config, nil
}

func write(s *mgr.Service, config mgr.Config, want settings) error {
	var actions []mgr.RecoveryAction
	for _, wait := range want.Restarts {
		actions = append(actions, mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: wait})
	}
	var errs []error
	if err := s.SetRecoveryActions(actions, uint32(want.Reset/time.Second)); err != nil {
		errs = append(errs, fmt.Errorf("setting recovery actions: %w", err))
	}
	if err := s.SetRecoveryActionsOnNonCrashFailures(want.NonCrash); err != nil {
		errs = append(errs, fmt.Errorf("setting recovery actions: %w", err))
	}
	// An administrator who has disabled the service or starts it by hand keeps
	// that: delay is a property of automatic start alone.
	if config.StartType == mgr.StartAutomatic && config.DelayedAutoStart != want.Delayed {
		config.DelayedAutoStart = want.Delayed
		if err := s.UpdateConfig(config); err != nil {
			errs = append(errs, fmt.Errorf("setting delayed start: %w", err))
		}
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

// SystemLanguage is the language that Windows speaks to everybody ("de-DE");
// empty when it does not tell.
func SystemLanguage() string {
	languages, err := windows.GetSystemPreferredUILanguages(windows.MUI_LANGUAGE_NAME)
	if err != nil || len(languages) == 0 {
		return os.Getenv("LANG")
	}
	return languages[0]
}
