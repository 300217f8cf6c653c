package probe

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func TestCollectRecordsHowEachReadingWent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		c := collectorOf(
			Probe{Section: "tpm", Collect: func(_ context.Context, _ Host, ev *posturev1.Evidence) error {
				time.Sleep(2 * time.Second)
				ev.Tpm = &posturev1.Tpm{Version: "2.0", Reading: &posturev1.Reading{Source: "/sys/class/tpm"}}
				return nil
			}},
			Probe{Section: "secure_boot", Collect: func(context.Context, Host, *posturev1.Evidence) error {
				return fmt.Errorf("legacy BIOS: %w", ErrNotApplicable)
			}},
			Probe{Section: "vpn", Collect: func(_ context.Context, _ Host, ev *posturev1.Evidence) error {
				ev.Vpn = &posturev1.Vpn{Clients: []*posturev1.VpnClient{{Product: "openvpn"}}}
				return errors.Join(errors.New("routes: EPERM"), errors.New("bus: EPERM"))
			}},
			Probe{Section: "firewall", Collect: func(_ context.Context, _ Host, ev *posturev1.Evidence) error {
				ev.Firewall = &posturev1.Firewall{Reading: &posturev1.Reading{State: failed, Reason: "rules: EPERM"}}
				return nil
			}},
		)
		ev := c.Collect(t.Context())

		expectReading(t, ev, "tpm", observed, "")
		r := ev.GetTpm().GetReading()
		if r.GetSource() != "/sys/class/tpm" || r.GetDuration().AsDuration() != 2*time.Second || !r.GetObservedAt().AsTime().Equal(began) {
			t.Errorf("tpm reading %v", r)
		}
		expectReading(t, ev, "secure_boot", notApplicable, "legacy BIOS")
		expectReading(t, ev, "vpn", failed, "routes: EPERM; bus: EPERM")
		if len(ev.GetVpn().GetClients()) != 1 {
			t.Error("what was read before the error is lost")
		}
		expectReading(t, ev, "firewall", failed, "rules: EPERM")
		expectReading(t, ev, "patch", failed, "not reported")
	})
}

func TestCollectRunsProbesAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(context.Context, Host, *posturev1.Evidence) error { time.Sleep(time.Second); return nil }
		c := collectorOf(Probe{Section: "tpm", Collect: slow}, Probe{Section: "patch", Collect: slow}, answering("vpn"))
		began := time.Now()
		ev := c.Collect(t.Context())
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %v", took)
		}
		if took := ev.GetVpn().GetReading().GetDuration().AsDuration(); took != 0 {
			t.Errorf("a quick probe is said to have taken %v, as long as a slow one", took)
		}
	})
}

func TestCollectSurvivesAPanic(t *testing.T) {
	c := collectorOf(
		Probe{Section: "tpm", Collect: func(context.Context, Host, *posturev1.Evidence) error {
			var none []int
			return fmt.Errorf("%d", none[3])
		}},
		answering("vpn"),
	)
	ev := c.Collect(t.Context())
	reason := ev.GetTpm().GetReading().GetReason()
	if ev.GetTpm().GetReading().GetState() != failed ||
		!strings.HasPrefix(reason, "the probe panicked at collector_test.go:") || !strings.Contains(reason, "index out of range") {
		t.Errorf("reading %v", ev.GetTpm().GetReading())
	}
	expectReading(t, ev, "vpn", observed, "")
}

func TestCollectSurvivesAProbeThatLeaves(t *testing.T) {
	c := collectorOf(Probe{Section: "tpm", Collect: func(context.Context, Host, *posturev1.Evidence) error {
		runtime.Goexit()
		return nil
	}})
	expectReading(t, c.Collect(t.Context()), "tpm", failed, "the probe ended without an answer")
}

// A probe stuck in the kernel cannot be ended. It must not be started again
// and again either.
func TestAHangingProbeIsNotStartedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		starts := 0
		c := collectorOf(
			Probe{Section: "tpm", Timeout: 3 * time.Second, Collect: func(context.Context, Host, *posturev1.Evidence) error {
				starts++
				<-release
				return nil
			}},
			answering("vpn"),
		)
		began := time.Now()
		ev := c.Collect(t.Context())
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("took %v", took)
		}
		expectReading(t, ev, "tpm", failed, "no answer within 3s")
		expectReading(t, ev, "vpn", observed, "")

		before := runtime.NumGoroutine()
		var digest []byte
		for i := range 100 {
			time.Sleep(time.Minute)
			began := time.Now()
			ev = c.Collect(t.Context())
			if took := time.Since(began); took != 0 {
				t.Fatalf("waited %v for a probe that hangs", took)
			}
			now, err := posture.Digest(ev)
			if err != nil {
				t.Fatal(err)
			}
			if i > 0 && !slices.Equal(now, digest) {
				t.Fatal("the evidence changes while nothing does")
			}
			digest = now
		}
		expectReading(t, ev, "tpm", failed, "no answer since "+began.UTC().Format(time.RFC3339))
		synctest.Wait()
		if after := runtime.NumGoroutine(); after > before+10 {
			t.Errorf("%d goroutines after 100 collections, before %d", after, before)
		}
		if starts != 1 {
			t.Errorf("started %d times", starts)
		}

		close(release)
		synctest.Wait()
		expectReading(t, c.Collect(t.Context()), "tpm", observed, "")
		if starts != 2 {
			t.Errorf("started %d times", starts)
		}
	})
}

func TestAProbeThatHeedsItsTimeoutIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts := 0
		c := collectorOf(Probe{Section: "tpm", Collect: func(ctx context.Context, _ Host, _ *posturev1.Evidence) error {
			starts++
			<-ctx.Done()
			return ctx.Err()
		}})
		for range 3 {
			ev := c.Collect(t.Context())
			synctest.Wait()
			if r := ev.GetTpm().GetReading(); r.GetState() != failed || r.GetDuration().AsDuration() != DefaultTimeout {
				t.Errorf("reading %v", r)
			}
		}
		if starts != 3 {
			t.Errorf("started %d times", starts)
		}
	})
}

func TestACancelledReadingSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		c := collectorOf(Probe{Section: "tpm", Collect: func(context.Context, Host, *posturev1.Evidence) error {
			<-release
			return nil
		}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		began := time.Now()
		ev := c.Collect(ctx)
		expectReading(t, ev, "tpm", failed, "the reading was cancelled")
		if r := ev.GetTpm().GetReading(); r.GetDuration().AsDuration() != time.Millisecond {
			t.Errorf("reading %v", r)
		}
		if took := time.Since(began); took != time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

func TestCollectReadsOnlyWhatIsNamed(t *testing.T) {
	c := collectorOf(answering("tpm"), answering("vpn"))
	for _, step := range []struct{ named, read []string }{
		{nil, []string{"vpn", "tpm"}},
		{[]string{"vpn"}, []string{"vpn"}},
		{[]string{"tpm", "vpn"}, []string{"vpn", "tpm"}},
		{[]string{"volumes"}, nil},
	} {
		ev := c.Collect(t.Context(), step.named...)
		var read []string
		for _, s := range posture.Sections() {
			if posture.ReadingOf(ev, s).GetState() == observed {
				read = append(read, s)
			}
		}
		if !slices.Equal(read, step.read) {
			t.Errorf("asked for %v: read %v", step.named, read)
		}
	}
}

func TestASectionIsReadAtOnceWhileAnotherIsStillBeingRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		c := collectorOf(answering("volumes"), Probe{Section: "patch", Collect: func(context.Context, Host, *posturev1.Evidence) error {
			<-release
			return nil
		}})
		all := make(chan *posturev1.Evidence, 1)
		go func() { all <- c.Collect(t.Context()) }()
		synctest.Wait()

		began := time.Now()
		expectReading(t, c.Collect(t.Context(), "volumes"), "volumes", observed, "")
		if took := time.Since(began); took != 0 {
			t.Errorf("volumes took %v while patch was being read", took)
		}
		close(release)
		expectReading(t, <-all, "patch", observed, "")
	})
}

// Who asks while a section is being read wants to know what it is like after
// that moment: the section is read once more, when the first reading is over.
func TestAProbeNeverRunsTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int32
		c := collectorOf(Probe{Section: "tpm", Collect: func(context.Context, Host, *posturev1.Evidence) error {
			now := running.Add(1)
			most.Store(max(most.Load(), now))
			time.Sleep(time.Second)
			running.Add(-1)
			return nil
		}})
		began := time.Now()
		var askers sync.WaitGroup
		for i := range 3 {
			askers.Go(func() {
				asked := began.Add(time.Duration(i) * 100 * time.Millisecond)
				time.Sleep(time.Until(asked))
				r := c.Collect(t.Context(), "tpm").GetTpm().GetReading()
				if r.GetState() != observed || r.GetObservedAt().AsTime().Before(asked) {
					t.Errorf("asked at %v: %v", asked, r)
				}
			})
		}
		askers.Wait()
		if n := most.Load(); n != 1 {
			t.Errorf("the probe ran %d times at once", n)
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestWaitingForAnotherReadingEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := collectorOf(Probe{Section: "tpm", Collect: func(ctx context.Context, _ Host, _ *posturev1.Evidence) error {
			<-ctx.Done()
			return ctx.Err()
		}})
		first := make(chan struct{})
		go func() {
			c.Collect(t.Context())
			close(first)
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		expectReading(t, c.Collect(ctx), "tpm", failed, "the reading was cancelled")
		<-first
	})
}

// A section that is collected late must not overwrite another's.
func TestAProbeFillsOnlyItsOwnSection(t *testing.T) {
	c := collectorOf(
		Probe{Section: "tpm", Collect: func(_ context.Context, _ Host, ev *posturev1.Evidence) error {
			ev.Vpn = &posturev1.Vpn{Clients: []*posturev1.VpnClient{{Product: "not mine"}}}
			return nil
		}},
		answering("vpn"),
	)
	if ev := c.Collect(t.Context()); len(ev.GetVpn().GetClients()) != 0 {
		t.Error("one probe wrote another's section")
	}
}

func TestReasonsAreOneShortLine(t *testing.T) {
	c := collectorOf(Probe{Section: "tpm", Collect: func(context.Context, Host, *posturev1.Evidence) error {
		return errors.New("ä\xff\n" + strings.Repeat("ß", 1000))
	}})
	reason := c.Collect(t.Context()).GetTpm().GetReading().GetReason()
	if len(reason) > maxReasonBytes+len("…") || !strings.HasPrefix(reason, "ä?; ßß") || !strings.HasSuffix(reason, "ß…") {
		t.Errorf("%q", reason)
	}
}

func TestEverySectionHasOneProbe(t *testing.T) {
	var sections []string
	for _, p := range Probes(Options{}) {
		sections = append(sections, p.Section)
	}
	if !slices.Equal(sections, posture.Sections()) {
		t.Errorf("probes for %v, sections %v", sections, posture.Sections())
	}
}

// Whatever is missing, each section says so and none is lost.
func TestABareHostFailsInEverySection(t *testing.T) {
	ev := NewCollector(Host{Now: time.Now}, Probes(Options{})).Collect(t.Context())
	for _, s := range posture.Sections() {
		if r := posture.ReadingOf(ev, s); r.GetState() != failed || r.GetReason() == "" || strings.Contains(r.GetReason(), "panicked") {
			t.Errorf("%s: %v", s, r)
		}
	}
}

func collectorOf(probes ...Probe) *Collector {
	return NewCollector(Host{Now: time.Now}, probes)
}

func answering(section string) Probe {
	return Probe{Section: section, Collect: func(context.Context, Host, *posturev1.Evidence) error { return nil }}
}

func expectReading(t *testing.T, ev *posturev1.Evidence, section string, state posturev1.ReadingState, reason string) {
	t.Helper()
	if r := posture.ReadingOf(ev, section); r.GetState() != state || r.GetReason() != reason {
		t.Errorf("%s: %v %q, expected %v %q", section, r.GetState(), r.GetReason(), state, reason)
	}
}
