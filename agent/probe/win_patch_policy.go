package probe

import (
	"errors"
	"fmt"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	updatePolicyKey    = `SOFTWARE\Policies\Microsoft\Windows\WindowsUpdate`
	automaticUpdateKey = updatePolicyKey + `\AU`
	// managedUpdateKey has the same settings from a mobile device management.
	managedUpdateKey = `SOFTWARE\Microsoft\PolicyManager\current\device\Update`

	windows11First = 22000
)

// updatePolicy is where policy sends Windows for its updates (Microsoft Learn,
// "Manage additional Windows Update settings" and "Use Windows Update client
// policies and WSUS together").
type updatePolicy struct {
	// server: a WSUS server is named, and to be used.
	server bool
	// byClass: the source is chosen for each class of updates, and quality is
	// the choice for quality updates, which are the security ones.
	byClass   bool
	quality   uint64 // 0 Windows Update, 1 WSUS
	deferral  bool   // updates from Microsoft are deferred or pinned to a release
	dualScan  bool   // Windows 10 turns to Microsoft although a server is named
	onlyInner bool   // no connection to Microsoft's update servers is allowed
}

func readUpdatePolicy(r Registry) (updatePolicy, error) {
	var p updatePolicy
	q := policyReader{registry: r}
	name, _, err := registryText(r, updatePolicyKey, "WUServer")
	managed, _, errManaged := registryText(r, managedUpdateKey, "UpdateServiceUrl")
	p.server = name != "" && q.number(automaticUpdateKey, "UseWUServer") == 1 || managed != ""
	p.byClass = p.server && q.number(automaticUpdateKey, "UseUpdateClassPolicySource") == 1
	p.quality = q.number(updatePolicyKey, "SetPolicyDrivenUpdateSourceForQualityUpdates")
	p.onlyInner = q.number(updatePolicyKey, "DoNotConnectToWindowsUpdateInternetLocations") == 1
	for _, value := range []string{
		"DeferQualityUpdates", "DeferFeatureUpdates", "BranchReadinessLevel", "TargetReleaseVersion",
	} {
		p.deferral = q.number(updatePolicyKey, value) > 0 || p.deferral
	}
	for _, value := range []string{
		"DeferQualityUpdatesPeriodInDays", "DeferFeatureUpdatesPeriodInDays", "BranchReadinessLevel",
	} {
		p.deferral = q.number(managedUpdateKey, value) > 0 || p.deferral
	}
	disabled := q.number(updatePolicyKey, "DisableDualScan") == 1
	build, errBuild := registryBuild(r, "CurrentBuild")
	p.dualScan = p.server && p.deferral && !p.byClass && !disabled && build < windows11First
	return p, errors.Join(err, errManaged, q.err, errBuild)
}

// policyReader reads numbers and keeps the first error.
type policyReader struct {
	registry Registry
	err      error
}

// number is zero for a setting that is not made.
func (q *policyReader) number(key, name string) uint64 {
	n, _, err := registryNumber(q.registry, key, name)
	if q.err == nil {
		q.err = err
	}
	return n
}

// source is where quality updates come from by policy.
func (p updatePolicy) source() posturev1.UpdateSource {
	switch {
	case p.byClass && p.quality == 1, p.server && !p.byClass && !p.dualScan:
		return posturev1.UpdateSource_UPDATE_SOURCE_WSUS
	case p.deferral:
		return posturev1.UpdateSource_UPDATE_SOURCE_WINDOWS_UPDATE_FOR_BUSINESS
	default:
		return posturev1.UpdateSource_UPDATE_SOURCE_MICROSOFT
	}
}

// contradictions are settings that exclude each other.
func (p updatePolicy) contradictions() []*posturev1.Contradiction {
	if !p.onlyInner || p.source() == posturev1.UpdateSource_UPDATE_SOURCE_WSUS {
		return nil
	}
	return []*posturev1.Contradiction{{
		Subject: "patch.windows_update.source",
		SourceA: `policy DoNotConnectToWindowsUpdateInternetLocations`, SaysA: "Microsoft's servers may not be asked",
		SourceB: "policies for the source of updates", SaysB: "Microsoft",
	}}
}

// against holds the policy against the service that the Windows Update Agent
// asks. Where a class of updates, or Windows 10 by itself, may turn elsewhere
// than the rest, one default service proves nothing.
func (p updatePolicy) against(s SearchedService) []*posturev1.Contradiction {
	if s.ServerSelection == selectedDefault || p.byClass || p.dualScan {
		return nil
	}
	managed := s.ServerSelection == selectedManagedServer
	if managed == p.server {
		return nil
	}
	words := map[bool]string{true: "a server of the administration", false: "Microsoft"}
	return []*posturev1.Contradiction{{
		Subject: "patch.windows_update.source",
		SourceA: "registry Policies WindowsUpdate", SaysA: words[p.server],
		SourceB: "Windows Update Agent", SaysB: fmt.Sprintf("%s (selection %d)", words[managed], s.ServerSelection),
	}}
}
