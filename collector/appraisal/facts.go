package appraisal

import (
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/posture"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// source is a reading that a rule can depend on: a section of evidence, what
// the TPM vouches for, or a part of either that may fail alone.
type source int

const (
	sourcePlatform source = iota
	sourceVolumes
	sourcePatch
	sourceVpn
	sourceTpm
	sourceSecureBoot
	sourceFirewall
	sourceAntivirus
	sourceScreenLock
	sourceKernel
	sourceRouting
	sourceUpdateSearch
	sourceUpdateOrigin
	// What the TPM vouches for: as a whole, then parts that may be unknown alone.
	sourceAttested
	// sourceStart is what of the start is known, whichever way.
	sourceStart
	sourceStartSecureBoot
	sourceStartSetupMode
	sourceStartKeys
	sourceStartLoaders
	sourceStartEvents
	sourcePcrs
	sources
)

// section is the section of evidence that the source belongs to, or "attested".
func (s source) section() string {
	if s >= sourceAttested {
		return "attested"
	}
	switch s {
	case sourceKernel, sourceUpdateSearch, sourceUpdateOrigin:
		s = sourcePatch
	case sourceRouting:
		s = sourceVpn
	}
	return [...]string{"platform", "volumes", "patch", "vpn", "tpm", "secure_boot", "firewall", "antivirus", "screen_lock"}[s]
}

// sourceOf finds the source of a section's name or of a part's path.
func sourceOf(name string) (source, bool) {
	switch name {
	case "evidence.patch.kernel_reading":
		return sourceKernel, true
	case "evidence.vpn.routing_reading":
		return sourceRouting, true
	case "evidence.patch.windows_update.reading":
		return sourceUpdateSearch, true
	case "evidence.patch.windows_update.source":
		return sourceUpdateOrigin, true
	case "attested":
		return sourceAttested, true
	case "attested.secure_boot_on()":
		return sourceStart, true
	case "attested.secure_boot":
		return sourceStartSecureBoot, true
	case "attested.setup_mode":
		return sourceStartSetupMode, true
	case "attested.keys":
		return sourceStartKeys, true
	case "attested.boot_loaders":
		return sourceStartLoaders, true
	case "attested.warnings":
		return sourceStartEvents, true
	case "attested.pcrs":
		return sourcePcrs, true
	}
	for s := range sourceKernel {
		if s.section() == name {
			return s, true
		}
	}
	return 0, false
}

// state is what is known of a source. Neither observed nor notApplicable: it
// could not be read.
type state struct {
	observed, notApplicable bool
	reason                  string
	contradictions          []*posturev1.Contradiction
}

// facts are one input, prepared once for all rules. They are also the
// variables of the rules' expressions.
type facts struct {
	Input
	rollout posturev1.Rollout
	states  [sources]state
	// vouched is what of Input.Attested counts; never nil.
	vouched *posturev1.Attestation
	// ends is when it no longer counts, or when the permission to have nothing
	// attested ends; zero: neither will.
	ends time.Time
	// The variables.
	evidence, attested, device, asset, now, age ref.Val
	// enforced is the verdict without rollout, verdict with it; both begin as
	// ADMIT and only fall.
	enforced, verdict posturev1.Verdict
	graceEnds         time.Time
	// views are the values that were rendered already, by viewer.
	views [][]*posturev1.Value
}

func newFacts(in Input) *facts {
	if in.Evidence == nil {
		in.Evidence = &posturev1.Evidence{}
	}
	f := &facts{Input: in, rollout: in.Policy.rolloutOf(in.Device.GetAsset().GetUnit()),
		enforced: posturev1.Verdict_VERDICT_ADMIT, verdict: posturev1.Verdict_VERDICT_ADMIT,
		views: make([][]*posturev1.Value, len(in.Policy.viewers))}
	adapt := in.Policy.language.adapt
	device, asset := in.Device, in.Device.GetAsset()
	if device == nil {
		device = &fleetv1.Device{}
	}
	if asset == nil {
		asset = &fleetv1.Asset{}
	}
	f.vouched = vouched(in)
	f.evidence, f.attested = adapt.NativeToValue(in.Evidence), adapt.NativeToValue(f.vouched)
	f.device, f.asset = adapt.NativeToValue(device), adapt.NativeToValue(asset)
	f.now = types.Timestamp{Time: in.Now}
	f.age = types.Duration{Duration: in.Now.Sub(in.CollectedAt)}
	f.readStates()
	f.readAttested()
	return f
}

func (f *facts) readStates() {
	for s := range sourceKernel {
		f.states[s] = newState(posture.ReadingOf(f.Evidence, s.section()))
	}
	ev := f.Evidence
	vpn := ev.GetVpn().GetContradictions()
	for _, c := range ev.GetVpn().GetClients() {
		if len(c.GetContradictions()) > 0 {
			vpn = append(vpn[:len(vpn):len(vpn)], c.GetContradictions()...)
		}
	}
	f.states[sourceKernel] = kernel(ev)
	f.states[sourceRouting] = newState(ev.GetVpn().GetRoutingReading())
	f.states[sourceUpdateSearch] = updateSearch(ev)
	// Where updates come from is read with the section; only a doubt about it
	// is its own.
	f.states[sourceUpdateOrigin] = f.states[sourcePatch]
	f.states[sourcePlatform].contradictions = ev.GetPlatform().GetContradictions()
	f.states[sourceVolumes].contradictions = ev.GetVolumes().GetContradictions()
	f.states[sourceSecureBoot].contradictions = ev.GetSecureBoot().GetContradictions()
	f.states[sourceFirewall].contradictions = ev.GetFirewall().GetContradictions()
	f.states[sourceAntivirus].contradictions = ev.GetAntivirus().GetContradictions()
	for _, c := range ev.GetPatch().GetContradictions() {
		f.contradict(sourcePatch, c)
	}
	for _, c := range vpn {
		f.contradict(sourceVpn, c)
	}
}

// contradict puts a contradiction where it belongs: to the part of the section
// that its subject names, so that a doubt about the kernel is none about the
// update feeds.
func (f *facts) contradict(section source, c *posturev1.Contradiction) {
	if part, ok := sourceOf(partReading("evidence." + c.GetSubject())); ok {
		section = part
	}
	f.states[section].contradictions = append(f.states[section].contradictions, c)
}

// onWindows says whether evidence comes from Windows. One hint is enough: the
// parts that Windows reads apart are then asked for.
func onWindows(ev *posturev1.Evidence) bool {
	p := ev.GetPatch()
	return ev.GetPlatform().GetOperatingSystem() == posturev1.OperatingSystem_OPERATING_SYSTEM_WINDOWS ||
		p.GetPackageSystem() == windowsUpdate || p.GetWindowsUpdate() != nil
}

// kernel is the state of kernel and pending restart. On Windows the restart is
// read with the rest of the patch level, and there is no kernel apart.
func kernel(ev *posturev1.Evidence) state {
	s := newState(ev.GetPatch().GetKernelReading())
	if onWindows(ev) && (s.notApplicable || ev.GetPatch().GetKernelReading() == nil) {
		return newState(posture.ReadingOf(ev, "patch"))
	}
	return s
}

// updateSearch is the state of the search for pending updates. On Windows it is
// a reading of its own; elsewhere what is pending is read with all the rest.
func updateSearch(ev *posturev1.Evidence) state {
	patch := newState(posture.ReadingOf(ev, "patch"))
	if !onWindows(ev) || !patch.observed {
		return patch
	}
	return newState(ev.GetPatch().GetWindowsUpdate().GetReading())
}

func newState(r *posturev1.Reading) state {
	s := state{reason: r.GetReason()}
	switch r.GetState() {
	case posturev1.ReadingState_READING_STATE_OBSERVED:
		s.observed = true
	case posturev1.ReadingState_READING_STATE_NOT_APPLICABLE:
		s.notApplicable = true
	case posturev1.ReadingState_READING_STATE_UNSPECIFIED:
		s.reason = "reported without a reading"
	}
	return s
}

// root is the message behind the first word of a path.
func (f *facts) root(name string) protoreflect.Message {
	switch name {
	case "evidence":
		return f.Evidence.ProtoReflect()
	case "attested":
		return f.vouched.ProtoReflect()
	case "asset":
		return f.Device.GetAsset().ProtoReflect()
	}
	return f.Device.ProtoReflect()
}

// view renders the values of one of the policy's viewers, once.
func (f *facts) view(i int) []*posturev1.Value {
	if f.views[i] == nil {
		v := f.Policy.viewers[i]
		f.views[i] = v.values(f.root(v.root))
	}
	return f.views[i]
}

// ResolveName implements cel.Activation.
func (f *facts) ResolveName(name string) (any, bool) {
	switch name {
	case "evidence":
		return f.evidence, true
	case "attested":
		return f.attested, true
	case "device":
		return f.device, true
	case "asset":
		return f.asset, true
	case "now":
		return f.now, true
	case "evidence_age":
		return f.age, true
	case "reference":
		return f.References, true
	}
	return nil, false
}

// Parent implements cel.Activation.
func (f *facts) Parent() cel.Activation { return nil }

// weigh completes a finding with what it does: since when it fails, whether
// grace still holds, and the effect on the verdict. Rollout lowers the effect
// now; effect_after_grace is what the rule itself demands.
func (f *facts) weigh(out *posturev1.Finding, demanded posturev1.Effect, grace time.Duration) {
	if out.Outcome != posturev1.Outcome_OUTCOME_FAIL && out.Outcome != posturev1.Outcome_OUTCOME_UNKNOWN {
		out.Effect, out.EffectAfterGrace = posturev1.Effect_EFFECT_NONE, posturev1.Effect_EFFECT_NONE
		return
	}
	since := f.failingSince(out.Rule)
	out.FailingSince = timestamppb.New(since)
	out.Effect, out.EffectAfterGrace = demanded, demanded
	if grace > 0 {
		until := since.Add(grace)
		out.GraceUntil = timestamppb.New(until)
		if f.Now.Before(until) {
			out.Effect = max(demanded, posturev1.Effect_EFFECT_WARN)
			if f.graceEnds.IsZero() || until.Before(f.graceEnds) {
				f.graceEnds = until
			}
		}
	}
	f.enforced = min(f.enforced, verdictOf(out.Effect))
	switch f.rollout {
	case posturev1.Rollout_ROLLOUT_OBSERVE:
		out.Effect = posturev1.Effect_EFFECT_NONE
	case posturev1.Rollout_ROLLOUT_WARN:
		out.Effect = max(out.Effect, posturev1.Effect_EFFECT_WARN)
	}
	f.verdict = min(f.verdict, verdictOf(out.Effect))
}

// weighAlways is weigh for what no rollout softens.
func (f *facts) weighAlways(out *posturev1.Finding, demanded posturev1.Effect) {
	rollout := f.rollout
	f.rollout = posturev1.Rollout_ROLLOUT_ENFORCE
	f.weigh(out, demanded, 0)
	f.rollout = rollout
}

// failingSince is since when a rule has not passed: carried on from the last
// result, through changes between FAIL and UNKNOWN too, else now.
func (f *facts) failingSince(rule string) time.Time {
	for _, before := range f.Previous.GetFindings() {
		if before.GetRule() != rule || before.GetFailingSince() == nil {
			continue
		}
		switch before.GetOutcome() {
		case posturev1.Outcome_OUTCOME_FAIL, posturev1.Outcome_OUTCOME_UNKNOWN:
			if since := before.GetFailingSince().AsTime(); since.Before(f.Now) {
				return since
			}
		}
	}
	return f.Now
}

// failedSince is when a rule was first seen to fail since it last passed; nil:
// it was not.
func (f *facts) failedSince(rule string) *timestamppb.Timestamp {
	for _, before := range f.Previous.GetFindings() {
		if before.GetRule() != rule {
			continue
		}
		switch before.GetOutcome() {
		case posturev1.Outcome_OUTCOME_FAIL, posturev1.Outcome_OUTCOME_UNKNOWN:
			return before.GetFailedSince()
		}
	}
	return nil
}

// verdictOf is the best verdict that an effect leaves.
func verdictOf(e posturev1.Effect) posturev1.Verdict {
	switch e {
	case posturev1.Effect_EFFECT_NONE, posturev1.Effect_EFFECT_WARN:
		return posturev1.Verdict_VERDICT_ADMIT
	case posturev1.Effect_EFFECT_QUARANTINE:
		return posturev1.Verdict_VERDICT_QUARANTINE
	}
	return posturev1.Verdict_VERDICT_DENY
}
