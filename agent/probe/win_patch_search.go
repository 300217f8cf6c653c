package probe

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"pfoertner/agent/durable"
)

const (
	// searchEvery is how long the answer of a search is used when nothing
	// suggests that it has changed.
	searchEvery = 4 * time.Hour
	// searchRetry lies between a search that failed and the next one.
	searchRetry = 30 * time.Minute
	// searchPatience is how long the service's readings wait for a search.
	searchPatience = 5 * time.Second
	// searchLimit ends a search whatever its process does.
	searchLimit = 20 * time.Minute
	// searchKept is how old an answer may be that is used while the next search
	// runs: every start of the notebook would otherwise be minutes without
	// access. How old the knowledge in it is, last_search_at tells.
	searchKept = 7 * 24 * time.Hour
)

// UpdateSearches are the searches for updates of Windows: they run while
// readings go on without them, and their last answer outlives the agent. Use
// NewUpdateSearches.
type UpdateSearches struct {
	// Patience is how long a reading waits for a search, which goes on without
	// it; zero means a few seconds. Set it before Probes.
	Patience time.Duration

	path string
	// late is told when a search ends that a reading has not waited for.
	late chan struct{}

	// What follows belongs to the one reading that runs at a time.
	loaded  bool
	answer  *UpdateSearch
	err     error
	at      time.Time // when it was asked; zero: never
	state   searchState
	running *updateRun
}

// NewUpdateSearches keeps the last answer in a file, whose directory must exist;
// without a path only while the agent runs.
func NewUpdateSearches(path string) *UpdateSearches {
	return &UpdateSearches{path: path, late: make(chan struct{}, 1)}
}

// searchState is what makes an answer worthless when it changes: the policy,
// what is installed, what waits for a restart, and whether there was one.
type searchState struct {
	policy  updatePolicy
	restart string
	ubr     uint64
	// started names the start of Windows.
	started string
}

// updateRun is a search that runs. answer and err are valid once done is closed.
type updateRun struct {
	began time.Time
	state searchState
	// left is set by a reading that goes on without the answer.
	left   atomic.Bool
	done   chan struct{}
	answer UpdateSearch
	err    error
}

// current is the newest answer, from a new search where it is due. It waits for
// one only for a moment.
func (s *UpdateSearches) current(ctx context.Context, updates Updates, state searchState, now time.Time) (*UpdateSearch, error) {
	if updates == nil {
		return nil, errors.New("the Windows Update Agent cannot be asked on this machine")
	}
	s.load()
	if s.running == nil && s.fresh(state, now) {
		return s.answer, s.err
	}
	if s.running == nil {
		s.running = s.start(ctx, updates, state, now)
	}
	patience := time.NewTimer(cmp.Or(s.Patience, searchPatience))
	defer patience.Stop()
	select {
	case <-s.running.done:
		s.take(s.running)
		return s.answer, s.err
	case <-patience.C:
	case <-ctx.Done():
	}
	s.running.left.Store(true)
	select {
	case <-s.running.done: // at the last moment: nobody will tell
		s.take(s.running)
		return s.answer, s.err
	default:
	}
	switch age := now.Sub(s.at); {
	case s.err != nil:
		return nil, s.err // the same reason until it is over
	case s.answer != nil && searchProblem(s.answer) == nil && age >= 0 && age < searchKept:
		return s.older(state), nil
	}
	return nil, fmt.Errorf("the search for updates runs since %s", s.running.began.UTC().Format(time.RFC3339))
}

// fresh says whether the last answer may be used without a new search.
func (s *UpdateSearches) fresh(state searchState, now time.Time) bool {
	due := searchEvery
	if s.err != nil || s.answer != nil && searchProblem(s.answer) != nil {
		due = searchRetry
	}
	age := now.Sub(s.at)
	return !s.at.IsZero() && s.state == state && age >= 0 && age < due
}

// older is the last answer while a newer one is on its way. What it says of
// restarts does not outlive one.
func (s *UpdateSearches) older(state searchState) *UpdateSearch {
	if s.state.started == state.started && state.started != "" {
		return s.answer
	}
	answer := *s.answer
	answer.Restart = nil
	answer.Pending = make([]OfferedUpdate, len(s.answer.Pending))
	for i, u := range s.answer.Pending {
		u.Reboot = false
		answer.Pending[i] = u
	}
	return &answer
}

// start searches until it is answered or searchLimit is over, also when the
// reading that asked has ended.
func (s *UpdateSearches) start(ctx context.Context, updates Updates, state searchState, now time.Time) *updateRun {
	r := &updateRun{began: now, state: state, done: make(chan struct{})}
	go func() {
		ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), searchLimit, errTimeout)
		defer cancel()
		r.answer, r.err = updates.Search(ctx)
		close(r.done)
		if !r.left.Load() {
			return
		}
		select {
		case s.late <- struct{}{}:
		default:
		}
	}()
	return r
}

// take keeps the answer of a run that has ended.
func (s *UpdateSearches) take(r *updateRun) {
	s.running = nil
	s.answer, s.err, s.at, s.state = nil, r.err, r.began, r.state
	if r.err != nil {
		return
	}
	s.answer = &r.answer
	if searchProblem(s.answer) == nil {
		s.save()
	}
}

// keptSearch is the file.
type keptSearch struct {
	At     time.Time    `json:"at"`
	Answer UpdateSearch `json:"answer"`
}

// load reads the file once. An older answer only bridges the next search:
// without one the reading says that it runs, so no error is lost here.
func (s *UpdateSearches) load() {
	if s.loaded || s.path == "" {
		return
	}
	s.loaded = true
	content, err := os.ReadFile(s.path)
	if err != nil {
		return
	}
	var kept keptSearch
	if decodeExactly(content, &kept) == nil && searchProblem(&kept.Answer) == nil {
		s.answer, s.at = &kept.Answer, kept.At
		s.state.started = "before this agent"
	}
}

// save replaces the file. Without it the next start of the agent has nothing to
// bridge its first search with, which is no reason to lose this answer.
func (s *UpdateSearches) save() {
	if s.path == "" {
		return
	}
	content, err := json.Marshal(keptSearch{At: s.at, Answer: *s.answer})
	if err == nil {
		_ = durable.WriteFile(s.path, content, 0o600)
	}
}

// Follow makes the watcher tell when a search ends that a reading has not
// waited for. Call it before Watch.
func (w *Watcher) Follow(s *UpdateSearches) {
	w.sources = append(w.sources, source{
		name: "update search", covers: []string{"patch"},
		watch: func(ctx context.Context, changed func(...string)) error {
			for {
				select {
				case <-s.late:
					changed("patch")
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		},
	})
}

// installedRevision is what the registry says is installed; zero when it does
// not, which the platform section reports.
func installedRevision(w *Windows) uint64 {
	build, _ := registryBuild(w.Registry, "CurrentBuild")
	ubr, _, _ := registryNumber(w.Registry, currentVersionKey, "UBR")
	return uint64(build)<<32 | ubr
}

// startOf names the start of Windows; empty when it is not known.
func startOf(ctx context.Context, h Host) string {
	if boots, set, _ := registryNumber(h.Windows.Registry, bootCountKey, "BootId"); set {
		return fmt.Sprint(boots)
	}
	if h.System == nil {
		return ""
	}
	info, _ := h.System.Info(ctx) // what fails there, platform reports
	return info.BootTime.Round(2 * clockCorrection).UTC().Format(time.RFC3339)
}
