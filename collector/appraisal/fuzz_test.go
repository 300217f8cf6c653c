package appraisal

import (
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Whatever the file holds: a policy or errors, each with its place. The seeds
// are small because compiling is slow under the fuzzer.
func FuzzCompile(f *testing.F) {
	const head = "name: a\nfreshness: {max_age: 45m}\nrules:\n- {id: a, title: {de: a, en: a}, remedy: {de: a, en: a}, on_fail: deny, "
	for _, s := range []string{
		head + "require: \"asset.unit == '\\u00e4'\", reason: {de: \"{asset.unit}\", en: a}}\n",
		head + "require: evidence.volumes.fixed().all(v, v.encrypted()), must_apply: true, grace: 1d2h}\n",
		"params: {a: 1, b: [c], d: {duration: 1d}}\n" + head + "when: params.b.exists(x, x == 'c'), require: params.a > 0}\n",
		"rollout: {default: warn, units: {a/b: observe}}\n" + head + "require: \"now > \\\n  x\"}\n",
		"a: |2\n   x\n? b\n", "a: &a [*a]", "<<: {name: a}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		p, errs := Compile(file)
		if (p == nil) == (len(errs) == 0) {
			t.Fatalf("policy %v with %d errors", p, len(errs))
		}
		for _, e := range errs {
			if e.GetLine() == 0 || e.GetColumn() == 0 || e.GetMessage() == "" {
				t.Errorf("error without a place: %v", e)
			}
		}
		if p != nil {
			res := Appraise(Input{Policy: p, Evidence: goodEvidence(), Device: activeDevice(), Now: noon, CollectedAt: noon})
			checkResult(t, res)
		}
	})
}

func FuzzFilter(f *testing.F) {
	for _, s := range []string{
		"result.verdict == DENY", "asset.unit.startsWith('a') || device.online", "evidence.volumes.fixed().all(v, v.encrypted())",
		"[1, 2].map(x, x * 2).exists(x, x > now.getSeconds())", "asset.state in [ACTIVE", "\"ä\" == 'ö' && \n x",
	} {
		f.Add(s)
	}
	dev := activeDevice()
	dev.Evidence = goodEvidence()
	f.Fuzz(func(t *testing.T, expr string) {
		filter, err := CompileFilter(expr)
		if err != nil {
			return
		}
		if got, err := filter.Match(dev, noon); got && err != nil {
			t.Error("a filter that broke off matches")
		}
	})
}

// Whatever a notebook sends: no panic, and no admission while a rule that is
// enforced does not pass.
func FuzzAppraise(f *testing.F) {
	for _, ev := range []*posturev1.Evidence{goodEvidence(), {}, with(func(ev *posturev1.Evidence) {
		ev.Volumes.Volumes[0].Paths[0].Layers = nil
		ev.Patch.Pending[0].FirstSeenAt.Seconds = -1 << 62
		ev.Vpn.Clients[0].Version = "v2.x"
		ev.Tpm.Reading.State = 77
	})} {
		b, err := proto.Marshal(ev)
		if err != nil {
			f.Fatal(err)
		}
		for _, a := range []*posturev1.Attestation{goodAttestation(), {}, {Incomplete: "no event log", Reading: observed(), ValidUntil: ago(-1 << 40)}} {
			q, err := proto.Marshal(a)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b, q, int64(60), int32(3), int32(1))
		}
	}
	p, errs := Compile(DefaultPolicy())
	if len(errs) > 0 {
		f.Fatal(errs)
	}
	refs, err := DefaultReferences()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b, q []byte, age int64, state, protection int32) {
		ev := &posturev1.Evidence{}
		a := &posturev1.Attestation{}
		if proto.Unmarshal(b, ev) != nil || proto.Unmarshal(q, a) != nil {
			return
		}
		dev := activeDevice()
		dev.Key.Protection = fleetv1.KeyProtection(protection)
		dev.Asset.SoftwareKey = &fleetv1.SoftwareKeyPermission{Until: a.GetQuotedAt()}
		dev.Asset.State = fleetv1.AssetState(state)
		in := Input{Policy: p, References: refs, Device: dev, Evidence: ev, Attested: a, Now: noon, CollectedAt: noon.Add(-time.Duration(age) * time.Second)}
		in.Previous = Appraise(in)
		res := Appraise(in)
		checkResult(t, res)
		if res.GetVerdict() == admit && dev.GetAsset().GetState() != fleetv1.AssetState_ASSET_STATE_ACTIVE {
			t.Error("an asset that is not active was admitted")
		}
		if res.GetVerdict() == admit && !(a.GetReading().GetState() == posturev1.ReadingState_READING_STATE_OBSERVED && noon.Before(a.GetValidUntil().AsTime())) &&
			!noon.Before(dev.GetAsset().GetSoftwareKey().GetUntil().AsTime()) {
			t.Error("neither a TPM that vouches for it nor a permission, and it was admitted")
		}
		for _, lang := range []string{"de", "en"} {
			if !utf8.ValidString(Explain(&fleetv1.Explanation{Device: dev, Result: res}, lang, nil)) {
				t.Error("an explanation that is not UTF-8")
			}
		}
		if _, err := proto.Marshal(res); err != nil {
			t.Errorf("the result cannot be stored: %v", err)
		}
	})
}

// checkResult holds for every result of every policy.
func checkResult(t *testing.T, res *posturev1.Result) {
	t.Helper()
	worst := admit
	for _, f := range res.GetFindings() {
		good := f.GetOutcome() == passes || f.GetOutcome() == doesNotApply
		if good != (f.GetEffectAfterGrace() == posturev1.Effect_EFFECT_NONE) {
			t.Errorf("%s: %v leads to %v", f.GetRule(), f.GetOutcome(), f.GetEffectAfterGrace())
		}
		if !good && (f.GetReason() == nil || f.GetFailingSince() == nil) {
			t.Errorf("%s: %v without reason or date", f.GetRule(), f.GetOutcome())
		}
		switch f.GetEffect() {
		case posturev1.Effect_EFFECT_DENY:
			worst = deny
		case posturev1.Effect_EFFECT_QUARANTINE:
			worst = min(worst, quarantine)
		}
	}
	if res.GetVerdict() != worst || res.GetEnforcedVerdict() > worst {
		t.Errorf("verdict %v, enforced %v; the findings say %v", res.GetVerdict(), res.GetEnforcedVerdict(), worst)
	}
	if (res.GetCode() == "") != (res.GetVerdict() == admit) {
		t.Errorf("verdict %v with code %q", res.GetVerdict(), res.GetCode())
	}
	if res.GetExpiresAt() == nil || !res.GetExpiresAt().AsTime().After(res.GetAppraisedAt().AsTime()) {
		t.Errorf("appraised at %v, expires at %v", res.GetAppraisedAt().AsTime(), res.GetExpiresAt().AsTime())
	}
}

// Whatever the file: it is read, or refused with places that lie in it; what is
// read can be put over what is shipped and judged by.
func FuzzReferences(f *testing.F) {
	f.Add([]byte(goodReferences))
	f.Add([]byte(windowsTableFile))
	f.Add([]byte("issued: 2026-11-20\nring: [{}]\n"))
	base, err := DefaultReferences()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		r, faults := ParseReferences(file)
		if (r == nil) != (len(faults) > 0) {
			t.Fatalf("%v with %v", r, faults)
		}
		for _, e := range faults {
			if e.GetLine() == 0 || e.GetColumn() == 0 || e.GetMessage() == "" {
				t.Errorf("a fault without a place: %v", e)
			}
		}
		if r == nil {
			return
		}
		merged := r.Over(base)
		for _, p := range []*posturev1.Platform{windows(8457), windows(1, server), windows(40000, hotpatch(ternaryYes))} {
			if n, err := exposureDays(p, merged, noon); n < 0 || err != nil && n != 0 {
				t.Errorf("exposure %d, %v", n, err)
			}
			if _, err := ringDays(p, merged, []string{"pilot"}, noon); err != nil && err.Error() == "" {
				t.Error("an error without words")
			}
		}
	})
}
