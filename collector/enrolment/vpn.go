package enrolment

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// VPNOverlap is how long a VPN certificate stays bound after its successor was
// issued, if it lives that long: a tunnel that stands need not be cut for it.
const VPNOverlap = 24 * time.Hour

const (
	// vpnBurst is how many VPN certificates a device gets in vpnWindow: far more
	// than renewals and lost answers need.
	vpnBurst  = 6
	vpnWindow = 24 * time.Hour
)

// ErrTooMany is wrapped by the error for a device that asks too often.
var ErrTooMany = errors.New("too many in a short time")

// BindVPN binds a VPN certificate that was just issued to a device: from now on
// the collector knows its fingerprint. Those issued before stay bound until
// their end, but no longer than VPNOverlap. The error wraps ErrNotAccepted for a
// device that is not active, ErrTooMany for one that was given many today,
// fs.ErrExist for a certificate that is bound already, fs.ErrNotExist for an
// unknown device.
func (r *Registry) BindVPN(ctx context.Context, deviceID string, c *fleetv1.VpnCertificate) error {
	r.change.Lock()
	defer r.change.Unlock()
	old, ok := r.Device(deviceID)
	if !ok {
		return fmt.Errorf("binding VPN certificate of %s: %w", deviceID, fs.ErrNotExist)
	}
	if err := r.mayHaveVPN(old); err != nil {
		return fmt.Errorf("binding VPN certificate of %s: %w", deviceID, err)
	}
	if owner, bound := r.DeviceOfCertificate(c.GetSha256()); bound || len(c.GetSha256()) != 32 {
		return fmt.Errorf("VPN certificate is bound to asset %q: %w", owner.GetAsset().GetAssetNumber(), fs.ErrExist)
	}
	d := proto.CloneOf(old)
	last := r.now().Add(VPNOverlap)
	for _, before := range d.VpnCertificates {
		if before.GetExpiresAt().AsTime().After(last) {
			before.ExpiresAt = timestamppb.New(last)
		}
	}
	d.VpnCertificates = append(d.VpnCertificates, proto.CloneOf(c))
	d.Asset.VpnCertificatesSha256 = append(d.Asset.VpnCertificatesSha256, c.GetSha256())
	record := r.record("vpn_certificate.issued", deviceID, d, map[string]string{
		"certificate_sha256": hex.EncodeToString(c.GetSha256()), "certificate_serial": c.GetSerial(),
		"ends": c.GetExpiresAt().AsTime().Format(time.RFC3339),
	})
	if err := r.save(ctx, []*fleetv1.Device{d}, record); err != nil {
		return fmt.Errorf("binding VPN certificate of %s: %w", deviceID, err)
	}
	return nil
}

// MayHaveVPN returns nil if a device may be issued a VPN certificate now;
// otherwise BindVPN's error.
func (r *Registry) MayHaveVPN(deviceID string) error {
	d, ok := r.Device(deviceID)
	if !ok {
		return fmt.Errorf("unknown device: %w", ErrNotAccepted)
	}
	return r.mayHaveVPN(d)
}

func (r *Registry) mayHaveVPN(d *fleetv1.Device) error {
	if state := d.GetAsset().GetState(); state != active {
		return fmt.Errorf("asset is %s: %w", stateName(state), ErrNotAccepted)
	}
	since, recent := r.now().Add(-vpnWindow), 0
	for _, c := range d.GetVpnCertificates() {
		if c.GetIssuedAt().AsTime().After(since) {
			recent++
		}
	}
	if recent >= vpnBurst {
		return fmt.Errorf("%d VPN certificates within %s: %w", recent, vpnWindow, ErrTooMany)
	}
	return nil
}

// endedVPN unbinds, in a device that is about to be saved, the VPN certificates
// whose time has come, and returns them.
func endedVPN(d *fleetv1.Device, now time.Time) []*fleetv1.VpnCertificate {
	return dropVPN(d, func(c *fleetv1.VpnCertificate) bool { return !c.GetExpiresAt().AsTime().After(now) })
}

// forgetVPN unbinds, in a device that is about to be saved, whatever the
// collector has issued to it: with another TPM or attestation key, or none, the
// key in these certificates is not known to be in this notebook any more.
// Certificates that operators have bound stay.
func forgetVPN(d *fleetv1.Device) {
	dropVPN(d, func(*fleetv1.VpnCertificate) bool { return true })
}

// dropVPN unbinds some of what the collector has issued.
func dropVPN(d *fleetv1.Device, drop func(*fleetv1.VpnCertificate) bool) (dropped []*fleetv1.VpnCertificate) {
	d.VpnCertificates = slices.DeleteFunc(d.VpnCertificates, func(c *fleetv1.VpnCertificate) bool {
		if !drop(c) {
			return false
		}
		dropped = append(dropped, c)
		d.Asset.VpnCertificatesSha256 = slices.DeleteFunc(d.Asset.VpnCertificatesSha256, func(sum []byte) bool {
			return bytes.Equal(sum, c.GetSha256())
		})
		return true
	})
	return dropped
}

// prints are the fingerprints of certificates.
func prints(list []*fleetv1.VpnCertificate) (text string) {
	for i, c := range list {
		if i > 0 {
			text += " "
		}
		text += hex.EncodeToString(c.GetSha256())
	}
	return text
}
