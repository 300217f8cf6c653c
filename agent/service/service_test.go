package service

import (
	"context"
	"errors"
	"go/build"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
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

// One unit: what `install` writes is what packages install, but for the path and
// what comes with a package alone.
func TestUnitIsThatOfThePackages(t *testing.T) {
	packaged, err := os.ReadFile(filepath.Join("..", "..", "installer", "systemd", "pfoertner-agent.service"))
	if err != nil {
		t.Fatal(err)
	}
	directives := func(text string) []string {
		var list []string
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			name, _, set := strings.Cut(line, "=")
			own := name == "ExecStart" || name == "Documentation" || name == "ConditionFileIsExecutable"
			if set && !own && !strings.HasPrefix(line, "#") {
				list = append(list, line)
			}
		}
		return list
	}
	here, there := directives(unit), directives(string(packaged))
	for _, d := range there {
		if !slices.Contains(here, d) {
			t.Errorf("only the package has %s", d)
		}
	}
	for _, d := range here {
		if !slices.Contains(there, d) {
			t.Errorf("the package lacks %s", d)
		}
	}
}

// What makes the service start under Wine is not in the program that is shipped.
func TestReleasedProgramAsksWindowsWhetherItIsAService(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		context := build.Default
		context.GOOS, context.GOARCH, context.BuildTags = "windows", arch, []string{"grpcnotrace"}
		if in, err := context.MatchFile(".", "host_winetest.go"); err != nil || in {
			t.Errorf("%s: a release has it: %v, %v", arch, in, err)
		}
		context.BuildTags = append(context.BuildTags, "winetest")
		if in, err := context.MatchFile(".", "host_winetest.go"); err != nil || !in {
			t.Errorf("%s: a trial does not: %v, %v", arch, in, err)
		}
	}
	root := filepath.Join("..", "..")
	for _, name := range []string{"Makefile", filepath.Join(".ci", "dist")} {
		recipe, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(recipe), "winetest") {
			t.Errorf("%s builds with winetest", name)
		}
	}
}
