// Package appraisal judges evidence: policy + references + inventory +
// evidence + now → result, with every value read, every reason and the moment
// from which on the same evidence may be judged otherwise (RFC 9334, 4.1).
//
// Rules. It is pure: no clock, file, network or database; the same input gives
// the same result. What could not be read is UNKNOWN with its reason and never
// passes; two readings that contradict each other are shown both and never
// resolved; a rule whose expression breaks off is UNKNOWN too. Results share
// texts with the policy they come from: nobody changes a result.
package appraisal

import (
	"time"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Input is everything that a result depends on.
type Input struct {
	// Policy and References must not be nil.
	Policy     *Policy
	References *References
	// Device is the notebook as the inventory knows it. Nil, or an asset that
	// is not active, is denied.
	Device *fleetv1.Device
	// Evidence may be nil: then nothing was ever read.
	Evidence *posturev1.Evidence
	// EvidenceDigest is posture.Digest of Evidence when the caller has it
	// already; nil: it is computed.
	EvidenceDigest []byte
	// CollectedAt is when the evidence was collected, by the collector's clock.
	// Zero counts as stale.
	CollectedAt time.Time
	Now         time.Time
	// Previous is the device's last result, from which failing_since is carried
	// on; nil when there is none.
	Previous *posturev1.Result
}

// Appraise judges. It always returns a result; whatever is missing in the input
// denies.
func Appraise(in Input) *posturev1.Result {
	return &posturev1.Result{}
}
