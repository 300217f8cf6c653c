// Package probe reads the posture of the notebook it runs on.
//
// Purpose. Each Probe makes one section of Evidence out of what Host shows of
// the machine; the Collector runs them and records how each reading went; the
// Watcher says when it is worth reading again.
//
// Rules. Evidence holds what was read, never a judgement. What could not be
// read is FAILED with its reason, and no section waits for or loses another.
// A probe sees the machine only through Host, so that all logic runs in tests
// on any system; gopsutil, x/sys, netlink and os/exec stay in host*.go.
// Nothing about a person leaves a probe: no device names, labels, UUIDs, mount
// points or paths under a home, neither in fields nor in reasons.
package probe

import (
	"context"
	"errors"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// ErrNotApplicable is wrapped by a Collect whose section has no meaning on
// this machine, such as Secure Boot on legacy BIOS. The error's text becomes
// the reason.
var ErrNotApplicable = errors.New("not applicable")

// Probe reads one section of Evidence.
type Probe struct {
	// Section is the name of the field in Evidence: "volumes".
	Section string
	// Timeout ends one reading; zero means DefaultTimeout.
	Timeout time.Duration
	// Collect fills its own section of ev and nothing else. It sets the
	// section's Reading only to name a source or to say that a part failed;
	// the Collector completes it: OBSERVED when Collect returns nil,
	// NOT_APPLICABLE when it returns ErrNotApplicable, FAILED with the error's
	// text otherwise. What was filled in before an error is kept.
	Collect func(ctx context.Context, h Host, ev *posturev1.Evidence) error
}

// Options of the shipped probes.
type Options struct {
	// AgentVersion is reported in the platform section.
	AgentVersion string
	// Ledger keeps since when a security update is offered; nil remembers it
	// only while the agent runs.
	Ledger Ledger
	// UpdateSearches keeps what Windows Update answered; nil remembers it only
	// while the agent runs.
	UpdateSearches *UpdateSearches
	// VPNCatalogue extends the shipped list of VPN clients; nil: nothing does.
	VPNCatalogue *VPNCatalogue
}

// Probes returns the shipped probes in the order of Evidence's sections. They
// keep what they have parsed, so one set serves one Collector.
func Probes(o Options) []Probe {
	return []Probe{
		platformProbe(o.AgentVersion),
		volumesProbe(),
		patchProbe(o.Ledger, o.UpdateSearches),
		vpnProbe(o.VPNCatalogue),
		tpmProbe(),
		secureBootProbe(),
		firewallProbe(),
		antivirusProbe(),
		screenLockProbe(),
	}
}
