package probe

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// slowly makes the notebook's searches last until the returned function is
// called.
func (n *windowsNotebook) slowly() (end func()) {
	ended := make(chan struct{})
	n.updates.answer = func(ctx context.Context) (UpdateSearch, error) {
		select {
		case <-ended:
			return n.search, nil
		case <-ctx.Done():
			return UpdateSearch{}, context.Cause(ctx)
		}
	}
	return func() { close(ended); synctest.Wait() }
}

func searchReading(p *posturev1.Patch) string {
	r := p.GetWindowsUpdate().GetReading()
	return strings.TrimSpace(strings.TrimPrefix(r.GetState().String(), "READING_STATE_") + " " + r.GetReason())
}

func TestSearchThatTakesMinutesIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newWindowsNotebook(nil)
		end := n.slowly()
		for range 2 {
			began := time.Now()
			if got := searchReading(n.patch(t)); got != "FAILED the search for updates runs since 2026-06-20T08:00:00Z" {
				t.Errorf("before the first answer: %s", got)
			}
			if took := time.Since(began); took > searchPatience {
				t.Errorf("the reading took %v", took)
			}
			n.now = n.now.Add(time.Minute)
		}
		end()
		if got := searchReading(n.patch(t)); got != "OBSERVED" || n.updates.asked != 1 {
			t.Errorf("with the answer: %s after %d searches", got, n.updates.asked)
		}
	})
}

func TestOlderAnswerServesWhileANewerSearchRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newWindowsNotebook(nil)
		waiting := securityUpdate("5094126")
		waiting.Reboot, waiting.Downloaded = true, true
		n.search.Pending, n.search.Restart = []OfferedUpdate{waiting}, &RestartRequired{Required: true}
		n.patch(t)

		// The notebook was restarted: what the answer says of that is over.
		n.registry[bootCountKey+`\BootId`] = 18
		end := n.slowly()
		p := n.patch(t)
		if got := searchReading(p); got != "OBSERVED" || p.GetPendingSecurity() != 1 || p.GetRebootPending().GetPending() != no {
			t.Errorf("%s, %d pending, %v", got, p.GetPendingSecurity(), p.GetRebootPending())
		}
		n.now = n.now.Add(searchKept)
		if got := searchReading(n.patch(t)); !strings.HasPrefix(got, "FAILED the search for updates runs since") {
			t.Errorf("but not for ever: %s", got)
		}
		end()
	})
}

func TestSearchThatNeverEndsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newWindowsNotebook(nil)
		n.slowly()
		n.patch(t)
		time.Sleep(searchLimit)
		synctest.Wait()
		n.now = n.now.Add(searchLimit)
		if got := searchReading(n.patch(t)); got != "FAILED no answer" {
			t.Errorf("after its end: %s", got)
		}
		n.now = n.now.Add(searchRetry)
		if got := searchReading(n.patch(t)); got != "FAILED no answer" || n.updates.asked != 2 {
			t.Errorf("while the next one runs: %s after %d searches", got, n.updates.asked)
		}
		time.Sleep(searchLimit) // no goroutine may be left
	})
}

func TestAnswerOutlivesTheAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "search.json")
	synctest.Test(t, func(t *testing.T) {
		n := newWindowsNotebook(nil)
		n.probe = patchProbe(nil, NewUpdateSearches(path))
		n.search.Pending = []OfferedUpdate{securityUpdate("5094126")}
		n.patch(t)

		later := newWindowsNotebook(nil)
		later.now = n.now.AddDate(0, 0, 2)
		later.probe = patchProbe(nil, NewUpdateSearches(path))
		end := later.slowly()
		p := later.patch(t)
		if got := searchReading(p); got != "OBSERVED" || p.GetPendingSecurity() != 1 || later.updates.asked != 1 {
			t.Errorf("%s, %d pending, %d searches", got, p.GetPendingSecurity(), later.updates.asked)
		}
		if !p.GetWindowsUpdate().GetLastSearchAt().AsTime().Equal(n.search.LastSearch) {
			t.Errorf("the knowledge is of %v", p.GetWindowsUpdate().GetLastSearchAt().AsTime())
		}
		end()
	})
	for name, content := range map[string]string{"damaged": "{", "a failure": `{"at":"2026-06-20T08:00:00Z","answer":{"code":3}}`, "empty": ""} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			n := newWindowsNotebook(nil)
			n.probe = patchProbe(nil, NewUpdateSearches(path))
			end := n.slowly()
			if got := searchReading(n.patch(t)); !strings.HasPrefix(got, "FAILED the search for updates runs since") {
				t.Errorf("%s: %s", name, got)
			}
			end()
		})
	}
}

func TestEndOfALongSearchIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		searches := NewUpdateSearches("")
		n := newWindowsNotebook(nil)
		n.probe = patchProbe(nil, searches)
		var told []string
		w := &Watcher{}
		w.Follow(searches)
		ctx, cancel := context.WithCancel(t.Context())
		watching := make(chan error)
		go func() { watching <- w.Watch(ctx, func(sections ...string) { told = append(told, sections...) }) }()

		n.patch(t) // answered at once: nothing to tell
		synctest.Wait()
		if len(told) != 0 {
			t.Errorf("told %v", told)
		}
		n.now = n.now.Add(searchEvery)
		end := n.slowly()
		n.patch(t)
		time.Sleep(time.Minute)
		end()
		if strings.Join(told, ",") != "patch" {
			t.Errorf("told %v", told)
		}
		cancel()
		<-watching
	})
}

// A reading that is ended early goes on without an answer that comes soon.
func TestEndOfAShortSearchIsToldToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		searches := NewUpdateSearches("")
		n := newWindowsNotebook(nil)
		end := n.slowly()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if answer, err := searches.current(ended, &n.updates, searchState{}, n.now); err == nil {
			t.Fatalf("answered with %v", answer)
		}
		end()
		if len(searches.late) != 1 {
			t.Error("nobody is told that the answer is there")
		}
	})
}
