package probe

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pfoertner/internal/posture"
)

func TestWatchTellsTheFirstChangeAtOnceAndTheRestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changes, told := coalesced(t)
		changes <- []string{"vpn"}
		synctest.Wait()
		expectTold(t, told, at(0, "vpn"))

		// A storm of five seconds, and one change elsewhere in its midst.
		for i := range 500 {
			changes <- []string{"vpn"}
			if i == 100 {
				changes <- []string{"volumes"}
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		expectTold(t, told,
			at(0, "vpn"), at(250, "vpn"), at(750, "vpn"), at(1000, "volumes"), at(1750, "vpn"), at(3750, "vpn"), at(7750, "vpn"))

		// After calm, the first change is told at once again.
		changes <- []string{"vpn", "volumes"}
		synctest.Wait()
		if last := (*told)[len(*told)-1]; last.after != 65*time.Second || last.sections != "vpn volumes" {
			t.Errorf("told %v", last)
		}
	})
}

func TestWatchStartsASourceAgainThatBroke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		starts := 0
		w := &Watcher{Log: slog.New(slog.NewTextHandler(&log, nil)), sources: []source{{
			name: "links", covers: []string{"vpn"},
			watch: func(ctx context.Context, _ func(...string)) error {
				if starts++; starts == 1 {
					return errors.New("no buffer")
				}
				<-ctx.Done()
				return ctx.Err()
			},
		}}}
		ctx, cancel := context.WithCancelCause(t.Context())
		var told []notice
		began := time.Now()
		ended := make(chan error)
		go func() {
			ended <- w.Watch(ctx, func(s ...string) { told = append(told, notice{time.Since(began), strings.Join(s, " ")}) })
		}()
		time.Sleep(2 * retryPause)
		reason := errors.New("shutting down")
		cancel(reason)
		if err := <-ended; !errors.Is(err, reason) {
			t.Errorf("ended by %v", err)
		}
		if starts != 2 || !slices.Equal(told, []notice{{retryPause, "vpn"}}) {
			t.Errorf("%d starts, told %v", starts, told)
		}
		if n := strings.Count(log.String(), "watching for changes broke"); n != 1 || !strings.Contains(log.String(), "no buffer") {
			t.Errorf("log: %s", log.String())
		}
	})
}

func TestResumingFromSleepChangesEverything(t *testing.T) {
	suspended := []time.Duration{time.Hour, time.Hour, time.Hour + time.Microsecond, 9 * time.Hour, 9 * time.Hour}
	slept := func() (time.Duration, error) {
		now := suspended[0]
		suspended = suspended[1:]
		return now, nil
	}
	over := errors.New("over")
	wait := func() error {
		if len(suspended) == 0 {
			return over
		}
		return nil
	}
	var told [][]string
	err := watchSleep(wait, slept, func(s ...string) { told = append(told, s) })
	if !errors.Is(err, over) || len(told) != 1 || !slices.Equal(told[0], posture.Sections()) {
		t.Errorf("%v, told %v: setting the clock is no sleep, eight hours are", err, told)
	}
}

type notice struct {
	after    time.Duration
	sections string
}

func at(milliseconds int, sections string) notice {
	return notice{time.Duration(milliseconds) * time.Millisecond, sections}
}

// coalesced runs coalesce until the test ends and keeps what it tells.
func coalesced(t *testing.T) (chan<- []string, *[]notice) {
	changes := make(chan []string)
	told := &[]notice{}
	began := time.Now()
	go coalesce(t.Context(), changes, func(s ...string) {
		*told = append(*told, notice{time.Since(began), strings.Join(s, " ")})
	})
	return changes, told
}

func expectTold(t *testing.T, told *[]notice, want ...notice) {
	t.Helper()
	if !slices.Equal(*told, want) {
		t.Errorf("told %v, expected %v", *told, want)
	}
}
