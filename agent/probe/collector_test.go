package probe

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
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
		if after := runtime.NumGoroutine(); after > before {
			t.Errorf("%d goroutines, before %d", after, before)
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

func TestACancelledCollectionIsNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := collectorOf(Probe{Section: "tpm", Collect: func(ctx context.Context, _ Host, ev *posturev1.Evidence) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
				return nil
			}
		}})
		expectReading(t, c.Collect(t.Context()), "tpm", observed, "")

		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		began := time.Now()
		if ev := c.Collect(ctx); ev.GetTpm().GetReading().GetState() != failed {
			t.Errorf("reading %v", ev.GetTpm().GetReading())
		}
		if took := time.Since(began); took != time.Millisecond {
			t.Errorf("took %v", took)
		}
		synctest.Wait()
		expectReading(t, c.Collect(t.Context(), "vpn"), "tpm", observed, "")
	})
}

func TestCollectReadsOnlyWhatIsNamed(t *testing.T) {
	var tpm, vpn int // written by the probes, read once they have answered
	counting := func(section string, reads *int) Probe {
		return Probe{Section: section, Collect: func(context.Context, Host, *posturev1.Evidence) error {
			*reads++
			return nil
		}}
	}
	c := collectorOf(counting("tpm", &tpm), counting("vpn", &vpn))
	for _, step := range []struct {
		sections []string
		tpm, vpn int
	}{
		{[]string{"vpn"}, 1, 1}, // tpm was never read
		{[]string{"vpn"}, 1, 2},
		{[]string{"volumes"}, 1, 2},
		{nil, 2, 3},
		{[]string{"tpm", "vpn"}, 3, 4},
	} {
		ev := c.Collect(t.Context(), step.sections...)
		if tpm != step.tpm || vpn != step.vpn {
			t.Errorf("after %v: tpm read %d times, vpn %d times", step.sections, tpm, vpn)
		}
		expectReading(t, ev, "tpm", observed, "")
		expectReading(t, ev, "vpn", observed, "")
	}
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
