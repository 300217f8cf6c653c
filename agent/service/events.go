package service

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"pfoertner/agent/status"
)

// Event is an entry of the catalogue: what the agent logs, and what
// administrators read of it in the Windows event log. Numbers are stable: tools
// watch for them. They lie between 1 and 1000, the range of the message table
// in Windows' own EventCreate.exe, which shows any text for any of them; so
// the agent needs no message file of its own.
type Event struct {
	ID uint32
	// Message is the log message, English as all of them.
	Message string
	De, En  string
}

// Catalogue are the events by number; docs/agent.md shows them.
func Catalogue() []Event {
	return []Event{
		{1, "agent started", "Der Dienst arbeitet.", "The service is at work."},
		{2, "agent stopped", "Der Dienst wurde angehalten.", "The service was stopped."},
		{3, "service settings put right", "Einstellungen des Dienstes wichen ab und wurden wiederhergestellt.", "Settings of the service differed and were put right."},
		{4, "configuration has changed", "Die Konfiguration hat sich geändert und gilt ab jetzt.", "The configuration has changed and holds from now on."},
		{5, "new configuration is not used", "Die neue Konfiguration hat einen Fehler. Die bisherige gilt weiter.", "The new configuration has a mistake in it. The one before still holds."},

		{10, "connected to the collector", "Die zentrale Stelle ist erreicht.", "The collector is reached."},
		{11, "no connection to the collector", "Die zentrale Stelle ist nicht erreichbar oder nimmt das Gerät nicht an. Der Dienst versucht es von selbst wieder.", "The collector cannot be reached or does not accept this device. The service keeps trying by itself."},
		{12, "enrolled", "Das Gerät ist aufgenommen.", "The device is enrolled."},
		{13, "not enrolled yet", "Das Gerät ist noch nicht aufgenommen. Der Dienst versucht es von selbst wieder.", "The device is not enrolled yet. The service keeps trying by itself."},
		{14, "certificate is not renewed", "Das Zertifikat des Geräts wurde nicht erneuert. Der Dienst versucht es von selbst wieder.", "The device's certificate was not renewed. The service keeps trying by itself."},

		{20, "agent cannot work", "Der Dienst kann zurzeit nicht arbeiten und versucht es von selbst wieder.", "The service cannot work at the moment and keeps trying by itself."},
		{21, "identity of another machine set aside", "Schlüssel und Zertifikat gehören nicht zu diesem Gerät: Sie stammen von einem anderen, zum Beispiel aus einem Abbild, oder der Sicherheitschip (TPM) wurde zurückgesetzt oder getauscht. Sie werden nicht benutzt. Das Gerät braucht eine neue Aufnahme.", "Key and certificate are not of this device: they are of another one, for example from an image, or the TPM was cleared or replaced. They are not used. The device needs a new enrolment."},
		{22, "files of unknown origin set aside", "Im Datenverzeichnis lagen Dateien, die nicht von der Verwaltung dieses Geräts stammen. Sie werden nicht benutzt.", "In the data directory there were files that do not come from this device's administration. They are not used."},

		{30, "notice of refusal shown", "Der angemeldeten Person wurde mitgeteilt, dass der Zugang abgelehnt ist.", "The person signed in was told that access is refused."},
		{31, "notice of refusal not shown", "Die Mitteilung über die Ablehnung konnte nicht gezeigt werden.", "The notice of refusal could not be shown."},

		{40, "service ends unexpectedly", "Der Dienst endet unerwartet. Windows startet ihn wieder.", "The service ends unexpectedly. Windows starts it again."},
		{41, "service stops without waiting any longer", "Der Dienst wurde angehalten, ohne länger zu warten.", "The service stopped without waiting any longer."},
	}
}

// Numbers of what the catalogue does not have.
const (
	otherWarning = 100
	otherError   = 101
)

const (
	// repeatAfter is when an event is written again that was the last one too.
	repeatAfter = time.Hour
	// A log that tells everything tells nothing: after a burst, one event every
	// few minutes.
	burst     = 30
	perMinute = 0.5
)

// eventWriter is a system log with numbered events.
type eventWriter interface {
	Write(level slog.Level, id uint32, text string) error
}

// events is a slog.Handler that writes what is in the catalogue, and every other
// warning and error, as events.
type events struct {
	writer eventWriter
	german bool
	now    func() time.Time
	// given are attributes of the logger, formatted.
	given []string
	group string

	shared *pace
}

// pace is shared by a logger and those made of it.
type pace struct {
	mu     sync.Mutex
	last   uint32
	cause  string
	lastAt time.Time
	limit  *rate.Limiter
}

func newEvents(w eventWriter, language string, now func() time.Time) *events {
	return &events{
		writer: w, german: status.German(language), now: now,
		shared: &pace{limit: rate.NewLimiter(perMinute/60, burst)},
	}
}

// Enabled implements slog.Handler.
func (e *events) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// Handle implements slog.Handler.
func (e *events) Handle(_ context.Context, r slog.Record) error {
	id, text, ok := e.event(r)
	if !ok {
		return nil
	}
	lines, cause := slices.Clone(e.given), ""
	r.Attrs(func(a slog.Attr) bool {
		lines = append(lines, e.line(a))
		if a.Key == "error" {
			cause = withoutNumbers(a.Value.String())
		}
		return true
	})
	if !e.shared.due(id, cause, e.now()) {
		return nil
	}
	if len(lines) > 0 {
		text += "\r\n\r\n" + strings.Join(lines, "\r\n")
	}
	return e.writer.Write(r.Level, id, text)
}

// event finds number and text of a record; ok is false for what is of no
// interest to administrators.
func (e *events) event(r slog.Record) (id uint32, text string, ok bool) {
	for _, known := range Catalogue() {
		if known.Message != r.Message {
			continue
		}
		if e.german {
			return known.ID, known.De, true
		}
		return known.ID, known.En, true
	}
	switch {
	case r.Level >= slog.LevelError:
		return otherError, r.Message, true
	case r.Level >= slog.LevelWarn:
		return otherWarning, r.Message, true
	}
	return 0, "", false
}

// withoutNumbers makes errors equal that differ in ports and times alone.
func withoutNumbers(text string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, text)
}

// due says whether an event is written now: not when it repeats the last one
// for the same cause, and not when there were very many.
func (p *pace) due(id uint32, cause string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id == p.last && cause == p.cause && now.Sub(p.lastAt) < repeatAfter && id != otherWarning && id != otherError {
		return false
	}
	if !p.limit.AllowN(now, 1) {
		return false
	}
	p.last, p.cause, p.lastAt = id, cause, now
	return true
}

func (e *events) line(a slog.Attr) string {
	return e.group + a.Key + ": " + strings.ToValidUTF8(fmt.Sprint(a.Value.Resolve().Any()), "")
}

// WithAttrs implements slog.Handler.
func (e *events) WithAttrs(attributes []slog.Attr) slog.Handler {
	with := *e
	with.given = slices.Clone(e.given)
	for _, a := range attributes {
		with.given = append(with.given, e.line(a))
	}
	return &with
}

// WithGroup implements slog.Handler.
func (e *events) WithGroup(name string) slog.Handler {
	with := *e
	with.group += name + "."
	return &with
}
