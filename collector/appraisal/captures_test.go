package appraisal

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/posture"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// captured is where the agent keeps captures of machines and the evidence that
// its probes make of them.
const captured = "../../agent/capture/testdata/"

func capturedEvidence(t testing.TB, name string) (*posturev1.Evidence, time.Time) {
	t.Helper()
	content, err := os.ReadFile(captured + name + ".evidence.json")
	if err != nil {
		t.Fatal(err)
	}
	ev := &posturev1.Evidence{}
	if err := protojson.Unmarshal(content, ev); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var at time.Time
	for _, section := range posture.Sections() {
		if t := posture.ReadingOf(ev, section).GetObservedAt().AsTime(); t.After(at) {
			at = t
		}
	}
	return ev, at
}

func appraiseCapture(t testing.TB, p *Policy, name string) *posturev1.Result {
	t.Helper()
	refs, err := DefaultReferences()
	if err != nil {
		t.Fatal(err)
	}
	ev, at := capturedEvidence(t, name)
	return Appraise(Input{Policy: p, References: refs, Device: activeDevice(), Evidence: ev, Attested: attestationBeside(ev, at), CollectedAt: at, Now: at})
}

// attestationBeside is a fresh quote beside captured evidence, which has none.
// It says of Secure Boot what the notebook says itself.
func attestationBeside(ev *posturev1.Evidence, at time.Time) *posturev1.Attestation {
	a := goodAttestation()
	a.QuotedAt, a.ValidUntil = timestamppb.New(at), timestamppb.New(at.Add(24*time.Hour))
	a.SecureBoot, a.SetupMode = ev.GetSecureBoot().GetEnabled(), ev.GetSecureBoot().GetSetupMode()
	if a.GetSecureBoot() == ternaryUnknown || a.GetSetupMode() == ternaryUnknown {
		a.Incomplete = "no event log"
	}
	return a
}

// TestFindingsOfCaptures judges the evidence of every capture by the shipped
// policy and values, at the time when it was made.
func TestFindingsOfCaptures(t *testing.T) {
	files, err := filepath.Glob(captured + "*.evidence.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	p := shipped(t)
	known := map[string]bool{}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".evidence.json")
		known[name+".findings.txt"] = true
		t.Run(name, func(t *testing.T) {
			res := appraiseCapture(t, p, name)
			x := &fleetv1.Explanation{Device: activeDevice(), Result: res, Verdict: res.GetVerdict(), Reason: RefusalText(res)}
			golden(t, "captures/"+name+".findings.txt", Explain(x, "de", time.UTC)+"\n"+Explain(x, "en", time.UTC))
		})
	}
	all, err := filepath.Glob("testdata/captures/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if !known[filepath.Base(f)] {
			t.Errorf("%s belongs to no capture", f)
		}
	}
}

// outcomeOf is the outcome of one rule.
func outcomeOf(t testing.TB, res *posturev1.Result, rule string) *posturev1.Finding {
	t.Helper()
	for _, f := range res.GetFindings() {
		if f.GetRule() == rule {
			return f
		}
	}
	t.Fatalf("no finding of %s", rule)
	return nil
}
