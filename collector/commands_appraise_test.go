package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// captured is evidence that the agent's probes made of captures.
const captured = "../agent/capture/testdata/"

// offline is a terminal without any collector to ask.
func offline(t *testing.T) *terminal {
	return &terminal{t: t, collector: "127.0.0.1:1", operator: filepath.Join(t.TempDir(), "nobody"), dir: t.TempDir()}
}

func TestEvidenceIsJudgedOffline(t *testing.T) {
	s := offline(t)
	s.run("--lang", "de", "appraise", captured+"suspended-for-two-restarts.evidence.json")
	s.run("--lang", "en", "appraise", captured+"fleet-12577-only-c-was-checked.evidence.json")

	policy := filepath.Join(s.dir, "policy.yaml")
	write(t, policy, `name: pin
freshness: {max_age: 45m}
rules:
  - id: start-needs-pin
    title: {de: Der Start verlangt eine PIN, en: The start needs a PIN}
    remedy: {de: Wenden Sie sich an Ihre IT-Stelle., en: Contact your IT service desk.}
    require: evidence.volumes.fixed().all(v, v.weakest_protector() == "tpm_pin")
    on_fail: deny
`)
	s.run("--lang", "en", "appraise", "--policy", policy, captured+"fleet-52159-tpm-beside-tpm-and-pin.evidence.json")
	s.run("--lang", "en", "appraise", "--policy", policy, captured+"fleet-52159-tpm-and-pin-alone.evidence.json")
	s.shows("appraise")
}

func TestJudgingOfflineSaysWhatIsWrong(t *testing.T) {
	s := offline(t)
	good := captured + "windows-11-24h2.evidence.json"
	broken := filepath.Join(s.dir, "broken")
	write(t, broken, "rules: 1\n")
	empty := filepath.Join(s.dir, "empty.json")
	write(t, empty, "{}")
	s.run("appraise", "--policy", broken, good)
	s.run("appraise", "--references", broken, good)
	s.run("appraise", empty)
	s.run("appraise")
	s.shows("appraise-wrong")
	// Its own words are protobuf's, which vary on purpose.
	s.run("appraise", broken)
	if !strings.Contains(s.screen.String(), "! reading evidence: ") {
		t.Errorf("a file that is no evidence: %s", s.screen.String())
	}
}

func TestEvidenceComesThroughAPipe(t *testing.T) {
	evidence, err := os.ReadFile(captured + "windows-11-24h2.evidence.json")
	if err != nil {
		t.Fatal(err)
	}
	var out, progress bytes.Buffer
	root := newRoot(&out, &progress)
	root.SetIn(bytes.NewReader(evidence))
	root.SetArgs([]string{"--json", "appraise", "-"})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), `"verdict": "VERDICT_ADMIT"`) {
		t.Error("a notebook that meets every rule is not admitted")
	}
}

// A file that will be signed, or already is, judges the same.
func TestASignatureBelowReferenceValuesIsNoFault(t *testing.T) {
	s := offline(t)
	shipped, err := os.ReadFile("appraisal/references.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.dir, "references")
	write(t, file, string(shipped)+"-----BEGIN PFOERTNER SIGNATURE-----\nAA==\n-----END PFOERTNER SIGNATURE-----\n")
	s.run("--json", "appraise", "--references", file, captured+"windows-11-24h2.evidence.json")
	if !strings.Contains(s.screen.String(), `"verdict": "VERDICT_ADMIT"`) {
		t.Error("a notebook that meets every rule is not admitted")
	}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
