// Package notice tells the person at the notebook that access is refused: why,
// what to do, and the code for the help desk.
//
// Rules. A notice disturbs, so it comes at most once per cause and day, never
// for warnings, and not at all when the policy says so. Nobody waits for it to
// be read. Where nobody is signed in, it comes after the next sign-in, if
// access is still refused then. Who that is, is none of our business: sessions
// are addressed by number, and no name of a user is asked for, logged or kept.
package notice

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"os"
	"sync"
	"time"

	"pfoertner/agent/durable"
	"pfoertner/agent/status"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Command is the agent's hidden command that runs Deliver.
const Command = "deliver-notice"

const (
	// lookAgain is when a notice that nobody was there for is tried again.
	lookAgain = time.Minute
	// patience is how long showing may take.
	patience = 20 * time.Second
	// maxFileBytes and maxCodes are far above the codes of one day.
	maxFileBytes = 64 << 10
	maxCodes     = 100
)

// Text is a notice in one language.
type Text struct{ Title, Body string }

// Screens are those of the people who are signed in and at their desks.
type Screens interface {
	// Show shows a notice on every screen in the language that its session
	// speaks (text is asked for a locale, "de-DE", "en_GB.UTF-8", empty: not
	// known), without waiting for anybody to read it. It returns how many there
	// were, zero when nobody is signed in; the others are shown also with an
	// error.
	Show(ctx context.Context, text func(locale string) Text) (shown int, err error)
}

// Options of a Bell.
type Options struct {
	Screens Screens
	// File remembers what was shown today.
	File string
	Now  func() time.Time
	Log  *slog.Logger
}

// Bell shows notices.
type Bell struct {
	Options
	ring chan struct{}

	shown memory // of Run alone

	mu     sync.Mutex
	newest *posturev1.Result
}

// New returns a bell that is silent until Run.
func New(o Options) *Bell { return &Bell{Options: o, ring: make(chan struct{}, 1)} }

// Judged is told every result. It does not wait.
func (b *Bell) Judged(r *posturev1.Result) {
	b.mu.Lock()
	b.newest = r
	b.mu.Unlock()
	select {
	case b.ring <- struct{}{}:
	default:
	}
}

// Run shows what has to be shown until ctx ends.
func (b *Bell) Run(ctx context.Context) {
	again := time.NewTimer(lookAgain)
	defer again.Stop()
	troubled := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.ring:
		case <-again.C:
		}
		waiting, err := b.look(ctx)
		if err != nil && !troubled {
			b.Log.Warn("notice of refusal not shown", "error", err)
		}
		troubled = err != nil
		if waiting {
			again.Reset(lookAgain)
		}
	}
}

// look shows the notice for the newest result if it is due. waiting says that
// it is still to be shown.
func (b *Bell) look(ctx context.Context) (waiting bool, err error) {
	b.mu.Lock()
	result := b.newest
	b.mu.Unlock()
	if !wanted(result) {
		return false, nil
	}
	// The first result of the next day shows it again; the collector sends one
	// for every report.
	if today := b.Now().Format(time.DateOnly); b.shown.Day != today {
		b.shown = b.read(today)
	}
	if b.shown.Codes[result.GetCode()] {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	screens, err := b.Screens.Show(ctx, func(locale string) Text {
		title, body, _ := status.Refusal(result, status.Language(locale))
		return Text{Title: title, Body: body}
	})
	if screens == 0 {
		return true, err
	}
	b.Log.Info("notice of refusal shown", "code", result.GetCode(), "screens", screens)
	b.shown.add(result.GetCode())
	return false, b.write()
}

// wanted says whether a result is one that people are told of.
func wanted(r *posturev1.Result) bool {
	if r == nil || r.GetWithoutNotice() {
		return false
	}
	_, _, refused := status.Refusal(r, status.Language(""))
	return refused
}

// memory is what was shown on one day of the notebook's calendar.
type memory struct {
	Day   string          `json:"day"`
	Codes map[string]bool `json:"codes"`
}

func (m *memory) add(code string) {
	if len(m.Codes) >= maxCodes {
		clear(m.Codes)
	}
	m.Codes[code] = true
}

// read returns what was shown today. A file that is gone or damaged costs a
// notice that is shown twice.
func (b *Bell) read(day string) memory {
	today := memory{Day: day, Codes: map[string]bool{}}
	content, err := os.ReadFile(b.File)
	if err != nil || len(content) > maxFileBytes {
		return today
	}
	if m := parse(content); m.Day == day {
		maps.Copy(today.Codes, m.Codes)
	}
	return today
}

func parse(content []byte) memory {
	var m memory
	if err := json.Unmarshal(content, &m); err != nil {
		return memory{}
	}
	return m
}

func (b *Bell) write() error {
	content, err := json.Marshal(b.shown)
	if err != nil {
		return err
	}
	return durable.WriteFile(b.File, content, 0o600)
}
