package enrolment

import (
	"context"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// SetVPNCertificates replaces the VPN certificates that the collector has issued
// to a device.
func (r *Registry) SetVPNCertificates(ctx context.Context, deviceID string, list []*fleetv1.VpnCertificate, records ...audit.Record) error {
	return errNotBuilt
}
