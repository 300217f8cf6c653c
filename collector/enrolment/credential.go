package enrolment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

var (
	// ErrNotAccepted is wrapped by every error of Accepts.
	ErrNotAccepted = errors.New("device not accepted")
	// ErrStaleKey is wrapped by the error of Accepts for an active device that
	// comes with a key that is neither its current nor its previous one. It wraps
	// ErrNotAccepted. With a valid certificate for a software key it means that
	// somebody has a copy; a key in a TPM has come back with a restored disk.
	ErrStaleKey = fmt.Errorf("key is not the current key of the device: %w", ErrNotAccepted)
)

// credential is a device's key (SHA-256 of its SubjectPublicKeyInfo) and the
// certificate issued for it last. The zero value fits no key.
type credential struct {
	spki     []byte
	serial   string
	notAfter time.Time
}

func (c credential) fits(spki []byte) bool {
	return len(c.spki) > 0 && bytes.Equal(c.spki, spki)
}

// Accepts returns nil if the device is known and active, and spki is its
// current key; otherwise an error that wraps ErrNotAccepted and says why. The
// key before a renewal is accepted until Settle, but not longer than its
// certificate lives; a software key not longer than it is allowed. It changes
// nothing and waits for nothing: handshakes ask it.
func (r *Registry) Accepts(deviceID string, spki []byte) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	e := r.byID[deviceID]
	if e == nil {
		return fmt.Errorf("unknown device: %w", ErrNotAccepted)
	}
	if state := e.device.GetAsset().GetState(); state != fleetv1.AssetState_ASSET_STATE_ACTIVE {
		return fmt.Errorf("asset is %s: %w", stateName(state), ErrNotAccepted)
	}
	switch now := r.now(); {
	case !e.current.fits(spki) && !e.previous.fits(spki):
		return ErrStaleKey
	case !e.current.fits(spki) && !now.Before(e.previous.notAfter):
		return fmt.Errorf("key before the renewal has expired: %w", ErrNotAccepted)
	case usesSoftware(e.device) && !softwareAllowed(e.device.GetAsset(), now):
		return fmt.Errorf("its software key is not allowed, or not any more: %w", ErrNotAccepted)
	}
	return nil
}

// Settle notes that a device uses the key spki. With the first use of a new key
// the one before it ends for good, also for a collector that restarts: it
// returns after the commit. It does nothing when there is nothing to end.
func (r *Registry) Settle(ctx context.Context, deviceID string, spki []byte) error {
	r.mu.RLock()
	e := r.byID[deviceID]
	due := e != nil && e.current.fits(spki) && e.previous.spki != nil
	r.mu.RUnlock()
	if !due {
		return nil
	}
	e.renewing.Lock()
	defer e.renewing.Unlock()
	if err := r.store.SettleCredential(ctx, deviceID, spki); err != nil {
		return fmt.Errorf("settling the key of %s: %w", deviceID, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.current.fits(spki) {
		e.previous = credential{}
	}
	return nil
}

// Renew replaces the current key of a device by the one of a certificate that
// was just issued to it. from is the key that asked: it must be accepted
// still, and stays so until Settle, because the answer may be lost.
func (r *Registry) Renew(ctx context.Context, deviceID string, from, spki []byte, serial string, notAfter time.Time) error {
	e := r.entryOf(deviceID)
	if e == nil {
		return fmt.Errorf("renewing %s: %w", deviceID, fs.ErrNotExist)
	}
	e.renewing.Lock()
	defer e.renewing.Unlock()
	if err := r.Accepts(deviceID, from); err != nil {
		return fmt.Errorf("renewing %s: %w", deviceID, err)
	}
	d, _ := r.Device(deviceID)
	record := r.record("device.renewed", deviceID, d, map[string]string{"certificate_serial": serial})
	if err := r.store.RenewCredential(ctx, deviceID, from, spki, serial, notAfter, record); err != nil {
		return fmt.Errorf("renewing %s: %w", deviceID, err)
	}
	r.publishCredential(e, credential{spki, serial, notAfter}, from)
	return nil
}

// publishCredential makes a stored credential the current one. from is the key
// that stays accepted until the new one is used; nil: none does.
func (r *Registry) publishCredential(e *entry, c credential, from []byte) {
	r.publish(func() []*fleetv1.Device {
		switch {
		case from == nil:
			e.previous = credential{}
		case e.current.fits(from):
			e.previous = e.current
		}
		e.current = c
		d := proto.CloneOf(e.device)
		d.CertificateExpiresAt = timestamppb.New(c.notAfter)
		e.device = d
		return []*fleetv1.Device{d}
	})
}
