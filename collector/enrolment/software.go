package enrolment

import (
	"context"
	"fmt"
	"time"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// ErrStaleKey is wrapped by the error of Accepts for an active device that comes
// with a key which is not, or no longer, its own.
var ErrStaleKey = fmt.Errorf("key was replaced: %w", ErrNotAccepted)

// WithSoftwareLifetime sets how long a certificate for a software key lives.
func WithSoftwareLifetime(d time.Duration) Option { return func(*Registry) {} }

// CertificateLifetime is how long the next certificate of a device lives.
func (r *Registry) CertificateLifetime(deviceID string) time.Duration { return 0 }

// softwareAllowed says whether an asset may have a key that is not in a TPM now.
// The permission alone decides; enrolment with a TPM ends it.
func softwareAllowed(a *fleetv1.Asset, now time.Time) bool { return false }

// Run ends what has an end, when its time comes.
func (r *Registry) Run(ctx context.Context) error { <-ctx.Done(); return nil }
