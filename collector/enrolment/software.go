package enrolment

import (
	"time"

	"pfoertner/collector/authority"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// DefaultSoftwareLifetime is how long a certificate for a software key lives.
const DefaultSoftwareLifetime = 24 * time.Hour

// WithSoftwareLifetime sets how long a certificate for a software key lives;
// zero is DefaultSoftwareLifetime, more than authority.DeviceLifetime is that.
func WithSoftwareLifetime(d time.Duration) Option {
	return func(r *Registry) {
		if d > 0 {
			r.softwareLifetime = min(d, authority.DeviceLifetime)
		}
	}
}

// CertificateLifetime is how long the next certificate of a device lives for
// the key that it has: authority.DeviceLifetime in a TPM, otherwise as long as
// software keys do.
func (r *Registry) CertificateLifetime(deviceID string) time.Duration {
	d, ok := r.Device(deviceID)
	if ok && d.GetKey().GetProtection() == fleetv1.KeyProtection_KEY_PROTECTION_TPM {
		return authority.DeviceLifetime
	}
	return r.lifetimeInSoftware(d.GetAsset())
}

// lifetimeInSoftware is how long a certificate for a software key of an asset
// lives: not longer than it is allowed.
func (r *Registry) lifetimeInSoftware(a *fleetv1.Asset) time.Duration {
	left := a.GetSoftwareKey().GetUntil().AsTime().Sub(r.now())
	return max(time.Second, min(r.softwareLifetime, left))
}

// softwareAllowed says whether an asset may have a key that is not in a TPM.
// The permission of two operators alone decides, whatever the inventory file
// demands, and enrolment with a TPM ends it. One without an end has ended.
func softwareAllowed(a *fleetv1.Asset, now time.Time) bool {
	until := a.GetSoftwareKey().GetUntil()
	return until != nil && now.Before(until.AsTime())
}

// usesSoftware says whether a device has a key, and it is not in a TPM. What is
// not known to be in one is not.
func usesSoftware(d *fleetv1.Device) bool {
	return d.GetCertificateExpiresAt() != nil && d.GetKey().GetProtection() != fleetv1.KeyProtection_KEY_PROTECTION_TPM
}
