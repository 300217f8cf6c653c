package appraisal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/posture"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func TestOnlyKnownAndActiveDevicesAreEverAdmitted(t *testing.T) {
	observeOnly := strings.Replace(string(DefaultPolicy()), "default: enforce", "default: observe", 1)
	policies := map[string]*Policy{"enforced": shipped(t), "observed only": mustCompile(t, observeOnly)}
	for name, p := range policies {
		for number, state := range fleetv1.AssetState_name {
			t.Run(name+" "+state, func(t *testing.T) {
				in := withDevice(inputOf(t, p, goodEvidence()), func(d *fleetv1.Device) { d.Asset.State = fleetv1.AssetState(number) })
				res := Appraise(in)
				want := deny
				if fleetv1.AssetState(number) == fleetv1.AssetState_ASSET_STATE_ACTIVE {
					want = admit
				}
				if res.GetVerdict() != want || (want == deny) != (res.GetCode() != "") {
					t.Errorf("verdict %v, code %q, want %v", res.GetVerdict(), res.GetCode(), want)
				}
			})
		}
	}
	for name, dev := range map[string]*fleetv1.Device{
		"no device": nil, "no asset": {Id: "x"}, "an asset that never enrolled": {Asset: activeDevice().Asset},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputOf(t, policies["observed only"], goodEvidence())
			in.Device = dev
			if res := Appraise(in); res.GetVerdict() != deny {
				t.Errorf("verdict %v", res.GetVerdict())
			}
		})
	}
}

func TestStaleEvidenceFallsToQuarantine(t *testing.T) {
	p := shipped(t)
	for _, tt := range []struct {
		name      string
		collected time.Time
		verdict   posturev1.Verdict
		reason    string
	}{
		{"just collected", noon, admit, ""},
		{"a second before the end", noon.Add(-45*time.Minute + time.Second), admit, ""},
		{"at the end", noon.Add(-45 * time.Minute), quarantine, "45 minutes old"},
		{"hours ago", noon.Add(-5 * time.Hour), quarantine, "5 hours old"},
		{"days ago", noon.Add(-100 * time.Hour), quarantine, "4 days old"},
		{"never", time.Time{}, quarantine, "not sent evidence yet"},
		{"in the future", noon.Add(time.Hour), admit, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := inputOf(t, p, goodEvidence())
			in.CollectedAt = tt.collected
			res := Appraise(in)
			f := findingOf(t, res, RuleEvidenceFresh)
			if res.GetVerdict() != tt.verdict || !strings.Contains(f.GetReason().GetEn(), tt.reason) {
				t.Errorf("%v (%s), want %v (%s)", res.GetVerdict(), f.GetReason().GetEn(), tt.verdict, tt.reason)
			}
			if res.GetFreshUntil() != nil && res.GetFreshUntil().AsTime().After(noon.Add(45*time.Minute)) {
				t.Errorf("fresh until %v: longer than the policy allows from now", res.GetFreshUntil().AsTime())
			}
		})
	}
}

func TestWithoutEvidenceNothingPasses(t *testing.T) {
	in := inputOf(t, shipped(t), nil)
	in.Attested = nil
	for _, f := range Appraise(in).GetFindings() {
		// The last two do not apply whatever the evidence: no policy asks for a full
		// tunnel, nothing is approved.
		apart := []string{RuleKnownDevice, RuleEvidenceFresh, RuleHardwareBound, "no-split-tunnel", "windows-behind-ring"}
		if !slices.Contains(apart, f.GetRule()) && f.GetOutcome() != isUnknown {
			t.Errorf("%s: %v", f.GetRule(), f.GetOutcome())
		}
	}
}

func TestWhatBreaksOffIsUnknown(t *testing.T) {
	for _, tt := range []struct {
		name, require, reason string
		change                func(*posturev1.Evidence)
	}{
		{"index out of range", "evidence.volumes.volumes[99].fixed()", "index", func(*posturev1.Evidence) {}},
		{"division by zero", "evidence.patch.installed_packages / evidence.patch.held > 0u", "division by zero", func(*posturev1.Evidence) {}},
		{"overflow", "9223372036854775807 + int(evidence.patch.pending_security) > 0", "overflow", func(*posturev1.Evidence) {}},
		{"too expensive", "evidence.patch.pending.all(a, evidence.patch.pending.all(b, a.package + b.package != 'x'))", "too expensive", func(ev *posturev1.Evidence) {
			for range 1500 {
				ev.Patch.Pending = append(ev.Patch.Pending, ev.Patch.Pending[0])
			}
		}},
		{"a part of a section that is not there", "evidence.patch.kernel.running == '' && evidence.patch.days_pending(now) == 0", "2 are listed", func(ev *posturev1.Evidence) {
			ev.Patch.Kernel, ev.Patch.PendingSecurity = nil, 7
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res := Appraise(inputOf(t, onePolicy(t, tt.require, "", ""), with(tt.change)))
			f := findingOf(t, res, "the-rule")
			if f.GetOutcome() != isUnknown || res.GetVerdict() != deny || !strings.Contains(f.GetReason().GetEn(), tt.reason) {
				t.Errorf("%v, %v: %s", f.GetOutcome(), res.GetVerdict(), f.GetReason().GetEn())
			}
		})
	}
}

func TestWhenDecidesWhetherARuleApplies(t *testing.T) {
	for _, tt := range []struct {
		name, when string
		change     func(*posturev1.Evidence)
		outcome    posturev1.Outcome
	}{
		{"true", "asset.unit.startsWith('inneres/')", nil, fails},
		{"false", "asset.unit.startsWith('kultur/')", nil, doesNotApply},
		{"its section unreadable", "yes(evidence.tpm.present)", func(ev *posturev1.Evidence) { ev.Tpm.Reading = failed("x") }, isUnknown},
		{"its section not applicable", "yes(evidence.tpm.present)", func(ev *posturev1.Evidence) { ev.Tpm.Reading = notApplicable("x") }, doesNotApply},
		{"it breaks off", "evidence.volumes.volumes[50].fixed()", nil, isUnknown},
		{"false, and the rest unreadable", "asset.unit == 'x'", func(ev *posturev1.Evidence) { ev.Firewall = nil }, doesNotApply},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := onePolicy(t, "evidence.firewall.engines.size() == 7", "when: "+tt.when, "")
			ev := goodEvidence()
			if tt.change != nil {
				tt.change(ev)
			}
			if f := findingOf(t, Appraise(inputOf(t, p, ev)), "the-rule"); f.GetOutcome() != tt.outcome {
				t.Errorf("%v (%s), want %v", f.GetOutcome(), f.GetReason().GetEn(), tt.outcome)
			}
		})
	}
}

func TestARuleMayLookAtAReadingItself(t *testing.T) {
	p := onePolicy(t, "evidence.secure_boot.reading.state == READING_STATE_NOT_APPLICABLE || yes(evidence.secure_boot.enabled)", "", "")
	ev := with(func(ev *posturev1.Evidence) {
		ev.SecureBoot = &posturev1.SecureBoot{Reading: notApplicable("legacy BIOS")}
	})
	if f := findingOf(t, Appraise(inputOf(t, p, ev)), "the-rule"); f.GetOutcome() != passes {
		t.Errorf("not applicable: %v", f.GetOutcome())
	}
	ev.SecureBoot.Reading = failed("efivarfs not mounted")
	if f := findingOf(t, Appraise(inputOf(t, p, ev)), "the-rule"); f.GetOutcome() != isUnknown {
		t.Errorf("failed: %v", f.GetOutcome())
	}
}

func TestOnUnknownMayDifferFromOnFail(t *testing.T) {
	p := onePolicy(t, "yes(evidence.tpm.present)", "on_unknown: warn", "")
	ev := goodEvidence()
	ev.Tpm.Present = ternaryNo
	if res := Appraise(inputOf(t, p, ev)); res.GetVerdict() != deny {
		t.Errorf("fail: %v", res.GetVerdict())
	}
	ev.Tpm.Reading = failed("x")
	if res := Appraise(inputOf(t, p, ev)); res.GetVerdict() != admit {
		t.Errorf("unknown: %v", res.GetVerdict())
	}
}

func TestContradictionsAreShownAndNeverResolved(t *testing.T) {
	contradiction := &posturev1.Contradiction{Subject: "engines[0].rules_loaded", SourceA: "systemd", SaysA: "active", SourceB: "nftables", SaysB: "no rules"}
	ev := with(func(ev *posturev1.Evidence) { ev.Firewall.Contradictions = []*posturev1.Contradiction{contradiction} })
	const holds, not = "evidence.firewall.engines.exists(e, yes(e.rules_loaded))", "evidence.firewall.engines.size() == 9"
	for _, tt := range []struct {
		name, require, extra, more string
		outcome                    posturev1.Outcome
	}{
		{"the rule would pass", holds, "", "", isUnknown},
		{"the policy calls it a failure", holds, "", "contradictions: fail\n", fails},
		{"the rule fails anyway", not, "", "", fails},
		{"the rule would not apply", "asset.unit != ''", "when: " + not, "", isUnknown},
		{"another section", "yes(evidence.tpm.present)", "", "", passes},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := findingOf(t, Appraise(inputOf(t, onePolicy(t, tt.require, tt.extra, tt.more), ev)), "the-rule")
			if f.GetOutcome() != tt.outcome {
				t.Errorf("%v (%s), want %v", f.GetOutcome(), f.GetReason().GetEn(), tt.outcome)
			}
			if shown := len(f.GetContradictions()) == 1 && proto.Equal(f.GetContradictions()[0], contradiction); shown != (tt.outcome != passes) {
				t.Errorf("contradictions shown: %v", f.GetContradictions())
			}
		})
	}
}

func TestContradictionsOfOneVPNClientCountForTheSection(t *testing.T) {
	ev := with(func(ev *posturev1.Evidence) {
		ev.Vpn.Clients[0].Contradictions = []*posturev1.Contradiction{{Subject: "session_alive"}}
	})
	if f := findingOf(t, Appraise(inputOf(t, shipped(t), ev)), "vpn-client-approved"); f.GetOutcome() != isUnknown {
		t.Errorf("%v", f.GetOutcome())
	}
}

func TestADoubtAboutTheKernelIsNoneAboutTheFeeds(t *testing.T) {
	ev := with(func(ev *posturev1.Evidence) {
		ev.Patch.Contradictions = []*posturev1.Contradiction{{Subject: "patch.kernel.running", SourceA: "kernel", SaysA: "6.18", SourceB: "dpkg", SaysB: "none"}}
	})
	res := Appraise(inputOf(t, shipped(t), ev))
	if f := findingOf(t, res, "restart-pending"); f.GetOutcome() != isUnknown || len(f.GetContradictions()) != 1 {
		t.Errorf("restart-pending reads the kernel: %v", f)
	}
	if f := findingOf(t, res, "security-feed-fresh"); f.GetOutcome() != passes || len(f.GetContradictions()) != 0 {
		t.Errorf("security-feed-fresh does not read the kernel: %v", f)
	}
}

func TestRolloutFollowsTheLongestUnit(t *testing.T) {
	p := onePolicy(t, "no(evidence.tpm.present)", "", `rollout:
  default: observe
  units: {inneres: warn, inneres/polizei: enforce, inneres/polizei/it/test: observe}
`)
	for unit, want := range map[string]struct {
		rollout posturev1.Rollout
		verdict posturev1.Verdict
		effect  posturev1.Effect
	}{
		"":                         {posturev1.Rollout_ROLLOUT_OBSERVE, admit, posturev1.Effect_EFFECT_NONE},
		"kultur":                   {posturev1.Rollout_ROLLOUT_OBSERVE, admit, posturev1.Effect_EFFECT_NONE},
		"inneres":                  {posturev1.Rollout_ROLLOUT_WARN, admit, posturev1.Effect_EFFECT_WARN},
		"inneres/justiz":           {posturev1.Rollout_ROLLOUT_WARN, admit, posturev1.Effect_EFFECT_WARN},
		"inneres/polizeischule":    {posturev1.Rollout_ROLLOUT_WARN, admit, posturev1.Effect_EFFECT_WARN},
		"inneres/polizei":          {posturev1.Rollout_ROLLOUT_ENFORCE, deny, posturev1.Effect_EFFECT_DENY},
		"inneres/polizei/it":       {posturev1.Rollout_ROLLOUT_ENFORCE, deny, posturev1.Effect_EFFECT_DENY},
		"inneres/polizei/it/test/": {posturev1.Rollout_ROLLOUT_OBSERVE, admit, posturev1.Effect_EFFECT_NONE},
	} {
		t.Run(unit, func(t *testing.T) {
			res := Appraise(withDevice(inputOf(t, p, goodEvidence()), func(d *fleetv1.Device) { d.Asset.Unit = unit }))
			f := findingOf(t, res, "the-rule")
			if res.GetRollout() != want.rollout || res.GetVerdict() != want.verdict || f.GetEffect() != want.effect {
				t.Errorf("%v, %v, %v; want %v", res.GetRollout(), res.GetVerdict(), f.GetEffect(), want)
			}
			if res.GetEnforcedVerdict() != deny || f.GetEffectAfterGrace() != posturev1.Effect_EFFECT_DENY {
				t.Errorf("enforced it would be %v, %v", res.GetEnforcedVerdict(), f.GetEffectAfterGrace())
			}
		})
	}
}

// Grace has to survive a restart of the collector, a new policy version and a
// rule that could not be read for a while.
func TestGraceBeginsOnceAndEnds(t *testing.T) {
	p := onePolicy(t, "yes(evidence.tpm.present)", "grace: 2d", "")
	failing := with(func(ev *posturev1.Evidence) { ev.Tpm.Present = ternaryNo })
	unreadable := with(func(ev *posturev1.Evidence) { ev.Tpm.Reading = failed("x") })
	var previous *posturev1.Result
	start := noon
	for _, step := range []struct {
		name    string
		after   time.Duration
		ev      *posturev1.Evidence
		effect  posturev1.Effect
		verdict posturev1.Verdict
		expires time.Duration
	}{
		{"begins to fail", 0, failing, posturev1.Effect_EFFECT_WARN, admit, 44 * time.Minute},
		{"unreadable meanwhile", 10 * time.Hour, unreadable, posturev1.Effect_EFFECT_WARN, admit, 10*time.Hour + 44*time.Minute},
		{"still failing", 47*time.Hour + 30*time.Minute, failing, posturev1.Effect_EFFECT_WARN, admit, 48 * time.Hour},
		{"grace has ended", 48 * time.Hour, failing, posturev1.Effect_EFFECT_DENY, deny, 48*time.Hour + 44*time.Minute},
	} {
		t.Run(step.name, func(t *testing.T) {
			in := inputOf(t, p, step.ev)
			in.Now = start.Add(step.after)
			in.CollectedAt = in.Now.Add(-time.Minute)
			in.Previous = throughTheStore(t, previous)
			previous = Appraise(in)
			f := findingOf(t, previous, "the-rule")
			if !f.GetFailingSince().AsTime().Equal(start) || !f.GetGraceUntil().AsTime().Equal(start.Add(48*time.Hour)) {
				t.Errorf("since %v until %v", f.GetFailingSince().AsTime(), f.GetGraceUntil().AsTime())
			}
			if f.GetEffect() != step.effect || f.GetEffectAfterGrace() != posturev1.Effect_EFFECT_DENY || previous.GetVerdict() != step.verdict {
				t.Errorf("effect %v, then %v, verdict %v", f.GetEffect(), f.GetEffectAfterGrace(), previous.GetVerdict())
			}
			if got := previous.GetExpiresAt().AsTime(); !got.Equal(start.Add(step.expires)) {
				t.Errorf("expires after %v, want %v", got.Sub(start), step.expires)
			}
		})
	}
	t.Run("repaired, then broken again: grace begins anew", func(t *testing.T) {
		in := inputOf(t, p, goodEvidence())
		in.Now, in.Previous = start.Add(49*time.Hour), previous
		in.CollectedAt = in.Now
		previous = Appraise(in)
		in.Evidence, in.EvidenceDigest, in.Previous = failing, nil, previous
		if f := findingOf(t, Appraise(in), "the-rule"); !f.GetFailingSince().AsTime().Equal(in.Now) {
			t.Errorf("since %v", f.GetFailingSince().AsTime())
		}
	})
	t.Run("a previous result from the future", func(t *testing.T) {
		in := inputOf(t, p, failing)
		in.Previous = proto.CloneOf(previous)
		f := findingOf(t, in.Previous, "the-rule")
		f.Outcome, f.FailingSince = fails, timestamppb.New(noon.Add(1000*time.Hour))
		if f := findingOf(t, Appraise(in), "the-rule"); f.GetFailingSince().AsTime().After(noon) {
			t.Errorf("since %v", f.GetFailingSince().AsTime())
		}
	})
}

// throughTheStore is what a restart leaves of a result.
func throughTheStore(t *testing.T, res *posturev1.Result) *posturev1.Result {
	if res == nil {
		return nil
	}
	b, err := proto.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	out := &posturev1.Result{}
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAResultEndsWhenTheSameEvidenceMayBeJudgedOtherwise(t *testing.T) {
	p := mustCompile(t, strings.Replace(string(DefaultPolicy()), "max_age: 45m", "max_age: 10h", 1))
	plain := with(func(ev *posturev1.Evidence) { ev.Volumes.Volumes[0].Paths = []*posturev1.StoragePath{path()} })
	for _, tt := range []struct {
		name string
		ev   *posturev1.Evidence
		age  time.Duration
		want time.Duration
	}{
		{"the end of freshness is near", goodEvidence(), 9*time.Hour + 30*time.Minute, 30 * time.Minute},
		{"rules that look at the time", goodEvidence(), 0, time.Hour},
		{"stale", goodEvidence(), 11 * time.Hour, 24 * time.Hour},
		{"denied", plain, 0, 10 * time.Hour},
		{"denied and stale", plain, 11 * time.Hour, 24 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := inputOf(t, p, tt.ev)
			in.CollectedAt = noon.Add(-tt.age)
			in.Attested.ValidUntil = ago(-48 * time.Hour)
			if got := Appraise(in).GetExpiresAt().AsTime().Sub(noon); got != tt.want {
				t.Errorf("after %v, want %v", got, tt.want)
			}
		})
	}
}

func TestTheCodeStaysWhileTheCauseStays(t *testing.T) {
	p := mustCompile(t, `name: two
freshness: {max_age: 45m}
rules:
  - {id: a, title: {de: A, en: A}, remedy: {de: A, en: A}, on_fail: deny, require: yes(evidence.tpm.present)}
  - {id: b, title: {de: B, en: B}, remedy: {de: B, en: B}, on_fail: quarantine, require: yes(evidence.secure_boot.enabled)}
  - {id: c, title: {de: C, en: C}, remedy: {de: C, en: C}, on_fail: warn, require: evidence.firewall.engines.size() == 1}
`)
	noTPM := func(ev *posturev1.Evidence) { ev.Tpm.Present = ternaryNo }
	first := Appraise(inputOf(t, p, with(noTPM)))
	if len(first.GetCode()) != 7 || first.GetCode()[3] != '-' {
		t.Fatalf("code %q", first.GetCode())
	}
	later := inputOf(t, p, with(func(ev *posturev1.Evidence) {
		noTPM(ev)
		ev.Firewall.Engines = nil // only a warning
	}))
	later.Now, later.Previous = noon.Add(30*day), first
	later.CollectedAt = later.Now
	if got := Appraise(later).GetCode(); got != first.GetCode() {
		t.Errorf("a month later %q, at first %q", got, first.GetCode())
	}
	later.Previous = nil
	if got := Appraise(later).GetCode(); got == first.GetCode() {
		t.Errorf("failing since another day, and the same code %q", got)
	}
	other := withDevice(inputOf(t, p, with(noTPM)), func(d *fleetv1.Device) { d.Id = "another" })
	if got := Appraise(other).GetCode(); got == first.GetCode() {
		t.Errorf("two devices share %q", got)
	}
	more := inputOf(t, p, with(func(ev *posturev1.Evidence) {
		noTPM(ev)
		ev.SecureBoot.Enabled = ternaryNo
	}))
	if got := Appraise(more).GetCode(); got == first.GetCode() {
		t.Errorf("another cause has the same code %q", got)
	}
}

func TestAppraiseIsPure(t *testing.T) {
	in := inputOf(t, shipped(t), with(func(ev *posturev1.Evidence) { ev.Tpm.Present = ternaryNo }))
	in.Previous = Appraise(in)
	before := []proto.Message{proto.CloneOf(in.Evidence), proto.CloneOf(in.Device), proto.CloneOf(in.Previous), proto.CloneOf(in.Attested)}
	first, second := Appraise(in), Appraise(in)
	if !proto.Equal(first, second) {
		t.Error("the same input gave two results")
	}
	for i, now := range []proto.Message{in.Evidence, in.Device, in.Previous, in.Attested} {
		if !proto.Equal(before[i], now) {
			t.Errorf("input %d was changed", i)
		}
	}
	digest, err := posture.Digest(in.Evidence)
	if err != nil || string(first.GetEvidenceDigest()) != string(digest) {
		t.Errorf("digest %x, want %x (%v)", first.GetEvidenceDigest(), digest, err)
	}
	if in.Policy.WithVersion(7).Version() != 7 || in.Policy.Version() != 0 {
		t.Error("WithVersion changed the policy itself")
	}

	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Now" {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" {
					t.Errorf("%s reads the clock", name)
				}
			}
			return true
		})
		for _, i := range file.Imports {
			switch path, _ := strconv.Unquote(i.Path.Value); strings.SplitN(path, "/", 2)[0] {
			case "os", "net", "database", "log", "syscall":
				t.Errorf("%s imports %s", name, path)
			}
		}
	}
}

func TestReportIntervalLeavesRoomForTwoLostReports(t *testing.T) {
	for age, want := range map[string]time.Duration{"45m": 15 * time.Minute, "3m": time.Minute, "14d": 15 * time.Minute} {
		p := onePolicyAged(t, age)
		if got := p.ReportInterval(); got != want {
			t.Errorf("%s: %v, want %v", age, got, want)
		}
	}
}

func onePolicyAged(t *testing.T, age string) *Policy {
	return mustCompile(t, strings.Replace(string(DefaultPolicy()), "max_age: 45m", "max_age: "+age, 1))
}
