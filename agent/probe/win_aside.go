package probe

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// All COM runs aside: in a process of the same binary, one for each answer.
// The providers behind it may hang, leak or crash, and none of that reaches the
// service. This file is the protocol between the two processes and the patience
// of the one that asks; host_aside.go starts the process.

// AsideCommand is the hidden command of the agent's binary that makes one
// reading: "pfoertner-agent reading bitlocker".
const AsideCommand = "reading"

// The readings that are made aside.
const (
	asideBitLocker = "bitlocker"
	asideUpdates   = "updates"
	asideFirewall  = "firewall"
	asideAntivirus = "antivirus"
	asideDialups   = "dialups"
	asideProgram   = "program"
	asideLicences  = "licences"
)

// asideRead makes one reading. The question is what it is about, one line;
// empty for a reading that is about the machine. The answer is a struct of
// win_host.go.
type asideRead func(ctx context.Context, question string) (any, error)

// asideReading turns a typed reading about the machine into one by name.
func asideReading[T any](read func(context.Context) (T, error)) asideRead {
	return func(ctx context.Context, _ string) (any, error) { return read(ctx) }
}

// asideQuestion turns a typed reading about something into one by name.
func asideQuestion[T any](read func(ctx context.Context, question string) (T, error)) asideRead {
	return func(ctx context.Context, question string) (any, error) { return read(ctx, question) }
}

// maxQuestion is far above the longest path.
const maxQuestion = 64 << 10

// asideMessage is what the process prints: exactly one of the two.
type asideMessage struct {
	Answer json.RawMessage `json:"answer,omitempty"`
	Error  *asideError     `json:"error,omitempty"`
}

// asideError is an error that crosses the border between the processes.
type asideError struct {
	Text string `json:"text"`
	// Kind keeps what the caller tells apart: "not_found", "not_applicable".
	Kind string `json:"kind,omitempty"`
}

// asideKinds are the errors that keep their meaning.
var asideKinds = []struct {
	name string
	err  error
}{
	{"not_found", ErrNotFound},
	{"not_applicable", ErrNotApplicable},
}

func newAsideError(err error) *asideError {
	e := &asideError{Text: oneLine(err.Error())}
	for _, kind := range asideKinds {
		if errors.Is(err, kind.err) {
			e.Kind = kind.name
			e.Text = strings.TrimSuffix(e.Text, ": "+kind.err.Error())
		}
	}
	return e
}

// restore returns the error as it was on the other side.
func (e *asideError) restore() error {
	for _, kind := range asideKinds {
		if e.Kind == kind.name {
			return fmt.Errorf("%s: %w", oneLine(e.Text), kind.err)
		}
	}
	return errors.New(oneLine(e.Text))
}

// ReadAside is the hidden command: it waits for a line on in, the question, so
// that whoever started it can confine it first, makes the reading and prints the answer. A
// reading that fails is an answer too; the error returned is about in, out and
// an unknown name. Who tries it by hand presses Enter.
func ReadAside(ctx context.Context, name string, in io.Reader, out io.Writer) error {
	return readAside(ctx, asideReadings(), name, in, out)
}

func readAside(ctx context.Context, readings map[string]asideRead, name string, in io.Reader, out io.Writer) error {
	read, ok := readings[name]
	if !ok {
		return fmt.Errorf("there is no reading %q on this system", name)
	}
	question, err := bufio.NewReader(io.LimitReader(in, maxQuestion)).ReadString('\n')
	if err != nil {
		return fmt.Errorf("waiting for the start: %w", err)
	}
	var message asideMessage
	answer, err := read(ctx, strings.TrimRight(question, "\r\n"))
	if err == nil {
		message.Answer, err = json.Marshal(answer)
	}
	if err != nil {
		message = asideMessage{Error: newAsideError(err)}
	}
	if err := json.NewEncoder(out).Encode(message); err != nil {
		return fmt.Errorf("printing reading %s: %w", name, err)
	}
	return nil
}

// decodeAside reads what the process printed into answer.
func decodeAside(output []byte, answer any) error {
	var message asideMessage
	if err := json.Unmarshal(output, &message); err != nil {
		return &brokenError{fmt.Errorf("its answer is damaged: %w", err)}
	}
	switch {
	case message.Error != nil:
		return message.Error.restore()
	case message.Answer == nil:
		return &brokenError{errors.New("it answered nothing")}
	}
	if err := decodeExactly(message.Answer, answer); err != nil {
		return &brokenError{fmt.Errorf("its answer is damaged: %w", err)}
	}
	return nil
}

// decodeExactly reads what this very program has written. What another version
// wrote, as after an upgrade under a running service, may lack a value or have
// one under another name: that would be a zero here, and zero means success,
// "on" or "good" in the answers of Windows.
func decodeExactly(content []byte, into any) error {
	if err := json.Unmarshal(content, into); err != nil {
		return err
	}
	again, err := json.Marshal(into)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, content) {
		return errors.New("it was not written by this version")
	}
	return nil
}

// brokenError says that the process hung, crashed or babbled: there was no
// answer, not even a failed one.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

const (
	// asideFirstRest follows the first run that broke; each further one doubles
	// it, up to asideLongestRest.
	asideFirstRest   = time.Minute
	asideLongestRest = time.Hour
)

// aside asks for one reading, one process at a time. What hung, crashed or
// babbled is left in peace for a while.
type aside struct {
	name    string
	timeout time.Duration
	// keep is true for a reading that takes so long that an answer which comes
	// after whoever asked has gone serves the next who asks.
	keep bool
	// launch runs the process until it ends or ctx does, and returns what it
	// printed. It wraps brokenError for a process that did not end well.
	launch func(ctx context.Context, name, question string) ([]byte, error)
	now    func() time.Time
	// turn is full while somebody asks; what follows belongs to that one.
	turn chan struct{}
	run  *asideRun // the process that runs, or ended while nobody waited

	since  time.Time // first of the runs that broke; zero when the last one did not
	why    error
	rest   time.Duration
	resume time.Time
}

// asideRun is one process. output and err are valid once done is closed, which
// happens soon after the reading's time-out at the latest.
type asideRun struct {
	began  time.Time
	done   chan struct{}
	output []byte
	err    error
}

// ask makes one reading and decodes it into answer. The process is not ended
// when ctx is: whether it hangs, only its own time-out tells.
func (a *aside) ask(ctx context.Context, question string, answer any) error {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		own := a.run == nil
		if own && a.now().Before(a.resume) {
			return a.broken()
		}
		if own {
			a.run = a.start(question)
		}
		select {
		case <-a.run.done:
		case <-ctx.Done():
			return fmt.Errorf("Windows was asked for %s at %s and has not answered yet: %w", a.name,
				a.run.began.UTC().Format(time.RFC3339), context.Cause(ctx))
		}
		if own || a.keep {
			err := a.settle(a.run, answer)
			a.run = nil
			return err
		}
		// What was read before the question may have changed since, or be about
		// something else. Only whether it broke counts.
		err := a.settle(a.run, new(json.RawMessage))
		a.run = nil
		if !a.resume.IsZero() {
			return err
		}
	}
}

func (a *aside) start(question string) *asideRun {
	r := &asideRun{began: a.now(), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		ctx, cancel := context.WithTimeoutCause(context.Background(), a.timeout, errTimeout)
		defer cancel()
		r.output, r.err = a.launch(ctx, a.name, question)
		if ctx.Err() != nil {
			r.err = &brokenError{fmt.Errorf("%w within %s", errTimeout, a.timeout)}
		}
	}()
	return r
}

// settle decodes the answer of a run that has ended, and rests after one that
// broke.
func (a *aside) settle(r *asideRun, answer any) error {
	err := r.err
	if err == nil {
		err = decodeAside(r.output, answer)
	}
	if broken := new(brokenError); !errors.As(err, &broken) {
		a.since, a.why, a.rest, a.resume = time.Time{}, nil, 0, time.Time{}
		return err
	}
	if a.since.IsZero() {
		a.since = r.began
	}
	a.why = err
	a.rest = min(max(2*a.rest, asideFirstRest), asideLongestRest)
	a.resume = a.now().Add(a.rest)
	return a.broken()
}

// broken is the same for every question until the next run, so that evidence
// stays the same.
func (a *aside) broken() error {
	return fmt.Errorf("asking Windows for %s has given no answer since %s: %w", a.name, a.since.UTC().Format(time.RFC3339), a.why)
}

// asideLimits are how long a reading may take, and how much memory its process
// may commit.
type asideLimits struct {
	timeout time.Duration
	memory  uint64
}

// asideLimitsOf are generous where Windows is known to be slow: a search for
// updates took more than five minutes and leaked (kolide/launcher PRs 2185,
// 2230, 2235).
func asideLimitsOf(name string) asideLimits {
	if name == asideUpdates {
		return asideLimits{timeout: 15 * time.Minute, memory: 512 << 20}
	}
	return asideLimits{timeout: 20 * time.Second, memory: 128 << 20}
}

// asideNames are all readings that are made aside.
func asideNames() []string {
	return []string{asideBitLocker, asideUpdates, asideFirewall, asideAntivirus, asideDialups, asideProgram, asideLicences}
}

// asides are the capabilities that are asked aside.
type asides struct{ byName map[string]*aside }

// newAsides prepares all of them; launch as in aside.
func newAsides(now func() time.Time, launch func(ctx context.Context, name, question string) ([]byte, error)) asides {
	all := asides{byName: map[string]*aside{}}
	for _, name := range asideNames() {
		all.byName[name] = &aside{
			name: name, timeout: asideLimitsOf(name).timeout, keep: name == asideUpdates || name == asideLicences,
			launch: launch, now: now, turn: make(chan struct{}, 1),
		}
	}
	return all
}

// into puts the capabilities into w.
func (s asides) into(w *Windows) {
	w.BitLocker, w.Updates, w.Firewall, w.SecurityCenter = bitLockerAside{s}, updatesAside{s}, firewallAside{s}, antivirusAside{s}
	w.Dialups, w.Programs, w.Licences = dialupsAside{s}, programsAside{s}, licencesAside{s}
}

func askAside[T any](ctx context.Context, s asides, name, question string) (answer T, err error) {
	if strings.ContainsAny(question, "\r\n") || len(question) >= maxQuestion {
		return answer, errors.New("the question is not one line")
	}
	err = s.byName[name].ask(ctx, question, &answer)
	return answer, err
}

type bitLockerAside struct{ asides }

func (b bitLockerAside) Volumes(ctx context.Context) ([]EncryptableVolume, error) {
	return askAside[[]EncryptableVolume](ctx, b.asides, asideBitLocker, "")
}

type updatesAside struct{ asides }

func (u updatesAside) Search(ctx context.Context) (UpdateSearch, error) {
	return askAside[UpdateSearch](ctx, u.asides, asideUpdates, "")
}

type firewallAside struct{ asides }

func (f firewallAside) Profiles(ctx context.Context) (FirewallAnswer, error) {
	return askAside[FirewallAnswer](ctx, f.asides, asideFirewall, "")
}

type antivirusAside struct{ asides }

func (a antivirusAside) Antivirus(ctx context.Context) (SecurityAnswer, error) {
	return askAside[SecurityAnswer](ctx, a.asides, asideAntivirus, "")
}

type dialupsAside struct{ asides }

func (d dialupsAside) Connections(ctx context.Context) ([]Dialup, error) {
	return askAside[[]Dialup](ctx, d.asides, asideDialups, "")
}

type programsAside struct{ asides }

func (p programsAside) Identify(ctx context.Context, path string) (Program, error) {
	return askAside[Program](ctx, p.asides, asideProgram, path)
}

type licencesAside struct{ asides }

func (l licencesAside) ExtendedUpdates(ctx context.Context) ([]ProductLicence, error) {
	return askAside[[]ProductLicence](ctx, l.asides, asideLicences, "")
}
