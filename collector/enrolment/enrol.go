package enrolment

import (
	"context"

	"pfoertner/collector/attestation"
	"pfoertner/collector/authority"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Enrolment is a notebook that becomes a device.
type Enrolment struct {
	AssetNumber string
	// DeviceID is the one that the asset has already, otherwise a new one.
	DeviceID string
	// SPKI is the SHA-256 of the key (attest.SPKI), Certificate what was issued
	// for it.
	SPKI        []byte
	Certificate *authority.Certificate
	// Key says where the key is.
	Key *fleetv1.DeviceKey
	// TPM is what is known of the TPM; nil for a software key.
	TPM *attestation.Known
	// Details are for the audit record.
	Details map[string]string
}

// Enrol makes an asset an active device with this key and no other.
func (r *Registry) Enrol(ctx context.Context, e Enrolment) error { return errNotBuilt }
