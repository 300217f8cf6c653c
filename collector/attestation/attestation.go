// Package attestation is what the collector knows of each device's TPM, and how
// it judges what that TPM states: the Book.
//
//	intake ─ quote ─▶ Judge ─ verify (attest) ─ same TPM? (Clock) ─ facts ─ references ─ store ─▶ Attestation
//
// Rules. A statement counts when it answers our question on this connection, is
// signed by the attestation key that enrolment or renewal made known, and can
// come from the very TPM that made the statements before. It counts only when
// it is stored: what a collector forgot at a restart, a copy of the TPM could
// state again. What is not quoted in time has failed; nothing here fails open.
// Values of PCRs are learned per model as the inventory names it, a bounded
// number of them: no notebook can fill the store.
package attestation

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"time"

	"pfoertner/collector/audit"
	"pfoertner/internal/attest"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Why a statement does not count.
var (
	// ErrRefused is wrapped by the error for a statement that does not verify,
	// or of a device whose TPM is not known.
	ErrRefused = errors.New("statement of the TPM refused")
	// ErrCloned is wrapped by the error for a genuine statement that contradicts
	// an earlier one: there are two TPMs with one state.
	ErrCloned = errors.New("two TPMs have one state")
	// ErrOvertaken is wrapped by the error for a statement that arrived after one
	// that the TPM made later, on another connection. It proves nothing.
	ErrOvertaken = errors.New("a later statement of the TPM was faster")
)

// Validity is how long an Attestation counts.
const Validity = 24 * time.Hour

// Known is what is known of one device's TPM.
type Known struct {
	DeviceID string
	// EndorsementKey and AttestationKey are public areas (TPMT_PUBLIC).
	EndorsementKey []byte
	AttestationKey []byte
	// Since is when AttestationKey became the device's.
	Since time.Time
	// Clock is the newest that AttestationKey has stated; zero: none yet.
	Clock attest.Clock
	// PreviousAttestationKey is the one before a renewal, until the new one has
	// signed something: a notebook that never got the answer comes back with it.
	// Empty: there is none. PreviousClock is the newest it has stated.
	PreviousAttestationKey []byte
	PreviousClock          attest.Clock
	// Virtual: the TPM is a program.
	Virtual bool
	// Attestation is the newest that a quote has proven; nil: none yet.
	Attestation *posturev1.Attestation
	// BootLoaders are the newest that were known, be it from an Attestation before.
	BootLoaders [][]byte
	// Failure says why there is no quote although one was due after
	// Attestation; empty: none is missing.
	Failure string
}

// Holds says whether an attestation key (TPMT_PUBLIC) is the device's, or the
// one before that is still accepted.
func (k Known) Holds(area []byte) bool {
	return len(area) > 0 && (bytes.Equal(area, k.AttestationKey) || bytes.Equal(area, k.PreviousAttestationKey))
}

// Store is what the Book needs of the collector's store, which keeps every field
// of Known. Every method that writes returns after the commit.
type Store interface {
	EachTPM(ctx context.Context, fn func(Known) error) error
	// SaveTPM replaces what is stored of the device as long as its attestation
	// key is was: enrolments and dismissals, which the Book hears of only
	// afterwards, have the last word.
	SaveTPM(ctx context.Context, was []byte, k Known) error
	EachBootReference(ctx context.Context, fn func(*fleetv1.BootReference) error) error
	// SaveBootReference replaces the one of the same vendor, model, PCR and value.
	SaveBootReference(ctx context.Context, r *fleetv1.BootReference, records ...audit.Record) error
}

// Options is what the Book needs.
type Options struct {
	Store Store
	// Device looks up the inventory (enrolment.Registry.Device).
	Device func(id string) (*fleetv1.Device, bool)
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Log; nil: nothing is logged.
	Log *slog.Logger
}
