package fleet

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/collector/enrolment"
)

// explain makes an error into one that a person can act on. Errors that already
// are a gRPC status stay as they are; those that only we can mend are logged
// with their method as well, because the operator may not be who mends them.
func (g guard) explain(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Internal
	switch {
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, fs.ErrNotExist):
		code = codes.NotFound
	case errors.Is(err, fs.ErrExist):
		code = codes.AlreadyExists
	case errors.Is(err, fs.ErrInvalid):
		code = codes.InvalidArgument
	case errors.Is(err, enrolment.ErrTransition):
		code = codes.FailedPrecondition
	default:
		g.log.LogAttrs(ctx, slog.LevelError, "operator's call failed", slog.String("method", method), slog.Any("error", err))
	}
	return status.Error(code, words.Replace(err.Error()))
}

// words are what people read for errors that the standard library words for
// files.
var words = strings.NewReplacer(
	fs.ErrNotExist.Error(), "not known here",
	fs.ErrExist.Error(), "taken already",
	": "+fs.ErrInvalid.Error(), "",
)

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

func notFound(format string, args ...any) error {
	return status.Errorf(codes.NotFound, format, args...)
}
