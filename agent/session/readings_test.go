package session

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// collecting runs readings on a machine in a synctest bubble, where time passes
// only when everybody waits.
func collecting(t *testing.T, m Collector) (*readings, context.CancelFunc) {
	r := newReadings(m, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	go r.run(ctx)
	synctest.Wait()
	return r, cancel
}

func TestEverythingIsCollectedAtStartAndInEveryInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		r, cancel := collecting(t, m)
		defer cancel()
		r.every(10 * time.Minute)
		time.Sleep(24 * time.Hour)
		for _, s := range posture.Sections() {
			if n := m.reads(s) - 1; n < 24*6 || n > 24*6*4/3 {
				t.Errorf("%s was read %d times in 24 h: at least once in 10 min is due, with jitter of a quarter", s, n)
			}
		}
	})
}

func TestReadingsOfSomeSectionsDoNotPutOffTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		r, cancel := collecting(t, m)
		defer cancel()
		r.every(10 * time.Minute)
		for range 60 {
			time.Sleep(time.Minute)
			r.request("vpn")
		}
		synctest.Wait()
		if n := m.reads("patch"); n < 6 {
			t.Errorf("patch was read %d times in an hour in which vpn changed", n)
		}
		if age := r.newest().age(); age > 10*time.Minute {
			t.Errorf("evidence is %v old", age)
		}
	})
}

// Every welcome names the interval again.
func TestFlappingStreamDoesNotPutOffTheNextRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		r, cancel := collecting(t, m)
		defer cancel()
		for range 60 {
			r.every(10 * time.Minute)
			time.Sleep(time.Minute)
		}
		if n := m.reads("patch"); n < 6 {
			t.Errorf("patch was read %d times in an hour", n)
		}
	})
}

func TestChangeIsReadWithoutDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		r, cancel := collecting(t, m)
		defer cancel()
		time.Sleep(time.Minute)
		for i := range 20 {
			before := m.reads("volumes")
			r.request("volumes")
			synctest.Wait() // no time passes
			if m.reads("volumes") != before+1 {
				t.Fatalf("change %d waits", i)
			}
		}
	})
}

// encrypted says what the newest evidence tells of the disk.
func encrypted(s snapshot) bool {
	return s.evidence.GetVolumes().GetVolumes()[0].GetPaths()[0].GetLayers()[0].GetType() == posturev1.LayerType_LAYER_TYPE_LUKS2
}

func TestChangedDiskIsNewestAtOnceWhileAnotherSectionHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		r, cancel := collecting(t, m)
		defer cancel()
		time.Sleep(time.Minute)
		began, round := r.newest().began, r.newest().round

		release := m.stick("patch")
		defer release()
		asked := time.Now()
		due := r.requestAll()
		synctest.Wait()
		m.encrypted = false
		r.request("volumes")
		synctest.Wait() // no time passes
		s := r.newest()
		if encrypted(s) {
			t.Fatal("the changed disk waits for the patch probe")
		}
		if s.round != round || !s.began.Equal(began) {
			t.Errorf("one fresh section made the evidence fresh: round %d of %d, began %v", s.round, due, s.began)
		}

		time.Sleep(10 * time.Second)
		release()
		synctest.Wait()
		s = r.newest()
		if encrypted(s) {
			t.Error("the end of the long collection brought the old disk back")
		}
		if s.round != due || !s.began.Equal(asked) {
			t.Errorf("round %d of %d, began %v: it was asked for at %v", s.round, due, s.began, asked)
		}
	})
}

func TestNoSectionIsReadTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		r, cancel := collecting(t, m)
		defer cancel()
		release := m.stick("patch")
		defer release()
		for range 100 {
			r.request("patch")
			r.requestAll()
			time.Sleep(time.Second)
		}
		if n := m.reads("patch"); n != 2 {
			t.Errorf("a section that hangs was read %d times, with the one at the start", n)
		}
		release()
		time.Sleep(time.Minute)
		if n := m.reads("patch"); n != 3 {
			t.Errorf("100 requests during one reading led to %d readings, with the one at the start", n)
		}
	})
}

func TestThereIsNoEvidenceBeforeEverySectionWasRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		release := m.stick("patch")
		defer release()
		r, cancel := collecting(t, m)
		defer cancel()
		if r.newest().evidence != nil {
			t.Fatal("a section that was never read would be reported as missing")
		}
		release()
		synctest.Wait()
		if r.newest().evidence.GetPatch() == nil {
			t.Error("no evidence after everything was read")
		}
	})
}

// slow takes its time to collect.
type slow struct {
	*machine
	takes time.Duration
}

func (s slow) Collect(ctx context.Context, sections ...string) *posturev1.Evidence {
	sleep(ctx, s.takes)
	return s.machine.Collect(ctx, sections...)
}

func TestStormOfChangesCostsOnlyItsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := slow{newMachine(), 50 * time.Millisecond}
		r, cancel := collecting(t, m)
		defer cancel()
		for range 100 * 60 * 10 { // 10 minutes
			r.request("patch")
			time.Sleep(10 * time.Millisecond)
		}
		spent := time.Duration(m.reads("patch")) * m.takes
		if most := 10*time.Minute/10 + 3*time.Second; spent > most {
			t.Errorf("collecting took %v of 10 min, at most %v are allowed", spent, most)
		}
	})
}

func TestStormInOneSectionDoesNotDelayAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := slow{newMachine(), 50 * time.Millisecond}
		r, cancel := collecting(t, m)
		defer cancel()
		for range 100 * 60 { // a minute: the budget is used up
			r.request("patch")
			time.Sleep(10 * time.Millisecond)
		}
		for range 4 {
			m.mu.Lock()
			m.encrypted = !m.encrypted
			m.mu.Unlock()
			r.request("volumes")
			time.Sleep(m.takes)
			synctest.Wait()
			if encrypted(r.newest()) != m.encrypted {
				t.Fatal("a changed disk waits for an upgrade to end")
			}
		}
	})
}

func TestAgeTakesTheLargerClock(t *testing.T) {
	for _, c := range []struct {
		name  string
		began time.Time
		least time.Duration
	}{
		{"awake", time.Now().Add(-time.Minute), time.Minute},
		// Asleep for an hour the monotonic clock stood still: only the wall
		// clock knows.
		{"asleep", time.Now().Round(0).Add(-time.Hour), time.Hour},
		{"clock set back", time.Now().Round(0).Add(time.Hour), 0},
	} {
		if age := (snapshot{began: c.began}).age(); age < c.least || age > c.least+time.Minute {
			t.Errorf("%s: age %v, want %v", c.name, age, c.least)
		}
	}
}

func TestSectionBeyondTheLimitsBecomesFailed(t *testing.T) {
	ev := newMachine().Collect(t.Context(), posture.Sections()...)
	ev.Platform.KernelRelease = strings.Repeat("x", posture.MaxStringBytes+1)
	got := bounded(ev)
	if r := posture.ReadingOf(got, "platform"); r.GetState() != posturev1.ReadingState_READING_STATE_FAILED || r.GetReason() == "" {
		t.Errorf("platform is %v", r)
	}
	if r := posture.ReadingOf(got, "volumes"); r.GetState() != posturev1.ReadingState_READING_STATE_OBSERVED {
		t.Errorf("volumes is %v", r)
	}
	if err := posture.CheckLimits(got); err != nil {
		t.Error(err)
	}
}

func TestSectionsTooLargeTogetherAreBounded(t *testing.T) {
	ev := newMachine().Collect(t.Context(), posture.Sections()...)
	for range posture.MaxListLength {
		ev.Patch.Pending = append(ev.Patch.Pending, &posturev1.PendingUpdate{Package: strings.Repeat("p", 100), Origin: strings.Repeat("o", 100)})
		ev.Volumes.Volumes = append(ev.Volumes.Volumes, &posturev1.Volume{Filesystem: strings.Repeat("f", 100)})
	}
	ev.Volumes.Volumes = ev.Volumes.Volumes[:posture.MaxListLength]
	if err := posture.CheckLimits(bounded(ev)); err != nil {
		t.Error(err)
	}
}

// restless is a Watcher that fails again and again.
type restless struct{ started chan struct{} }

func (w restless) Watch(context.Context, func(...string)) error {
	select {
	case w.started <- struct{}{}:
	default:
	}
	return errors.New("no more watches")
}

func TestWatcherThatFailsIsStartedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := restless{make(chan struct{}, 100)}
		a := newAgent(Options{Watcher: w, Collector: newMachine(), Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		go a.watch(ctx)
		time.Sleep(time.Hour)
		cancel()
		synctest.Wait()
		if n := len(w.started); n < 5 || n > 100 {
			t.Errorf("started %d times in an hour", n)
		}
	})
}

func TestWaitIsCutShortOnlySoOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(Options{Collector: newMachine(), Log: slog.New(slog.DiscardHandler)})
		flapping, stop := context.WithCancel(t.Context())
		go func() {
			for sleep(flapping, 10*time.Millisecond) {
				signal(a.network)
			}
		}()
		began, attempts := time.Now(), 0
		for time.Since(began) < time.Minute {
			a.pause(t.Context(), 5*time.Minute)
			attempts++
		}
		stop()
		if attempts > 25 {
			t.Errorf("%d attempts in a minute over a flapping link", attempts)
		}
	})
}
