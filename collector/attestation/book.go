package attestation

import (
	"context"

	"pfoertner/internal/attest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Book is what is known of every device's TPM, in memory. Its methods may be
// called concurrently.
type Book struct{ Options }

// New loads the Book from the store.
func New(ctx context.Context, o Options) (*Book, error) { return &Book{o}, nil }

// Known returns what is known of a device's TPM.
func (b *Book) Known(deviceID string) (Known, bool) { return Known{}, false }

// Put replaces what is known of a device's TPM, after the store has committed it.
func (b *Book) Put(k Known) {}

// Forget removes a device's TPM, after the store has.
func (b *Book) Forget(deviceID string) {}

// Judge judges a quote for a nonce on a connection (exporter). The error wraps
// ErrRefused or ErrCloned, or is the store's.
func (b *Book) Judge(ctx context.Context, deviceID string, nonce, exporter []byte, q *agentv1.Quote) (*posturev1.Attestation, error) {
	return nil, ErrRefused
}

// Follow compares the clock of another statement, a certification, with the
// newest. The error wraps ErrRefused or ErrCloned, or is the store's.
func (b *Book) Follow(ctx context.Context, deviceID string, c attest.Clock) error { return ErrRefused }

// Failed notes that a quote is due and there is none.
func (b *Book) Failed(deviceID, reason string) {}

// Attestation is what the TPM vouches for as it stands now. It is never nil.
func (b *Book) Attestation(deviceID string) *posturev1.Attestation { return &posturev1.Attestation{} }

// BootReferences returns the known PCR values of a model, of all for "".
func (b *Book) BootReferences(model string) []*fleetv1.BootReference { return nil }

// SetBootReference takes an operator's decision about a PCR value.
func (b *Book) SetBootReference(ctx context.Context, actor string, r *fleetv1.BootReference) (*fleetv1.BootReference, error) {
	return nil, ErrRefused
}

// OnChange registers what is called when the facts about a device have changed.
func (b *Book) OnChange(fn func(deviceID string)) {}
