package identity

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/agent/uplink"
	"pfoertner/internal/attest/chip"
)

// Waiting is told how an enrolment that is not finished stands.
type Waiting interface {
	// NotYet is told why there is no certificate: a *PendingError, the
	// collector's refusal, or that it cannot be reached.
	NotYet(error)
}

// lookEvery is how often a notebook that waits looks at its own identity file.
const lookEvery = 15 * time.Second

// Obtain returns when there is a certificate: at once when there is one already,
// be it expired or not, otherwise by enrolling with what prepare returns, again
// and again, also while the TPM does not answer. It returns an error when ctx
// ends, ErrBroken, and ErrOtherKind when there is a key in the TPM and this
// agent is set to software.
func (s *State) Obtain(ctx context.Context, prepare func() (Enrolment, error), w Waiting, log *slog.Logger) error {
	retry, refused := uplink.Retry(), uplink.Refused()
	withhold := false
	for {
		id, err := s.Load()
		if err == nil && id.Enrolled() {
			return nil
		}
		if err == nil || errors.Is(err, ErrNotEnrolled) || s.raises(err) {
			err = s.attempt(ctx, prepare, withhold, log)
		}
		if err == nil || errors.Is(err, ErrBroken) || errors.Is(err, ErrOtherKind) && !s.raises(err) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		w.NotYet(err)
		var other *CopiedError
		if errors.As(err, &other) {
			log.Warn("identity of another machine set aside", "file", other.Aside, "not_in_tpm", other.Foreign)
			continue
		}
		withhold = s.withholds(withhold, err)
		wait := patience(err, retry, refused)
		log.Warn("not enrolled yet", "error", err, "next_attempt_in", wait.Round(time.Second))
		if err := s.await(ctx, wait); err != nil {
			return err
		}
	}
}

// withholds says whether the next attempt is without the token: a token that is
// refused must not stand in the way of a TPM that the collector has come to
// expect. before is whether the attempt was that ended with err.
func (s *State) withholds(before bool, err error) bool {
	return s.Chip() != nil && !before && status.Code(err) == codes.PermissionDenied
}

// raises says whether err is about a software key that one in the TPM is to
// replace.
func (s *State) raises(err error) bool { return errors.Is(err, ErrOtherKind) && s.Chip() != nil }

// await waits, but not much longer than until somebody else has enrolled this
// notebook: a person at the command line. It returns an error when ctx ends.
func (s *State) await(ctx context.Context, wait time.Duration) error {
	timer, look := time.NewTimer(wait), time.NewTicker(lookEvery)
	defer timer.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return nil
		case <-look.C:
			if id, err := s.read(); err == nil && id.Enrolled() {
				return nil
			}
		}
	}
}

func (s *State) attempt(ctx context.Context, prepare func() (Enrolment, error), withhold bool, log *slog.Logger) error {
	e, err := prepare()
	if err != nil {
		return err
	}
	if withhold {
		e.Token = ""
	}
	id, err := s.Enrol(ctx, e)
	if err != nil {
		return err
	}
	log.Info("enrolled", "device_id", id.DeviceID, "asset_number", id.AssetNumber)
	return nil
}

// patience is how long to wait after an attempt. A pending enrolment is asked
// about when the collector said, between 10 s and an hour.
func patience(err error, retry, refused *uplink.Backoff) time.Duration {
	var p *PendingError
	if errors.As(err, &p) && !p.AskAgainAt.IsZero() {
		return min(max(time.Until(p.AskAgainAt), 10*time.Second), time.Hour)
	}
	code := status.Code(err)
	if errors.Is(err, chip.ErrUnavailable) || code == codes.Unavailable || code == codes.DeadlineExceeded {
		return retry.Next()
	}
	return refused.Next()
}
