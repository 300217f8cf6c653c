package service

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// launcher#1142, launcher#1806: at boot the service manager gives up on a
// service that does not say in time that it runs.
func TestLauncher1142RunningIsReportedBeforeSlowWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := newProgram(func(ctx context.Context) error {
			time.Sleep(10 * time.Minute) // reading configuration, opening the event log, anything
			<-ctx.Done()
			return nil
		}, quiet())
		if err := p.Start(nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("the manager hears that it runs after %v", took)
		}
		if err := p.Stop(nil); err != nil {
			t.Error(err)
		}
		<-p.ended
	})
}

func TestLauncher1806StartIsDelayedUntilTheBootIsOver(t *testing.T) {
	if !wanted().Delayed {
		t.Error("the service starts with everything else")
	}
	if on, _ := description(nil).Option["DelayedAutoStart"].(bool); !on {
		t.Error("an installation does not ask for a delayed start")
	}
}

func TestStopIsOverInTimeWhateverHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		p := newProgram(func(context.Context) error { <-release; return nil }, quiet())
		if err := p.Start(nil); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := p.Stop(nil); err != nil {
			t.Errorf("a stop that was asked for is a failure: %v", err)
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
		if err := p.failure(); err != nil {
			t.Errorf("it counts as an unexpected end: %v", err)
		}
		close(release)
		<-p.ended
	})
}

func TestStopWaitsNoLongerThanTheWorkDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProgram(func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(time.Second)
			return nil
		}, quiet())
		if err := p.Start(nil); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := p.Stop(nil); err != nil || p.failure() != nil {
			t.Errorf("%v, %v", err, p.failure())
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestUnexpectedEndIsAFailure(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct{ end error }{"with an error": {broken}, "without one": {nil}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				died := false
				p := newProgram(func(context.Context) error { return c.end }, quiet())
				p.die = func() { died = true }
				if err := p.Start(nil); err != nil {
					t.Fatal(err)
				}
				<-p.ended
				if err := p.failure(); err == nil || c.end != nil && !errors.Is(err, c.end) {
					t.Errorf("the manager is told %v", err)
				}
				if !died {
					t.Error("the process lives on without its work: Windows would not start it again")
				}
				p.stop()
			})
		})
	}
}

func TestWorkThatEndsBecauseItWasStoppedIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProgram(func(ctx context.Context) error { <-ctx.Done(); return nil }, quiet())
		p.die = func() { t.Error("the process ends by itself") }
		if err := p.Start(nil); err != nil {
			t.Fatal(err)
		}
		if err := p.Stop(nil); err != nil || p.failure() != nil {
			t.Errorf("%v, %v", err, p.failure())
		}
	})
}

// fleet#11797: a thousand restarts of a service that dies at every start.
func TestFleet11797RestartsComeEverLater(t *testing.T) {
	w := wanted()
	for i, wait := range w.Restarts {
		if wait < 10*time.Second || i > 0 && wait <= w.Restarts[i-1] {
			t.Errorf("waits %v do not grow", w.Restarts)
		}
	}
	last := w.Restarts[len(w.Restarts)-1]
	if perDay := int(24 * time.Hour / last); perDay > 300 {
		t.Errorf("up to %d restarts a day", perDay)
	}
	if w.Reset < time.Hour {
		t.Errorf("short waits are due again after %v", w.Reset)
	}
	if !w.NonCrash {
		t.Error("an end with an error would not be followed by a restart")
	}
	if !strings.Contains(unit, "Restart=always") || !strings.Contains(unit, "RestartSec=") {
		t.Errorf("systemd does not start the service again, or at once:\n%s", unit)
	}
}

func TestSettingsThatDifferAreNamed(t *testing.T) {
	if d := wanted().differences(wanted()); len(d) > 0 {
		t.Errorf("nothing differs, and named are %v", d)
	}
	for name, change := range map[string]func(*settings){
		"delayed start":         func(s *settings) { s.Delayed = false },
		"restarts":              func(s *settings) { s.Restarts = s.Restarts[:1] },
		"restarts after errors": func(s *settings) { s.NonCrash = false },
	} {
		have := wanted()
		change(&have)
		if d := wanted().differences(have); len(d) != 1 || d[0] != name {
			t.Errorf("%s: named are %v", name, d)
		}
	}
	have := wanted()
	have.Reset = time.Second
	if d := wanted().differences(have); len(d) != 1 || d[0] != "restarts" {
		t.Errorf("named are %v", d)
	}
}
