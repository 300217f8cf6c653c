package enrolment

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// ErrNotAccepted is wrapped by every error of Accepts.
var ErrNotAccepted = errors.New("device not accepted")

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
// key before a renewal is accepted until the new one is used for the first
// time, but not longer than its certificate lives.
func (r *Registry) Accepts(deviceID string, spki []byte) error {
	settled, err := r.accepts(deviceID, spki)
	if err != nil || settled {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.byID[deviceID]; e != nil && e.current.fits(spki) {
		e.previous = credential{}
	}
	return nil
}

// accepts is Accepts; settled is false when spki is a new key used for the
// first time.
func (r *Registry) accepts(deviceID string, spki []byte) (settled bool, err error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	e := r.byID[deviceID]
	if e == nil {
		return false, fmt.Errorf("unknown device: %w", ErrNotAccepted)
	}
	if state := e.device.GetAsset().GetState(); state != fleetv1.AssetState_ASSET_STATE_ACTIVE {
		return false, fmt.Errorf("asset is %s: %w", stateName(state), ErrNotAccepted)
	}
	switch {
	case e.current.fits(spki):
		return e.previous.spki == nil, nil
	case e.previous.fits(spki) && r.now().Before(e.previous.notAfter):
		return true, nil
	}
	return false, fmt.Errorf("key is not the current key of the device: %w", ErrNotAccepted)
}

// AcceptsCertificate is Accepts for a device's certificate that TLS has
// verified. It fits mtls.ServerOptions.Check.
func (r *Registry) AcceptsCertificate(cert *x509.Certificate) error {
	role, id, err := mtls.Identity(cert)
	if err != nil {
		return err
	}
	if role != mtls.RoleDevice {
		return fmt.Errorf("certificate is of role %s: %w", role, ErrNotAccepted)
	}
	spki, err := attest.SPKI(cert.PublicKey)
	if err != nil {
		return err
	}
	return r.Accepts(id, spki)
}

// Renew replaces the current key of a device by the one of a certificate that
// was just issued to it. from is the key that asked: it must be accepted
// still.
func (r *Registry) Renew(ctx context.Context, deviceID string, from, spki []byte, serial string, notAfter time.Time) error {
	r.mu.RLock()
	e := r.byID[deviceID]
	r.mu.RUnlock()
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
	if err := r.store.SaveCredential(ctx, deviceID, spki, serial, notAfter, record); err != nil {
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
