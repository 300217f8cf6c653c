// Package status is what the notebook's user may know: admitted or not, why,
// and what to do. The service writes it to a file that everyone may read, and
// `pfoertner-agent status` shows it, online or not.
//
// Rules. The file holds what its reader needs and nothing else: no identity, no
// measured values, nothing that passed. It is information, never an input: the
// agent decides nothing by it, and a damaged one is replaced.
package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pfoertner/agent/durable"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Connection is how the way to the collector is.
type Connection string

// The states of the way to the collector. The zero value is Unreachable.
const (
	Unreachable Connection = ""
	Online      Connection = "online"
	// Refused: the collector does not accept this device.
	Refused Connection = "refused"
	// Expired: the certificate has run out; a new token is needed.
	Expired Connection = "expired"
	// Untrusted: who answers has a certificate under none of the CAs that this
	// notebook knows.
	Untrusted Connection = "untrusted"
	// NotEnrolled: there is no certificate yet.
	NotEnrolled Connection = "not_enrolled"
	// Pending: persons have to approve this notebook first.
	Pending Connection = "pending"
	// NotConfigured: nobody has named a collector yet.
	NotConfigured Connection = "not_configured"
	// NoTPM: the TPM, which holds the device key, does not answer.
	NoTPM Connection = "no_tpm"
	// OtherProtection: the stored key is protected otherwise than the
	// configuration says.
	OtherProtection Connection = "other_protection"
	// Broken: the service cannot work on this notebook until somebody mends it.
	Broken Connection = "broken"
)

// Obstacle is what keeps a notebook from being enrolled, as far as it knows.
// The zero value is none of those named.
type Obstacle string

// The obstacles to enrolment. The service keeps trying whatever it is.
const (
	// NoToken: there is no one-time token.
	NoToken Obstacle = "no_token"
	// TokenRefused: the collector does not take token and notebook together.
	TokenRefused Obstacle = "refused"
	// NotReached: no connection to the collector.
	NotReached Obstacle = "unreachable"
	// WrongAuthority: whoever answers is not the collector that was named.
	WrongAuthority Obstacle = "wrong_authority"
	// NotExpected: the collector does not expect this notebook's TPM, and there
	// is no token.
	NotExpected Obstacle = "not_expected"
	// ForeignKeys: key and certificate were not of this machine's TPM, and were
	// set aside.
	ForeignKeys Obstacle = "foreign_keys"
)

// Summary is the public file.
type Summary struct {
	Connection Connection `json:"connection"`
	// Fingerprint is the key that waits for approval; empty unless Pending.
	Fingerprint string `json:"fingerprint,omitempty"`
	// Obstacle is why NotEnrolled.
	Obstacle Obstacle `json:"obstacle,omitempty"`
	// Copied: key and certificate of another machine were found here and set
	// aside, and this one is not enrolled yet.
	Copied bool `json:"copied,omitempty"`
	// ForeignKeys: the TPM did not have the keys that were found here; they were
	// set aside, and this machine is not enrolled again yet.
	ForeignKeys bool `json:"foreign_keys,omitempty"`
	// LastContact is when the collector last stored a report; zero: never.
	LastContact time.Time `json:"last_contact,omitzero"`
	// Judgement is nil before the first result.
	Judgement *Judgement `json:"judgement,omitempty"`
}

// Judgement is the last result, reduced to what its reader can act on.
type Judgement struct {
	// Verdict is "admit", "quarantine" or "deny".
	Verdict string    `json:"verdict"`
	At      time.Time `json:"at,omitzero"`
	// ValidUntil is when it ends if nothing newer is reported.
	ValidUntil time.Time `json:"valid_until,omitzero"`
	// Code is what the help desk asks for; empty when nothing is refused.
	Code string `json:"code,omitempty"`
	// Findings are the rules that are not met, the gravest first.
	Findings []Finding `json:"findings,omitempty"`
}

// Finding is one rule that is not met.
type Finding struct {
	// Effect on access: "deny", "quarantine", "warn".
	Effect string `json:"effect"`
	// Unknown: whether the rule is met could not be told.
	Unknown      bool      `json:"unknown,omitempty"`
	Title        Text      `json:"title"`
	Reason       Text      `json:"reason,omitzero"`
	Remedy       Text      `json:"remedy,omitzero"`
	FailingSince time.Time `json:"failing_since,omitzero"`
	// GraceUntil is when the effect gets graver; zero: it does not.
	GraceUntil time.Time `json:"grace_until,omitzero"`
}

// Text is one text in both languages.
type Text struct {
	De string `json:"de"`
	En string `json:"en"`
}

// ErrNone is returned by Read when the service has not written anything yet.
var ErrNone = errors.New("the service has not written a status yet")

const maxFileBytes = 1 << 20

// Read reads the public file.
func Read(path string) (Summary, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Summary{}, ErrNone
	}
	if err != nil {
		return Summary{}, fmt.Errorf("reading status: %w", err)
	}
	return Parse(content)
}

// Parse reads the content of the public file.
func Parse(content []byte) (Summary, error) {
	if len(content) > maxFileBytes {
		return Summary{}, fmt.Errorf("status file is larger than %d bytes", maxFileBytes)
	}
	var s Summary
	if err := json.Unmarshal(content, &s); err != nil {
		return Summary{}, fmt.Errorf("status file is damaged: %w", err)
	}
	return s, nil
}

// Board keeps the public file up to date. It may be used by several
// goroutines.
type Board struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex
	now    Summary
	broken bool // the last write did not work, and the log says so
}

// NewBoard opens the board that writes to path. What an earlier service knew of
// the last judgement is kept.
func NewBoard(path string, log *slog.Logger) *Board {
	b := &Board{path: path, log: log}
	if earlier, err := Read(path); err == nil {
		b.now = earlier
		b.now.Connection, b.now.Fingerprint, b.now.Obstacle = Unreachable, "", ""
	}
	return b
}

// Connection is how the way to the collector is from now on.
func (b *Board) Connection(c Connection) {
	b.update(func(s *Summary) {
		s.Connection, s.Fingerprint, s.Obstacle = c, "", ""
		s.Copied, s.ForeignKeys = s.Copied && c != Online, s.ForeignKeys && c != Online
	})
}

// NotEnrolled says that there is no certificate yet, and why.
func (b *Board) NotEnrolled(o Obstacle) {
	b.update(func(s *Summary) {
		s.Connection, s.Fingerprint, s.Obstacle = NotEnrolled, "", o
		if o == ForeignKeys {
			s.ForeignKeys, s.Obstacle = true, ""
		}
	})
}

// Copied says that an identity of another machine was found and set aside;
// foreign: by the TPM, which does not have its keys. What was known of that
// machine is not shown any more.
func (b *Board) Copied(foreign bool) {
	b.update(func(s *Summary) { *s = Summary{Connection: NotEnrolled, Copied: !foreign, ForeignKeys: foreign} })
}

// Waiting says that persons have to approve the key with this fingerprint.
func (b *Board) Waiting(fingerprint string) {
	b.update(func(s *Summary) { s.Connection, s.Fingerprint, s.Obstacle = Pending, fingerprint, "" })
}

// Acknowledged says that the collector has stored a report.
func (b *Board) Acknowledged(at time.Time) {
	b.update(func(s *Summary) { s.LastContact = at.UTC().Truncate(time.Second) })
}

// Judged replaces the last judgement.
func (b *Board) Judged(r *posturev1.Result) {
	b.update(func(s *Summary) { s.Judgement = judgement(r) })
}

// update writes the file. Nothing depends on it: when it cannot be written the
// log says so, once.
func (b *Board) update(change func(*Summary)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.now)
	err := b.write()
	if err != nil && !b.broken {
		b.log.Warn("status is not shown to users", "error", err)
	}
	b.broken = err != nil
}

func (b *Board) write() error {
	content, err := json.MarshalIndent(b.now, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(b.path), 0o755); err != nil {
		return err
	}
	return durable.WriteFile(b.path, content, 0o644)
}
