package identity

import (
	"context"
	"log/slog"
)

// Withholds says whether the attempt after one that ended with err is without
// the token.
func (s *State) Withholds(before bool, err error) bool { return s.withholds(before, err) }

// Attempt is one attempt of Obtain.
func (s *State) Attempt(ctx context.Context, prepare func() (Enrolment, error), withhold bool) error {
	return s.attempt(ctx, prepare, withhold, slog.New(slog.DiscardHandler))
}
