package probe

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// searchEvery is how long the answer of a search is used when nothing
	// suggests that it has changed.
	searchEvery = 4 * time.Hour
	// searchKept is how long it is used at most while a newer search runs.
	searchKept = 24 * time.Hour
	// searchRetry lies between a search that failed and the next one.
	searchRetry = 30 * time.Minute
	// searchPatience is how long a reading waits for a search. It goes on
	// without it, and the next reading finds its answer.
	searchPatience = 5 * time.Second
)

var errStillSearching = errors.New("the search has not ended yet")

// searchState is what makes the answer of a search worthless when it changes:
// what is installed, what waits for a restart, and whether there was one.
type searchState struct {
	policy  updatePolicy
	restart string
	ubr     uint64
	// started names the start of Windows.
	started string
}

// updateSearches keeps the answer of the last search.
type updateSearches struct {
	answer *UpdateSearch
	err    error
	at     time.Time
	state  searchState
}

// current is the newest answer, from a new search where it is due.
func (s *updateSearches) current(ctx context.Context, updates Updates, state searchState, now time.Time) (*UpdateSearch, error) {
	if updates == nil {
		return nil, errors.New("the Windows Update Agent cannot be asked on this machine")
	}
	age := now.Sub(s.at)
	valid := !s.at.IsZero() && s.state == state && age >= 0
	due := searchEvery
	if s.err != nil || s.answer != nil && searchProblem(s.answer) != nil {
		due = searchRetry
	}
	if valid && age < due {
		return s.answer, s.err
	}
	patient, cancel := context.WithTimeoutCause(ctx, searchPatience, errStillSearching)
	defer cancel()
	answer, err := updates.Search(patient)
	if err != nil && (errors.Is(err, errStillSearching) || patient.Err() != nil) {
		if valid && age < searchKept && s.err == nil {
			return s.answer, nil
		}
		return nil, err
	}
	*s = updateSearches{at: now, state: state, err: err}
	if err == nil {
		s.answer = &answer
	}
	return s.answer, s.err
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
