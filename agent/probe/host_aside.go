package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	// maxAsideBytes is far above any answer: a thousand offered updates take
	// about 300 kB.
	maxAsideBytes = 4 << 20
	// maxComplaintBytes of what the process says on its error output are kept.
	maxComplaintBytes = 200
	// asideGrace is how long pipes may stay open after the process was ended.
	asideGrace = 2 * time.Second
)

var errTooMuch = errors.New("it printed too much")

// asideProcess starts processes that read aside.
type asideProcess struct {
	// program and arguments before the reading's name.
	program   string
	arguments []string
	// prepare sets up the process before it is started; may be nil.
	prepare func(*exec.Cmd)
	// confine binds the started process, before it does anything, to limits
	// that end when release is called; may be nil.
	confine func(*os.Process, asideLimits) (release func(), err error)
}

// launch runs the process for one reading, asks it the question and returns
// what it printed.
func (p asideProcess) launch(ctx context.Context, name, question string) ([]byte, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	cmd := exec.CommandContext(ctx, p.program, append(p.arguments[:len(p.arguments):len(p.arguments)], name)...)
	cmd.WaitDelay = asideGrace
	answer := &limited{max: maxAsideBytes, full: func() { stop(errTooMuch) }}
	complaint := &limited{max: maxComplaintBytes}
	cmd.Stdout, cmd.Stderr = answer, complaint
	begin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("starting reading %s: %w", name, err)
	}
	if p.prepare != nil {
		p.prepare(cmd)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting reading %s: %w", name, err)
	}
	if p.confine != nil {
		release, err := p.confine(cmd.Process, asideLimitsOf(name))
		if err != nil {
			stop(err)
			return nil, errors.Join(fmt.Errorf("confining reading %s: %w", name, err), begin.Close(), ignoreKilled(cmd.Wait()))
		}
		defer release()
	}
	// An error here means that the process is gone: Wait tells more.
	_, _ = io.WriteString(begin, question+"\n")
	err = cmd.Wait()
	switch {
	case errors.Is(context.Cause(ctx), errTooMuch):
		return nil, &brokenError{errTooMuch}
	case err != nil:
		return nil, &brokenError{fmt.Errorf("it ended with %w%s", err, lastWords(complaint.kept.String()))}
	}
	return answer.kept.Bytes(), nil
}

// lastWords is the first line of what a process said before it ended, to be
// put behind its exit status: a crash of Go begins with its reason. What has a
// path in it stays here, because people's names are in paths, and the reason
// of a reading goes to the collector.
func lastWords(complaint string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(complaint), "\n")
	if line = strings.TrimSpace(line); line == "" || strings.ContainsAny(line, `\/`) {
		return ""
	}
	return ": " + line
}

// ignoreKilled drops the error of a process that was ended on purpose.
func ignoreKilled(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// limited keeps the first max bytes and drops the rest; full is called when
// there is a rest. The buffer is not embedded: its ReadFrom has no limit.
type limited struct {
	kept bytes.Buffer
	max  int
	full func()
}

func (l *limited) Write(b []byte) (int, error) {
	room := l.max - l.kept.Len()
	if room < len(b) && l.full != nil {
		l.full()
	}
	l.kept.Write(b[:min(room, len(b))])
	return len(b), nil
}
