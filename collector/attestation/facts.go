package attestation

import (
	"time"

	"pfoertner/internal/attest"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Describe makes an Attestation of what a TPM has proven at a moment. before is
// the one before it, nil when there is none. How the PCRs compare with the
// model's is added by Book.Put and Book.Judge.
func Describe(a *attest.Attested, quotedAt time.Time, virtual bool, before *posturev1.Attestation) *posturev1.Attestation {
	return &posturev1.Attestation{}
}
