//go:build !windows

package service

import (
	"log/slog"
	"os"
)

// Assert has nothing to put right: systemd's unit says it all.
func Assert() ([]string, error) { return nil, nil }

// NewLogger returns the service's logger: systemd keeps standard error in the
// journal.
func NewLogger(level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// Protect has nothing to do: file modes protect the state directory, and who
// opens it checks them.
func Protect(Directories) ([]string, error) { return nil, nil }

// Forget has nothing to remove: the journal knows no sources.
func Forget() error { return nil }

// UserLanguage is not known beside the environment.
func UserLanguage() string { return "" }

// DataDirectory is Windows' alone: elsewhere every file has a place of its own.
func DataDirectory() string { return "" }
