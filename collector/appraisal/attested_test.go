package appraisal

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func attesting(change func(*posturev1.Attestation)) *posturev1.Attestation {
	a := goodAttestation()
	change(a)
	return a
}

const (
	keyInTPM      = fleetv1.KeyProtection_KEY_PROTECTION_TPM
	keyInSoftware = fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE
	keyAnywhere   = fleetv1.KeyProtection_KEY_PROTECTION_UNSPECIFIED
)

// keptIn changes where the device key is, and until when a key outside a TPM is
// permitted; nil: never.
func keptIn(in Input, where fleetv1.KeyProtection, until *timestamppb.Timestamp) Input {
	return withDevice(in, func(d *fleetv1.Device) {
		d.Key.Protection = where
		if until != nil {
			d.Asset.SoftwareKey = &fleetv1.SoftwareKeyPermission{Until: until}
		}
	})
}

func TestAnAttestationThatDoesNotCountIsUnknownWithItsReason(t *testing.T) {
	notApplicableThere := &posturev1.Attestation{Reading: notApplicable("software key")}
	tomorrow, yesterday := ago(-day), ago(day)
	for _, tt := range []struct {
		name     string
		attested *posturev1.Attestation
		key      fleetv1.KeyProtection
		until    *timestamppb.Timestamp
		outcome  posturev1.Outcome
		reason   string
	}{
		{"a fresh quote", goodAttestation(), keyInTPM, nil, passes, ""},
		{"a fresh quote of a device enrolled before keys were on record", goodAttestation(), keyAnywhere, nil, passes, ""},
		{"never quoted", nil, keyInTPM, nil, isUnknown, whyNeverQuoted},
		{"nothing at all", &posturev1.Attestation{}, keyInTPM, nil, isUnknown, "without a reading"},
		{"a quote that failed", attesting(func(a *posturev1.Attestation) { a.Reading = failed("the TPM is busy") }), keyInTPM, nil, isUnknown, "the TPM is busy"},
		{"a state that does not exist", attesting(func(a *posturev1.Attestation) { a.Reading.State = 9 }), keyInTPM, nil, isUnknown, "no reason"},
		{"the last second", attesting(func(a *posturev1.Attestation) { a.ValidUntil = ago(-time.Second) }), keyInTPM, nil, passes, ""},
		{"the end", attesting(func(a *posturev1.Attestation) { a.ValidUntil = ago(0) }), keyInTPM, nil, isUnknown, whyTooOld},
		{"long past", attesting(func(a *posturev1.Attestation) { a.ValidUntil = ago(day) }), keyInTPM, nil, isUnknown, whyTooOld},
		{"without an end", attesting(func(a *posturev1.Attestation) { a.ValidUntil = nil }), keyInTPM, nil, isUnknown, whyTooOld},
		{"an end that is no time", attesting(func(a *posturev1.Attestation) { a.ValidUntil = &timestamppb.Timestamp{Seconds: 1 << 62} }), keyInTPM, nil, isUnknown, whyTooOld},

		{"a software key that is permitted", notApplicableThere, keyInSoftware, tomorrow, doesNotApply, ""},
		{"nobody said where it is", notApplicableThere, keyAnywhere, tomorrow, doesNotApply, ""},
		{"a software key, and no word", nil, keyInSoftware, tomorrow, doesNotApply, ""},
		{"a software key that nobody permitted", notApplicableThere, keyInSoftware, nil, isUnknown, whyNotPermitted},
		{"nobody said where it is, and nobody permitted it", notApplicableThere, keyAnywhere, nil, isUnknown, whyNotPermitted},
		{"a permission that has ended", notApplicableThere, keyInSoftware, yesterday, isUnknown, whyNotPermitted},
		{"a permission that ends now", notApplicableThere, keyInSoftware, ago(0), isUnknown, whyNotPermitted},
		{"a permission without an end", notApplicableThere, keyInSoftware, &timestamppb.Timestamp{Nanos: -1}, isUnknown, whyNotPermitted},
		{"a TPM key of which nothing is said to be attested", notApplicableThere, keyInTPM, tomorrow, isUnknown, whyOtherKey},
		{"a quote of the TPM before the software key", goodAttestation(), keyInSoftware, tomorrow, doesNotApply, ""},
		{"a quote of the TPM before the forbidden software key", goodAttestation(), keyInSoftware, nil, isUnknown, whyNotPermitted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// It would hold whatever the TPM says.
			in := keptIn(inputOf(t, onePolicy(t, "attested.tpm_firmware >= 0u", "", ""), goodEvidence()), tt.key, tt.until)
			in.Attested = tt.attested
			f := findingOf(t, Appraise(in), "the-rule")
			if f.GetOutcome() != tt.outcome || !strings.Contains(f.GetReason().GetEn(), tt.reason) {
				t.Errorf("%v: %s", f.GetOutcome(), f.GetReason().GetEn())
			}
			if tt.outcome == isUnknown && (f.GetFailedSection() != "attested" || f.GetReason().GetDe() == f.GetReason().GetEn()) {
				t.Errorf("section %q: %s", f.GetFailedSection(), f.GetReason().GetDe())
			}
		})
	}
}

func TestRulesCannotSeeWhatDoesNotCount(t *testing.T) {
	p := onePolicy(t, "attested.reading.state == READING_STATE_NOT_APPLICABLE && attested.secure_boot == TERNARY_UNSPECIFIED", "", "")
	in := keptIn(inputOf(t, p, goodEvidence()), keyInSoftware, ago(-day))
	res := Appraise(in)
	if f := findingOf(t, res, "the-rule"); f.GetOutcome() != passes || !strings.Contains(fmt.Sprint(f.GetValues()), "UNSPECIFIED") {
		t.Errorf("%v: %v", f.GetOutcome(), f.GetValues())
	}
	if res.GetQuotedAt() != nil {
		t.Errorf("judged a quote of %v", res.GetQuotedAt().AsTime())
	}
	if res := Appraise(inputOf(t, p, goodEvidence())); !proto.Equal(res.GetQuotedAt(), goodAttestation().GetQuotedAt()) {
		t.Errorf("a quote that counts: %v", res.GetQuotedAt())
	}
}

func TestGermanReasons(t *testing.T) {
	for _, reason := range []string{whyNeverQuoted, whyTooOld, whyNotPermitted, whyOtherKey, whyNotInATPM, whyNotInEventLog} {
		if inGerman(reason) == reason {
			t.Errorf("%q is not translated", reason)
		}
	}
}

// part is what may be unknown alone: how it looks then, and expressions that a
// naive reader of the zero value would let pass.
type part struct {
	name   string
	forget func(*posturev1.Attestation)
	holds  []string
}

func parts() []part {
	return []part{
		{"secure_boot", func(a *posturev1.Attestation) { a.SecureBoot = ternaryUnknown },
			[]string{"attested.secure_boot != NO", "!(attested.secure_boot == NO)", "attested.secure_boot in [YES, TERNARY_UNSPECIFIED]", "yes(attested.secure_boot)"}},
		{"setup_mode", func(a *posturev1.Attestation) { a.SetupMode = ternaryUnknown },
			[]string{"attested.setup_mode != YES", "no(attested.setup_mode)", "!has(attested.setup_mode) || attested.setup_mode != YES"}},
		{"keys", func(a *posturev1.Attestation) { a.Keys = a.Keys[1:] },
			[]string{"attested.keys.all(k, k.name != 'evil')", "!attested.keys.exists(k, hex(k.sha256) == 'ab')", "attested.keys.size() < 9"}},
		{"boot_loaders", func(a *posturev1.Attestation) { a.BootLoaders = nil },
			[]string{"attested.boot_loaders.all(d, hex(d) != 'ab')", "attested.boot_loaders.size() < 9", "attested.boot_loaders_changed_at < now", "!has(attested.boot_loaders_changed_at)"}},
		{"pcrs", func(a *posturev1.Attestation) { a.Pcrs = nil },
			[]string{"!attested.rejected()", "attested.approved()", "attested.approved([0, 2])", "attested.pcrs.all(p, p.reference != REJECTED)", "!attested.pcrs.exists(p, p.reference == REJECTED)", "attested.pcrs.filter(p, p.index == 0u).size() < 2"}},
	}
}

// What the event log does not prove is neither on nor off: of all combinations
// of parts that are known and parts that are not, no rule passes that reads one
// of the latter.
func TestAnAttestedUnknownNeverPasses(t *testing.T) {
	all := parts()
	type check struct {
		needs  []string
		policy *Policy
		text   string
	}
	var checks []check
	add := func(text string, needs ...string) {
		checks = append(checks, check{needs, onePolicy(t, text, "on_unknown: quarantine", ""), text})
	}
	for _, p := range all {
		for _, text := range p.holds {
			add(text, p.name)
			add(text+" && asset.unit != ''", p.name)
			add("asset.unit != '' || "+text, p.name)
		}
	}
	add("attested.secure_boot_on()", "secure_boot", "setup_mode")
	everything := []string{"secure_boot", "setup_mode", "keys", "boot_loaders", "pcrs"}
	add("attested.warnings.size() == 0", everything...)
	add("attested.authorities.all(a, a != 'x')", everything...)
	add("attested == attested", everything...)
	add("[attested].all(a, a.secure_boot != NO)", everything...)
	add("attested.tpm_firmware > 0u && attested.quoted_at < now && attested.valid_until > now && !attested.virtual && attested.incomplete != 'x'")
	shippedNeeds := map[string][]string{
		"tpm-attested": nil, "secure-boot-attested": {"secure_boot", "setup_mode"}, "boot-measured": {"pcrs"},
		"boot-approved": {"pcrs"}, "boot-loaders-changed": {"boot_loaders"},
	}
	p := shipped(t)
	in := inputOf(t, p, goodEvidence())
	for mask := range 1 << len(all) {
		a, unknown := goodAttestation(), []string{}
		if mask != 0 {
			a.Incomplete = "PCR 7 is another than the log leads to"
		}
		for i, p := range all {
			if mask&(1<<i) != 0 {
				p.forget(a)
				unknown = append(unknown, p.name)
			}
		}
		judge := func(name string, f *posturev1.Finding, needs []string) {
			want := passes
			if slices.ContainsFunc(needs, func(n string) bool { return slices.Contains(unknown, n) }) {
				want = isUnknown
			}
			if f.GetOutcome() != want {
				t.Errorf("%s without %v: %v", name, unknown, f.GetOutcome())
			}
			if want == isUnknown && !strings.Contains(f.GetReason().GetEn(), a.GetIncomplete()) {
				t.Errorf("%s without %v: %s", name, unknown, f.GetReason().GetEn())
			}
		}
		in.Attested = a
		for _, c := range checks {
			in.Policy = c.policy
			judge(c.text, findingOf(t, Appraise(in), "the-rule"), c.needs)
		}
		in.Policy = p
		res := Appraise(in)
		for rule, needs := range shippedNeeds {
			judge(rule, findingOf(t, res, rule), needs)
		}
	}
}

// Whoever rules a notebook can measure so much that what matters is cut off.
func TestListsThatWereCutAreUnknown(t *testing.T) {
	for name, tt := range map[string]struct {
		expr   string
		change func(*posturev1.Attestation)
		want   posturev1.Outcome
	}{
		"64 boot loaders and more": {"attested.boot_loaders.all(d, hex(d) != 'ab')", func(a *posturev1.Attestation) {
			a.BootLoaders, a.Incomplete = slices.Repeat(a.GetBootLoaders(), 32), "more than 64 boot loaders"
		}, isUnknown},
		"64 boot loaders": {"attested.boot_loaders.all(d, hex(d) != 'ab')", func(a *posturev1.Attestation) {
			a.BootLoaders = slices.Repeat(a.GetBootLoaders(), 32)
		}, passes},
		"boot loaders beside something else that is missing": {"attested.boot_loaders.all(d, hex(d) != 'ab')", func(a *posturev1.Attestation) {
			a.Incomplete = "PCR 7 is another than it leads to"
		}, passes},
		"warnings":    {"!attested.warnings.exists(w, w == 'UEFI Debug Mode')", func(a *posturev1.Attestation) { a.Incomplete = "more than 64 warnings" }, isUnknown},
		"authorities": {"attested.authorities.all(a, a != 'evil')", func(a *posturev1.Attestation) { a.Incomplete = "more than 64 authorities" }, isUnknown},
	} {
		in := inputOf(t, onePolicy(t, tt.expr, "", ""), goodEvidence())
		in.Attested = attesting(tt.change)
		if f := findingOf(t, Appraise(in), "the-rule"); f.GetOutcome() != tt.want {
			t.Errorf("%s: %v (%s)", name, f.GetOutcome(), f.GetReason().GetEn())
		}
	}
}

func TestWithoutAReasonTheEventLogIsNamed(t *testing.T) {
	in := inputOf(t, onePolicy(t, "attested.secure_boot != NO", "", ""), goodEvidence())
	in.Attested = attesting(func(a *posturev1.Attestation) { a.SecureBoot = ternaryUnknown })
	if f := findingOf(t, Appraise(in), "the-rule"); f.GetOutcome() != isUnknown || !strings.Contains(f.GetReason().GetEn(), whyNotInEventLog) {
		t.Errorf("%v: %s", f.GetOutcome(), f.GetReason().GetEn())
	}
}

// Every field is either always known with the quote, or a part that may be
// unknown alone. A new one has to be put into one of the two.
func TestEveryAttestedFieldIsLookedAfter(t *testing.T) {
	withTheQuote := []string{"reading", "quoted_at", "valid_until", "incomplete", "tpm_firmware", "virtual"}
	fields := (&posturev1.Attestation{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		name := string(fields.Get(i).Name())
		part := partReading("attested." + name)
		if (part == "") != slices.Contains(withTheQuote, name) {
			t.Errorf("attested.%s is part %q", name, part)
		}
		if part == "" {
			continue
		}
		if s, ok := sourceOf(part); !ok || s.section() != "attested" {
			t.Errorf("attested.%s is no source", name)
		}
	}
	for _, part := range attestedParts() {
		if _, ok := sourceOf(part); !ok {
			t.Errorf("%s is no source", part)
		}
	}
}

func TestSecureBootIsOffWhenEitherFactSaysSo(t *testing.T) {
	p := onePolicy(t, "attested.secure_boot_on()", "", "")
	const y, n, u = ternaryYes, ternaryNo, ternaryUnknown
	for _, tt := range []struct {
		on, setup posturev1.Ternary
		outcome   posturev1.Outcome
	}{
		{y, n, passes}, {y, y, fails}, {y, u, isUnknown},
		{n, n, fails}, {n, y, fails}, {n, u, fails},
		{u, n, isUnknown}, {u, y, fails}, {u, u, isUnknown},
	} {
		in := inputOf(t, p, goodEvidence())
		in.Evidence.SecureBoot.Enabled, in.Evidence.SecureBoot.SetupMode = u, u
		in.Attested = attesting(func(a *posturev1.Attestation) { a.SecureBoot, a.SetupMode = tt.on, tt.setup })
		f := findingOf(t, Appraise(in), "the-rule")
		if f.GetOutcome() != tt.outcome {
			t.Errorf("on %v, setup mode %v: %v", tt.on, tt.setup, f.GetOutcome())
		}
		if len(f.GetValues()) != 2 {
			t.Errorf("shows %v", f.GetValues())
		}
	}
}

func TestNotebookAndTPMContradictEachOther(t *testing.T) {
	const y, n, u = ternaryYes, ternaryNo, ternaryUnknown
	const reported, attested, either = "yes(evidence.secure_boot.enabled)", "yes(attested.secure_boot)", "attested.secure_boot_on()"
	for _, tt := range []struct {
		name               string
		require, more      string
		says, vouches      posturev1.Ternary
		outcome            posturev1.Outcome
		shownContradiction bool
	}{
		{"says on, is off: what the notebook says", reported, "", y, n, isUnknown, true},
		{"says on, is off: what is attested", attested, "", y, n, fails, true},
		{"says on, is off: by the function", either, "", y, n, fails, true},
		{"says off, is on: what the notebook says", reported, "", n, y, fails, true},
		{"says off, is on: what is attested", attested, "", n, y, isUnknown, true},
		{"says off, is on: by the function", either, "", n, y, isUnknown, true},
		{"says off, is on, and contradictions fail", attested, "contradictions: fail\n", n, y, fails, true},
		{"both on", attested, "", y, y, passes, false},
		{"both off", attested, "", n, n, fails, false},
		{"the notebook does not know", attested, "", u, y, passes, false},
		{"the event log does not show it", reported, "", y, u, passes, false},
		{"a rule about something else that is attested", "attested.pcrs.size() > 0", "", y, n, passes, false},
		{"a rule about another section", "yes(evidence.tpm.present)", "", y, n, passes, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := inputOf(t, onePolicy(t, tt.require, "", tt.more), with(func(ev *posturev1.Evidence) { ev.SecureBoot.Enabled = tt.says }))
			in.Attested = attesting(func(a *posturev1.Attestation) { a.SecureBoot = tt.vouches })
			f := findingOf(t, Appraise(in), "the-rule")
			if f.GetOutcome() != tt.outcome || (len(f.GetContradictions()) > 0) != tt.shownContradiction {
				t.Fatalf("%v (%s), %v", f.GetOutcome(), f.GetReason().GetEn(), f.GetContradictions())
			}
			if !tt.shownContradiction {
				return
			}
			c := f.GetContradictions()[0]
			want := &posturev1.Contradiction{Subject: "secure_boot.enabled", SourceA: "test", SaysA: ternaryWord(tt.says), SourceB: "TPM", SaysB: ternaryWord(tt.vouches)}
			if !proto.Equal(c, want) {
				t.Errorf("%v, want %v", c, want)
			}
		})
	}
	t.Run("about setup mode", func(t *testing.T) {
		in := inputOf(t, onePolicy(t, "no(attested.setup_mode)", "", ""), with(func(ev *posturev1.Evidence) { ev.SecureBoot.SetupMode = y }))
		if f := findingOf(t, Appraise(in), "the-rule"); f.GetOutcome() != isUnknown || len(f.GetContradictions()) != 1 {
			t.Errorf("%v, %v", f.GetOutcome(), f.GetContradictions())
		}
	})
	for name, change := range map[string]func(*Input){
		"evidence that was not read": func(in *Input) { in.Evidence.SecureBoot.Reading = failed("x") },
		"a quote that is too old":    func(in *Input) { in.Attested.ValidUntil = ago(0) },
	} {
		t.Run(name, func(t *testing.T) {
			in := inputOf(t, shipped(t), with(func(ev *posturev1.Evidence) { ev.SecureBoot.Enabled = n }))
			change(&in)
			for _, f := range Appraise(in).GetFindings() {
				if len(f.GetContradictions()) > 0 {
					t.Errorf("%s: %v", f.GetRule(), f.GetContradictions())
				}
			}
		})
	}
}

func TestTheWeakestOriginCounts(t *testing.T) {
	const self, vouched, listed = posturev1.Origin_ORIGIN_SELF_REPORTED, posturev1.Origin_ORIGIN_ATTESTED, posturev1.Origin_ORIGIN_INVENTORY
	for expr, want := range map[string]posturev1.Origin{
		"attested.secure_boot == YES":                                       vouched,
		"attested.secure_boot_on()":                                         vouched,
		"attested.valid_until > now && reference.has_ring()":                vouched,
		"attested.pcrs.all(p, p.index > 0u) && asset.unit == 'x'":           vouched,
		"[attested].all(a, a.virtual)":                                      vouched,
		"asset.unit == 'x' && device.key.virtual":                           listed,
		"attested.secure_boot == evidence.secure_boot.enabled":              self,
		"attested.virtual && evidence_age < duration('1m')":                 self,
		"asset.unit == 'x' || yes(evidence.tpm.present)":                    self,
		"asset.unit == 'x' && evidence_age < duration('1m')":                self,
		"attested.keys.exists(k, k.name == evidence.platform.distribution)": self,
		"now > timestamp('2026-01-01T00:00:00Z')":                           self,
	} {
		f := findingOf(t, Appraise(inputOf(t, onePolicy(t, expr, "", ""), goodEvidence())), "the-rule")
		if f.GetOrigin() != want {
			t.Errorf("%s: %v, want %v", expr, f.GetOrigin(), want)
		}
	}
	t.Run("of when and require together", func(t *testing.T) {
		p := onePolicy(t, "attested.secure_boot_on()", "when: yes(evidence.tpm.present)", "")
		if f := findingOf(t, Appraise(inputOf(t, p, goodEvidence())), "the-rule"); f.GetOrigin() != self {
			t.Errorf("%v", f.GetOrigin())
		}
	})
	for rule, want := range map[string]posturev1.Origin{
		"tpm-attested": vouched, "secure-boot-attested": vouched, "boot-measured": vouched, "boot-approved": vouched,
		"boot-loaders-changed": vouched, "secure-boot": self, "disks-encrypted": self, RuleHardwareBound: listed, RuleKnownDevice: listed,
	} {
		if f := findingOf(t, Appraise(inputOf(t, shipped(t), goodEvidence())), rule); f.GetOrigin() != want {
			t.Errorf("%s: %v, want %v", rule, f.GetOrigin(), want)
		}
	}
}

func TestAttestedValuesAreShown(t *testing.T) {
	key := fmt.Sprintf("%x", sum("PK"))
	for expr, want := range map[string]string{
		"attested.secure_boot == YES":                             "attested.secure_boot = YES",
		"attested.secure_boot_on()":                               "attested.secure_boot = YES, attested.setup_mode = NO",
		"attested.pcrs.size() > 20":                               "attested.pcrs = 0 approved, 2 approved, 4 learned, 7 approved, 11 learned",
		"!attested.rejected()":                                    "attested.pcrs = 0 approved",
		"attested.pcrs.all(p, p.index < 20u)":                     "attested.pcrs[2].index = 4",
		"attested.keys.all(k, k.name != 'PK')":                    "attested.keys[0].name = PK",
		"attested.keys.exists(k, hex(k.sha256) == '" + key + "')": "attested.keys[0].sha256 = " + key,
		"attested.boot_loaders.size() == 1":                       "attested.boot_loaders = ",
		"attested.boot_loaders_changed_at > now":                  "attested.boot_loaders_changed_at = not reported",
		"attested.virtual":                                        "attested.virtual = false",
	} {
		f := findingOf(t, Appraise(inputOf(t, onePolicy(t, expr, "", ""), goodEvidence())), "the-rule")
		var got []string
		for _, v := range f.GetValues() {
			got = append(got, v.GetPath()+" = "+v.GetValue())
		}
		if !strings.Contains(strings.Join(got, ", "), want) {
			t.Errorf("%s shows %s\nwithout %s", expr, strings.Join(got, ", "), want)
		}
	}
}

func TestAResultEndsWithTheAttestationItRestsOn(t *testing.T) {
	p := mustCompile(t, strings.Replace(string(DefaultPolicy()), "max_age: 45m", "max_age: 10h", 1))
	plain := with(func(ev *posturev1.Evidence) { ev.Volumes.Volumes[0].Paths = []*posturev1.StoragePath{path()} })
	for name, ev := range map[string]*posturev1.Evidence{"admitted": goodEvidence(), "denied": plain, "empty": {}} {
		for _, left := range []time.Duration{time.Second, 10 * time.Minute, 30 * time.Hour} {
			in := inputOf(t, p, ev)
			in.Attested.ValidUntil = timestamppb.New(noon.Add(left))
			if got := Appraise(in).GetExpiresAt().AsTime().Sub(noon); got > left {
				t.Errorf("%s: ends after %v, the quote after %v", name, got, left)
			}
			in = keptIn(in, keyInSoftware, in.Attested.GetValidUntil())
			if got := Appraise(in).GetExpiresAt().AsTime().Sub(noon); got > left {
				t.Errorf("%s: ends after %v, the permission after %v", name, got, left)
			}
		}
	}
	in := inputOf(t, shipped(t), goodEvidence())
	in.Attested.ValidUntil = ago(-5 * time.Minute)
	res := Appraise(in)
	if res.GetVerdict() != admit || !res.GetExpiresAt().AsTime().Equal(noon.Add(5*time.Minute)) {
		t.Errorf("%v until %v", res.GetVerdict(), res.GetExpiresAt().AsTime())
	}
	in.Now, in.Previous = res.GetExpiresAt().AsTime(), res
	if res := Appraise(in); res.GetVerdict() != quarantine {
		t.Errorf("then: %v", res.GetVerdict())
	}
}

func TestEveryResultSaysWhetherTheKeyIsBoundToTheHardware(t *testing.T) {
	const rules = "yes(evidence.tpm.present)"
	for _, tt := range []struct {
		name    string
		more    string
		key     *fleetv1.DeviceKey
		until   *timestamppb.Timestamp
		outcome posturev1.Outcome
		effect  posturev1.Effect
		reason  string
	}{
		{"in a TPM", "", &fleetv1.DeviceKey{Protection: keyInTPM}, nil, passes, posturev1.Effect_EFFECT_NONE, ""},
		{"in a TPM, with a permission left over", "", &fleetv1.DeviceKey{Protection: keyInTPM}, ago(-day), passes, posturev1.Effect_EFFECT_NONE, ""},
		{"in a virtual TPM", "", &fleetv1.DeviceKey{Protection: keyInTPM, Virtual: true}, nil, fails, posturev1.Effect_EFFECT_WARN, "is a program"},
		{"permitted", "", &fleetv1.DeviceKey{Protection: keyInSoftware}, ago(-30 * day), fails, posturev1.Effect_EFFECT_WARN, "until 21 December 2026"},
		{"permitted, but refused by the policy", "software_keys: {effect: deny}\n", &fleetv1.DeviceKey{Protection: keyInSoftware}, ago(-30 * day), fails, posturev1.Effect_EFFECT_DENY, "until 21 December 2026"},
		{"permitted, but kept apart by the policy", "software_keys: {effect: quarantine}\n", &fleetv1.DeviceKey{Protection: keyInSoftware}, ago(-30 * day), fails, posturev1.Effect_EFFECT_QUARANTINE, "until"},
		{"permitted, and only observed", "software_keys: {effect: deny}\nrollout: {default: observe}\n", &fleetv1.DeviceKey{Protection: keyInSoftware}, ago(-30 * day), fails, posturev1.Effect_EFFECT_NONE, "until"},
		{"never permitted", "", &fleetv1.DeviceKey{Protection: keyInSoftware}, nil, fails, posturev1.Effect_EFFECT_DENY, "not permitted"},
		{"no longer permitted", "", &fleetv1.DeviceKey{Protection: keyInSoftware}, ago(0), fails, posturev1.Effect_EFFECT_DENY, "not permitted"},
		{"never permitted, and only observed", "rollout: {default: observe}\n", &fleetv1.DeviceKey{Protection: keyInSoftware}, nil, fails, posturev1.Effect_EFFECT_DENY, "not permitted"},
		{"nobody knows where", "", nil, nil, isUnknown, posturev1.Effect_EFFECT_WARN, "unknown"},
		{"nobody knows where, under a policy that refuses", "software_keys: {effect: deny}\n", nil, ago(-day), isUnknown, posturev1.Effect_EFFECT_DENY, "unknown"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := withDevice(inputOf(t, onePolicy(t, rules, "", tt.more), goodEvidence()), func(d *fleetv1.Device) {
				d.Key = tt.key
				if tt.until != nil {
					d.Asset.SoftwareKey = &fleetv1.SoftwareKeyPermission{Until: tt.until}
				}
			})
			res := Appraise(in)
			f := findingOf(t, res, RuleHardwareBound)
			if f.GetOutcome() != tt.outcome || f.GetEffect() != tt.effect || !strings.Contains(f.GetReason().GetEn(), tt.reason) {
				t.Errorf("%v, %v: %s", f.GetOutcome(), f.GetEffect(), f.GetReason().GetEn())
			}
			if res.GetVerdict() != verdictOf(tt.effect) {
				t.Errorf("verdict %v", res.GetVerdict())
			}
		})
	}
}

// The rules of the shipped policy about what is attested.
// The command line is told the last day, and ends the permission with it.
func TestAPermittedSoftwareKeyIsPermittedUntilItsLastDay(t *testing.T) {
	for until, last := range map[time.Time][2]string{
		time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC):   {"31.01.2027", "31 January 2027"},
		time.Date(2027, 1, 31, 12, 0, 0, 0, time.UTC): {"31.01.2027", "31 January 2027"},
	} {
		text := textSoftwareKey(until)
		if !strings.Contains(text.GetDe(), "bis zum "+last[0]+" erlaubt") || !strings.Contains(text.GetEn(), "until "+last[1]+".") {
			t.Errorf("%s: %v", until, text)
		}
	}
}

func TestTheShippedPolicyAndTheTPM(t *testing.T) {
	pcr := func(index uint32, reference posturev1.PcrReference) func(*posturev1.Attestation) {
		return func(a *posturev1.Attestation) {
			for _, p := range a.GetPcrs() {
				if p.GetIndex() == index {
					p.Reference = reference
				}
			}
		}
	}
	allPCRs := func(reference posturev1.PcrReference) func(*posturev1.Attestation) {
		return func(a *posturev1.Attestation) {
			for _, p := range a.GetPcrs() {
				p.Reference = reference
			}
		}
	}
	const learned, rejected, unspecified = posturev1.PcrReference_PCR_REFERENCE_LEARNED, posturev1.PcrReference_PCR_REFERENCE_REJECTED, posturev1.PcrReference_PCR_REFERENCE_UNSPECIFIED
	for _, tt := range []struct {
		name    string
		rule    string
		change  func(*posturev1.Attestation)
		outcome posturev1.Outcome
		verdict posturev1.Verdict
	}{
		{"all is well", "tpm-attested", func(*posturev1.Attestation) {}, passes, admit},
		{"too old", "tpm-attested", func(a *posturev1.Attestation) { a.ValidUntil = ago(time.Minute) }, isUnknown, quarantine},
		{"the TPM does not answer", "tpm-attested", func(a *posturev1.Attestation) { a.Reading = failed("no answer") }, isUnknown, quarantine},
		{"Secure Boot off", "secure-boot-attested", func(a *posturev1.Attestation) { a.SecureBoot = ternaryNo }, fails, quarantine},
		{"setup mode", "secure-boot-attested", func(a *posturev1.Attestation) { a.SetupMode = ternaryYes }, fails, quarantine},
		{"setup mode, the rest unknown", "secure-boot-attested", func(a *posturev1.Attestation) { a.SecureBoot, a.SetupMode = ternaryUnknown, ternaryYes }, fails, quarantine},
		{"an event log that leads elsewhere", "secure-boot-attested", func(a *posturev1.Attestation) { a.SecureBoot, a.SetupMode = ternaryUnknown, ternaryUnknown }, isUnknown, admit},
		{"firmware rejected", "boot-measured", pcr(0, rejected), fails, deny},
		{"a boot loader rejected", "boot-measured", pcr(4, rejected), fails, deny},
		{"what the system measured rejected", "boot-measured", pcr(14, rejected), fails, deny},
		{"no values with the quote", "boot-measured", func(a *posturev1.Attestation) { a.Pcrs = nil }, isUnknown, quarantine},
		{"only learned", "boot-measured", allPCRs(learned), passes, admit},
		{"nothing approved yet", "boot-approved", allPCRs(learned), doesNotApply, admit},
		{"nothing known yet", "boot-approved", allPCRs(unspecified), doesNotApply, admit},
		{"other firmware than approved", "boot-approved", pcr(0, learned), fails, admit},
		{"other keys of Secure Boot than approved", "boot-approved", pcr(7, unspecified), fails, admit},
		{"an approved PCR missing from the quote", "boot-approved", func(a *posturev1.Attestation) { a.Pcrs = a.Pcrs[1:] }, fails, admit},
		{"boot loader changed an hour ago", "boot-loaders-changed", func(a *posturev1.Attestation) { a.BootLoadersChangedAt = ago(time.Hour) }, fails, admit},
		{"boot loader changed a day ago", "boot-loaders-changed", func(a *posturev1.Attestation) { a.BootLoadersChangedAt = ago(25 * time.Hour) }, passes, admit},
		{"boot loader changed, and now unknown", "boot-loaders-changed", func(a *posturev1.Attestation) {
			a.BootLoadersChangedAt, a.BootLoaders = ago(25*time.Hour), nil
		}, isUnknown, admit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := inputOf(t, shipped(t), with(func(ev *posturev1.Evidence) { ev.SecureBoot = &posturev1.SecureBoot{Reading: failed("x")} }))
			in.Attested = attesting(tt.change)
			res := Appraise(in)
			f := findingOf(t, res, tt.rule)
			if f.GetOutcome() != tt.outcome || res.GetVerdict() != tt.verdict {
				t.Errorf("%v (%s), %v", f.GetOutcome(), f.GetReason().GetEn(), res.GetVerdict())
			}
			if bad := tt.outcome == fails || tt.outcome == isUnknown; bad && (f.GetReason().GetDe() == "" || f.GetRemedy().GetDe() == "") {
				t.Errorf("finding does not explain itself: %v", f)
			}
		})
	}
	t.Run("a permitted software key is marked and nothing else", func(t *testing.T) {
		res := Appraise(keptIn(inputOf(t, shipped(t), goodEvidence()), keyInSoftware, ago(-day)))
		if res.GetVerdict() != admit {
			t.Errorf("verdict %v", res.GetVerdict())
		}
		for _, f := range res.GetFindings() {
			if bad := f.GetOutcome() == fails || f.GetOutcome() == isUnknown; bad != (f.GetRule() == RuleHardwareBound) {
				t.Errorf("%s: %v", f.GetRule(), f.GetOutcome())
			}
		}
	})
}

func TestValuesOfPCRsAreApprovedOneByOne(t *testing.T) {
	for expr, want := range map[string]posturev1.Outcome{
		"attested.approved([0])":           passes,
		"attested.approved([0, 2, 7])":     passes,
		"attested.approved([0, 2, 4])":     fails, // 4 is learned
		"attested.approved([0, 9])":        fails, // 9 is not quoted
		"attested.approved([-1])":          fails,
		"attested.approved([4294967296])":  fails,
		"attested.approved([])":            isUnknown,
		"attested.approved()":              passes,
		"attested.rejected()":              fails,
		"!attested.approved([]) || 1 == 2": isUnknown,
	} {
		if f := findingOf(t, Appraise(inputOf(t, onePolicy(t, expr, "", ""), goodEvidence())), "the-rule"); f.GetOutcome() != want {
			t.Errorf("%s: %v (%s), want %v", expr, f.GetOutcome(), f.GetReason().GetEn(), want)
		}
	}
}

// Who withholds the event log gains a month once, and nothing after having been
// seen without Secure Boot.
func TestGraceForWhatCannotBeTold(t *testing.T) {
	p := shipped(t)
	off := func(a *posturev1.Attestation) { a.SecureBoot = ternaryNo }
	unknown := func(a *posturev1.Attestation) { a.SecureBoot = ternaryUnknown }
	var previous *posturev1.Result
	for _, step := range []struct {
		name    string
		after   time.Duration
		change  func(*posturev1.Attestation)
		verdict posturev1.Verdict
	}{
		{"without an event log", 0, unknown, admit},
		{"weeks later", 29 * day, unknown, admit},
		{"a month later", 30 * day, unknown, quarantine},
		{"proven", 31 * day, func(*posturev1.Attestation) {}, admit},
		{"proven to be off", 32 * day, off, quarantine},
		{"the log is withheld at once", 32*day + time.Hour, unknown, quarantine},
		{"and kept back", 32*day + 2*time.Hour, unknown, quarantine},
		{"still off meanwhile", 33 * day, off, quarantine},
		{"and withheld for long", 63 * day, unknown, quarantine},
		{"proven again", 64 * day, func(*posturev1.Attestation) {}, admit},
		{"a new start", 65 * day, unknown, admit},
	} {
		t.Run(step.name, func(t *testing.T) {
			in := inputOf(t, p, with(func(ev *posturev1.Evidence) {
				ev.SecureBoot.Enabled, ev.SecureBoot.SetupMode = ternaryUnknown, ternaryUnknown
				for _, u := range ev.Patch.Pending {
					u.FirstSeenAt = timestamppb.New(noon.Add(step.after))
				}
				for _, f := range ev.Patch.Feeds {
					f.FetchedAt, f.ReleasedAt, f.ValidUntil = timestamppb.New(noon.Add(step.after)), timestamppb.New(noon.Add(step.after)), timestamppb.New(noon.Add(step.after+day))
				}
			}))
			in.Now = noon.Add(step.after)
			in.CollectedAt = in.Now
			in.Attested = attesting(step.change)
			in.Attested.ValidUntil = timestamppb.New(in.Now.Add(day))
			in.Previous = previous
			previous = Appraise(in)
			if previous.GetVerdict() != step.verdict {
				t.Errorf("%v: %v", previous.GetVerdict(), RefusalText(previous).GetEn())
			}
		})
	}
}
