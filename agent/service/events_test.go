package service

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

// applog remembers what was written to it.
type applog struct{ entries []string }

func (a *applog) Write(level slog.Level, id uint32, text string) error {
	a.entries = append(a.entries, fmt.Sprintf("%s %d %s", level, id, text))
	return nil
}

// log returns a logger over the application log, and its clock.
func log(language string) (*slog.Logger, *applog, *time.Time) {
	now := time.Date(2026, 11, 21, 14, 5, 0, 0, time.UTC)
	a := &applog{}
	return slog.New(newEvents(a, language, func() time.Time { return now })), a, &now
}

func TestEventsSpeakTheSystemsLanguage(t *testing.T) {
	for language, want := range map[string]string{
		"de-DE": "WARN 13 Das Gerät ist noch nicht aufgenommen. Der Dienst versucht es von selbst wieder.\r\n\r\nerror: no token",
		"en-GB": "WARN 13 The device is not enrolled yet. The service keeps trying by itself.\r\n\r\nerror: no token",
	} {
		l, a, _ := log(language)
		l.Warn("not enrolled yet", "error", errors.New("no token"))
		if !slices.Equal(a.entries, []string{want}) {
			t.Errorf("%s: %q", language, a.entries)
		}
	}
}

func TestOnlyWhatMattersIsAnEvent(t *testing.T) {
	l, a, _ := log("en")
	l.Debug("agent started")
	l.Info("full evidence asked for")
	l.Info("agent started", "version", "1.2.3")
	l.Warn("something new")
	l.With("part", "x").WithGroup("g").Error("something bad", "a", 1)
	want := []string{
		"INFO 1 The service is at work.\r\n\r\nversion: 1.2.3",
		"WARN 100 something new",
		"ERROR 101 something bad\r\n\r\npart: x\r\ng.a: 1",
	}
	if !slices.Equal(a.entries, want) {
		t.Errorf("%q", a.entries)
	}
}

func TestLogIsNotFilledWithTheSameEvent(t *testing.T) {
	l, a, now := log("en")
	for range 60 { // an hour without a network
		l.Warn("no connection to the collector", "error", "x")
		*now = now.Add(time.Minute)
	}
	l.Warn("no connection to the collector", "error", "x")
	l.Info("connected to the collector")
	l.Warn("no connection to the collector", "error", "x")
	if len(a.entries) != 4 {
		t.Errorf("%d events: %q", len(a.entries), a.entries)
	}
	for range 1000 { // a link that flaps
		l.Info("connected to the collector")
		l.Warn("no connection to the collector", "error", "x")
	}
	if len(a.entries) > 40 {
		t.Errorf("%d events", len(a.entries))
	}
}

// Administrators' tools watch for the numbers: none is used twice, and none is
// outside of what Windows has a message for.
// Whoever rolls the agent out waits for what changes: first the token is missing,
// then it is refused.
func TestAnotherCauseIsAnotherEvent(t *testing.T) {
	l, a, now := log("en")
	for _, cause := range []string{
		"no token", "no token", "enrolment refused", "enrolment refused",
		"read tcp 10.0.0.7:40312->10.0.0.1:7601: reset", "read tcp 10.0.0.7:40318->10.0.0.1:7601: reset",
	} {
		l.Warn("not enrolled yet", "error", errors.New(cause), "next_attempt_in", now.Minute())
		*now = now.Add(time.Minute)
	}
	var causes []string
	for _, entry := range a.entries {
		_, cause, _ := strings.Cut(entry, "error: ")
		cause, _, _ = strings.Cut(cause, "\r\n")
		causes = append(causes, cause)
	}
	if want := []string{"no token", "enrolment refused", "read tcp 10.0.0.7:40312->10.0.0.1:7601: reset"}; !slices.Equal(causes, want) {
		t.Errorf("written are %q", causes)
	}
}

func TestNumbersOfEventsAreUniqueAndShowable(t *testing.T) {
	seen := map[uint32]string{otherWarning: "other warning", otherError: "other error"}
	for _, e := range Catalogue() {
		if before, twice := seen[e.ID]; twice {
			t.Errorf("%d is %q and %q", e.ID, before, e.Message)
		}
		seen[e.ID] = e.Message
		if e.ID < 1 || e.ID > 1000 {
			t.Errorf("%d has no message in EventCreate.exe", e.ID)
		}
		if e.De == "" || e.En == "" {
			t.Errorf("%d has no text in both languages", e.ID)
		}
	}
}
