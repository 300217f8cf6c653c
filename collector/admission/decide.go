package admission

import (
	"strconv"
	"time"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Facts is all that a decision about a device rests on: where its asset
// stands, and what its newest result says. The zero Facts deny.
type Facts struct {
	// DeviceID is empty for an asset that has not enrolled yet.
	DeviceID    string
	AssetNumber string
	State       fleetv1.AssetState
	// Appraised is true once the device has a result; the fields below are
	// that result's.
	Appraised bool
	Verdict   posturev1.Verdict
	// ExpiresAt is from when on Verdict admits nobody any more; zero: never
	// held.
	ExpiresAt time.Time
	// Code is the result's refusal code; empty when it refuses nothing.
	Code string
	// Text tells the user why the result refuses; nil when it does not.
	Text *posturev1.LocalText
}

// Cause is what a decision was made by. The zero Cause is Unknown.
type Cause uint8

const (
	// Unknown: the identity belongs to no asset.
	Unknown Cause = iota
	// NotEnrolled: the asset is expected or pending.
	NotEnrolled
	// Suspended: an operator has suspended the asset.
	Suspended
	// Retired: the asset has left the inventory.
	Retired
	// NeverReported: active, but nothing was ever reported.
	NeverReported
	// Stale: the newest result admitted, and has expired.
	Stale
	// Appraised: the newest result says so.
	Appraised
	// Unproven: the gateway's sessions need a tunnel proof, and this one has
	// none yet.
	Unproven
	// NotProven: the tunnel proof did not come in time.
	NotProven
)

// String is the cause as audit records name it.
func (c Cause) String() string {
	names := [...]string{"unknown", "not_enrolled", "suspended", "retired", "never_reported", "stale", "appraised", "unproven", "not_proven"}
	if int(c) < len(names) {
		return names[c]
	}
	return "cause_" + strconv.Itoa(int(c))
}

// Decision is what the facts come to at one moment. The zero Decision denies.
type Decision struct {
	Verdict posturev1.Verdict
	Cause   Cause
	// Until is when the same facts come to something else, or may; zero: they
	// stay what they are until one of them changes.
	Until time.Time
}

// Decide is the whole rule of admission. Nil facts are an unknown identity,
// which is denied, never quarantined. An active asset without a result is
// quarantined, so that it can reach the collector. Expired results admit
// nobody; whatever is not understood is denied.
func Decide(f *Facts, now time.Time) Decision {
	switch {
	case f == nil:
		return Decision{Cause: Unknown}
	case f.State == fleetv1.AssetState_ASSET_STATE_SUSPENDED:
		return Decision{Cause: Suspended}
	case f.State == fleetv1.AssetState_ASSET_STATE_RETIRED:
		return Decision{Cause: Retired}
	case f.State != fleetv1.AssetState_ASSET_STATE_ACTIVE || f.DeviceID == "":
		return Decision{Cause: NotEnrolled}
	case !f.Appraised:
		return Decision{Verdict: posturev1.Verdict_VERDICT_QUARANTINE, Cause: NeverReported}
	}
	fresh := now.Before(f.ExpiresAt)
	switch f.Verdict {
	case posturev1.Verdict_VERDICT_ADMIT:
		if !fresh {
			return Decision{Verdict: posturev1.Verdict_VERDICT_QUARANTINE, Cause: Stale}
		}
	case posturev1.Verdict_VERDICT_QUARANTINE:
	default:
		return Decision{Cause: Appraised}
	}
	d := Decision{Verdict: f.Verdict, Cause: Appraised}
	if fresh {
		d.Until = f.ExpiresAt
	}
	return d
}

// Proof is where one session stands with its tunnel proof. The zero Proof asks
// for nothing.
type Proof uint8

const (
	// ProofNotNeeded: the gateway does not ask for it, or it is there.
	ProofNotNeeded Proof = iota
	// ProofMissing: it may still come. Quarantine at most.
	ProofMissing
	// ProofOverdue: it did not come in time. The session is denied, whatever
	// its identity may.
	ProofOverdue
)

// limited is the decision for one session, by its tunnel proof. It never
// raises.
func (d Decision) limited(p Proof) Decision {
	switch {
	case p == ProofNotNeeded || d.Verdict == posturev1.Verdict_VERDICT_DENY:
	case p != ProofMissing:
		return Decision{Cause: NotProven}
	case d.Verdict == posturev1.Verdict_VERDICT_ADMIT:
		d.Verdict, d.Cause = posturev1.Verdict_VERDICT_QUARANTINE, Unproven
	}
	return d
}

// leaseTime is how long a lease for this decision holds: ttl, but never beyond
// the decision's end. Zero for a refusal.
func (d Decision) leaseTime(ttl time.Duration, now time.Time) time.Duration {
	if d.Verdict == posturev1.Verdict_VERDICT_DENY {
		return 0
	}
	if d.Until.IsZero() {
		return ttl
	}
	return max(0, min(ttl, d.Until.Sub(now)))
}
