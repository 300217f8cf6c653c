package attestation

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"pfoertner/internal/attest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Question is what a device's TPM was asked on one connection.
type Question struct {
	// Nonce was made for it, Exporter is the channel binding of the connection.
	Nonce, Exporter []byte
	// Asked is when, by the clock of the Book's Options; the TPM has answered later.
	Asked time.Time
}

// Judge judges a quote that answers a question, and returns what it proves. That
// it is answered only once, and in time, is the caller's business. The error
// wraps ErrRefused, ErrCloned or ErrOvertaken, or is the store's; then nothing
// has changed.
//
// Every quote is stored, also one that says nothing new but a later time: a
// collector that forgot the time at a restart would take an older copy of the
// TPM for the original. The store commits the quotes of many devices together.
func (b *Book) Judge(ctx context.Context, deviceID string, asked Question, q *agentv1.Quote) (*posturev1.Attestation, error) {
	quote := &attest.Quote{Message: q.GetMessage(), Signature: q.GetSignature(), Values: q.GetPcrValues(), EventLog: q.GetEventLog()}
	if len(quote.Values) == 0 {
		quote.Values = nil
	}
	heard := b.Now()
	err := b.stated(deviceID, func(e *entry) error {
		var proven *attest.Attested
		k, err := e.states(asked.Asked, func(ak *attest.Key) (attest.Clock, error) {
			a, err := quote.Verify(ak, attest.Qualify(attest.PurposeQuote, asked.Nonce, asked.Exporter))
			if err != nil {
				return attest.Clock{}, err
			}
			proven = a
			return a.Clock, nil
		})
		if err != nil {
			return fmt.Errorf("quote of device %s: %w", deviceID, err)
		}
		if err := b.save(ctx, e, k.Quoted(proven, b.Now())); err != nil {
			return err
		}
		e.heard, e.quoted = heard, heard
		b.learn(ctx, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b.Attestation(deviceID), nil
}

// Certified verifies that the device's attestation key certifies another key in
// answer to a question, for a purpose, and that the TPM is the one that stated
// everything before. The error wraps ErrRefused, ErrCloned or ErrOvertaken, or is
// the store's.
func (b *Book) Certified(ctx context.Context, deviceID string, key *attest.Key, purpose attest.Purpose, asked Question, message, signature []byte) error {
	return b.follow(ctx, deviceID, asked.Asked, func(ak *attest.Key) (attest.Clock, error) {
		return attest.VerifyCertified(ak, key, attest.Qualify(purpose, asked.Nonce, asked.Exporter), message, signature)
	})
}

// Follow compares the time of a statement by an attestation key (TPMT_PUBLIC),
// which the caller has asked for at a moment and verified, with the newest. The
// error wraps ErrRefused, also for a key that is not the device's, ErrCloned or
// ErrOvertaken, or is the store's.
func (b *Book) Follow(ctx context.Context, deviceID string, ak []byte, asked time.Time, c attest.Clock) error {
	name := attest.Name(ak)
	return b.follow(ctx, deviceID, asked, func(known *attest.Key) (attest.Clock, error) {
		if !bytes.Equal(known.Name, name) {
			return attest.Clock{}, errors.New("by another attestation key")
		}
		return c, nil
	})
}

func (b *Book) follow(ctx context.Context, deviceID string, asked time.Time, verify func(ak *attest.Key) (attest.Clock, error)) error {
	heard := b.Now()
	return b.stated(deviceID, func(e *entry) error {
		k, err := e.states(asked, verify)
		if err != nil {
			return fmt.Errorf("certification by device %s: %w", deviceID, err)
		}
		if err := b.save(ctx, e, k); err != nil {
			return err
		}
		e.heard = heard
		return nil
	})
}

// Replace makes another key (TPMT_PUBLIC) the device's attestation key. The one
// before stays good until the new one has signed something: the notebook may
// never learn that its new key was taken. The caller has verified that it is in
// the same TPM. The error wraps ErrRefused, or is the store's.
func (b *Book) Replace(ctx context.Context, deviceID string, ak []byte) error {
	return b.stated(deviceID, func(e *entry) error {
		if bytes.Equal(ak, e.known.AttestationKey) {
			return nil
		}
		return b.save(ctx, e, e.known.replaced(ak, b.Now()))
	})
}

// Failed notes why a quote that was asked for at a moment does not come. What
// earlier ones have proven does not count from now on, until another is judged:
// also when the error says that it could not be stored. One that came since it
// was asked for, on another connection, is none that is missing.
func (b *Book) Failed(ctx context.Context, deviceID string, asked time.Time, reason string) error {
	return b.stated(deviceID, func(e *entry) error {
		if asked.Before(e.quoted) {
			return nil
		}
		k := e.known
		k.Failure = cmp.Or(clip(reason, maxReason), "no reason given")
		if k.Failure == e.known.Failure {
			return nil
		}
		b.publish(e, k)
		if err := b.Store.SaveTPM(ctx, k.AttestationKey, k); err != nil {
			return fmt.Errorf("storing the TPM of %s: %w", deviceID, err)
		}
		return nil
	})
}

// stated changes what is known of a device whose TPM is known.
func (b *Book) stated(deviceID string, fn func(e *entry) error) error {
	e := b.entry(deviceID)
	if e == nil {
		return fmt.Errorf("no TPM of device %s is known: %w", deviceID, ErrRefused)
	}
	return b.change(e, func() error {
		if _, known := b.Known(deviceID); !known || b.entry(deviceID) != e { // forgotten meanwhile
			return fmt.Errorf("no TPM of device %s is known: %w", deviceID, ErrRefused)
		}
		return fn(e)
	})
}

// states is what is known after an answer to a question that was asked at a
// moment. Whoever can hold up packets can let a statement arrive after later
// ones: that one contradicts nothing which was asked before the other was here.
func (e *entry) states(asked time.Time, verify func(ak *attest.Key) (attest.Clock, error)) (Known, error) {
	k, err := e.known.stated(verify)
	if errors.Is(err, ErrCloned) && asked.Before(e.heard) {
		return Known{}, ErrOvertaken
	}
	return k, err
}

// stated is what is known after a statement that verify accepts for one of the
// device's attestation keys.
func (k Known) stated(verify func(ak *attest.Key) (attest.Clock, error)) (Known, error) {
	clock, err := statement(k.AttestationKey, verify)
	if err == nil {
		if k.Clock, err = later(k.Clock, clock); err != nil {
			return Known{}, err
		}
		k.PreviousAttestationKey, k.PreviousClock = nil, attest.Clock{}
		return k, nil
	}
	if len(k.PreviousAttestationKey) == 0 {
		return Known{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	clock, previousErr := statement(k.PreviousAttestationKey, verify)
	if previousErr != nil {
		return Known{}, fmt.Errorf("%w: %w", ErrRefused, errors.Join(err, previousErr))
	}
	if k.PreviousClock, err = later(k.PreviousClock, clock); err != nil {
		return Known{}, err
	}
	return k, nil
}

// replaced is what is known after a new attestation key was taken.
func (k Known) replaced(ak []byte, at time.Time) Known {
	if len(k.PreviousAttestationKey) == 0 {
		k.PreviousAttestationKey, k.PreviousClock = k.AttestationKey, k.Clock
	}
	k.AttestationKey, k.Clock, k.Since = ak, attest.Clock{}, at
	return k
}

func statement(area []byte, verify func(ak *attest.Key) (attest.Clock, error)) (attest.Clock, error) {
	ak, err := attest.ParseAttestationKey(area)
	if err != nil {
		return attest.Clock{}, err
	}
	return verify(ak)
}

// later is the clock that counts from now on; before is zero when there was
// none.
func later(before, now attest.Clock) (attest.Clock, error) {
	if before != (attest.Clock{}) && !now.Follows(before) {
		return attest.Clock{}, fmt.Errorf("%w: reset %d, restart %d, %d ms cannot come after reset %d, restart %d, %d ms", ErrCloned,
			now.ResetCount, now.RestartCount, now.Milliseconds, before.ResetCount, before.RestartCount, before.Milliseconds)
	}
	return now, nil
}
