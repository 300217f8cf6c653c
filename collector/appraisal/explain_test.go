package appraisal

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// explanations are situations that somebody asks the help desk about.
func explanations(t *testing.T) map[string]*fleetv1.Explanation {
	device := func(res *posturev1.Result) *fleetv1.Explanation {
		return &fleetv1.Explanation{Device: activeDevice(), Result: res, Verdict: res.GetVerdict(), Reason: RefusalText(res)}
	}
	p := mustCompile(t, strings.Replace(string(DefaultPolicy()), "id: tpm\n", "id: tpm\n    grace: 14d\n", 1)).WithVersion(3)

	denied := inputOf(t, p, with(func(ev *posturev1.Evidence) {
		ev.Volumes.Volumes[0].Paths = append(ev.Volumes.Volumes[0].Paths, path(layer(posturev1.LayerType_LAYER_TYPE_LINEAR)))
		ev.Patch.Pending[0].FirstSeenAt = ago(16 * day)
		ev.Tpm.Present = ternaryNo
		ev.SecureBoot = &posturev1.SecureBoot{Reading: notApplicable("legacy BIOS")}
		ev.Firewall.Contradictions = []*posturev1.Contradiction{{
			Subject: "engines[0].rules_loaded", SourceA: "systemd", SaysA: "active", SourceB: "nftables", SaysB: "no rules"}}
	}))
	denied.Previous = &posturev1.Result{Findings: []*posturev1.Finding{
		{Rule: "disks-encrypted", Outcome: fails, FailingSince: ago(5 * day)},
		{Rule: "tpm", Outcome: fails, FailingSince: ago(5 * day)},
	}}
	live := device(Appraise(denied))
	live.Sessions = []*fleetv1.Session{{Gateway: "gw-1", Verdict: deny, Since: ago(2 * time.Hour), CutPending: true}}

	observed := inputOf(t, mustCompile(t, strings.Replace(string(DefaultPolicy()), "# units:\n  #   inneres/polizei: warn", "units: {inneres/polizei: warn}", 1)), denied.Evidence)
	warned := device(Appraise(observed))

	old := device(Appraise(denied))
	old.Outdated, old.Verdict, old.RefusedAt, old.Gateway = true, admit, ago(day), "gw-1"

	software := withDevice(inputOf(t, p, goodEvidence()), func(d *fleetv1.Device) {
		d.Key.Protection = fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE
		d.Asset.SoftwareKey = &fleetv1.SoftwareKeyPermission{Until: ago(-30 * day)}
	})
	disagreeing := inputOf(t, p, goodEvidence())
	disagreeing.Attested.SecureBoot = ternaryNo
	disagreeing.Attested.Pcrs[3].Reference = posturev1.PcrReference_PCR_REFERENCE_LEARNED

	return map[string]*fleetv1.Explanation{
		"software-key":       device(Appraise(software)),
		"tpm-says-otherwise": device(Appraise(disagreeing)),
		"admitted":           device(Appraise(inputOf(t, p, goodEvidence()))),
		"denied":             live,
		"warned":             warned,
		"outdated":           old,
		"never-reported": {Device: activeDevice(), Verdict: quarantine,
			Reason: local("Von diesem Dienst-Notebook liegt noch kein Nachweis vor.", "No evidence has arrived from this service notebook yet.")},
		"not-ours": {Verdict: deny, Gateway: "gw-1", RefusedAt: timestamppb.New(noon), CertificateSha256: bytes.Repeat([]byte{0xab}, 32),
			Reason: local("Dieses Gerät ist nicht als Dienstgerät bekannt.", "This device is not known as a service device.")},
	}
}

func TestExplanationsReadWell(t *testing.T) {
	berlin := time.FixedZone("CET", 3600)
	for name, x := range explanations(t) {
		for _, lang := range []string{"de", "en"} {
			t.Run(name+" "+lang, func(t *testing.T) {
				golden(t, "explain/"+name+"."+lang+".txt", Explain(x, lang, berlin))
			})
		}
	}
}

func TestRefusalTextsFitEveryGateway(t *testing.T) {
	p := shipped(t)
	for name, tt := range map[string]struct {
		change func(*posturev1.Evidence)
		want   string
	}{
		"quarantine": {func(ev *posturev1.Evidence) { ev.Patch.Pending[0].FirstSeenAt = ago(16 * day) },
			"Quarantäne: Auf Ihrem Dienst-Notebook fehlen seit 16 Tagen Sicherheitsupdates. Vorgangsnummer: "},
		"the gravest cause first": {func(ev *posturev1.Evidence) {
			ev.Patch.Pending[0].FirstSeenAt = ago(16 * day)
			ev.Volumes.Volumes[2].Paths[0] = path()
		}, "Kein Zugang: Auf Ihrem Dienst-Notebook ist nicht verschlüsselt: Auslagerungsspeicher. Vorgangsnummer: "},
		"a hostile reason": {func(ev *posturev1.Evidence) {
			ev.Volumes.Reading = failed("x\"\\\n\x00' " + strings.Repeat("ä", 4000))
		}, "Kein Zugang: Laufwerke nicht feststellbar: x äää"},
	} {
		t.Run(name, func(t *testing.T) {
			res := Appraise(inputOf(t, p, with(tt.change)))
			text := RefusalText(res)
			if !strings.HasPrefix(text.GetDe(), tt.want) {
				t.Errorf("%s", text.GetDe())
			}
			for _, s := range []string{text.GetDe(), text.GetEn()} {
				if len(s) > maxRefusalBytes || strings.ContainsAny(s, "\"\\\n\r\x00") || !utf8.ValidString(s) || !strings.HasSuffix(s, res.GetCode()) {
					t.Errorf("%d bytes: %q", len(s), s)
				}
			}
		})
	}
	if text := RefusalText(Appraise(inputOf(t, p, goodEvidence()))); text != nil {
		t.Errorf("an admitted device gets %v", text)
	}
	if text := RefusalText(&posturev1.Result{}); !strings.HasPrefix(text.GetDe(), "Kein Zugang: ") {
		t.Errorf("a result without findings gets %v", text)
	}
}
