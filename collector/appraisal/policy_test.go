package appraisal

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it):\n%s", name, got)
	}
}

func TestPolicyErrorsNameLineAndColumn(t *testing.T) {
	file, err := os.ReadFile("testdata/policies/errors.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p, errs := Compile(file)
	if p != nil {
		t.Fatal("a policy with errors compiled")
	}
	lines := strings.Split(string(file), "\n")
	var b strings.Builder
	for _, e := range errs {
		row := []rune(lines[e.GetLine()-1])
		fmt.Fprintf(&b, "%d:%d %s %s\n", e.GetLine(), e.GetColumn(), e.GetRule(), e.GetMessage())
		fmt.Fprintf(&b, "    %s\n    %s^\n", string(row), strings.Repeat(" ", min(int(e.GetColumn())-1, len(row))))
	}
	golden(t, "policies/errors.golden", b.String())
}

func TestFilesThatAreNoPolicy(t *testing.T) {
	for name, tt := range map[string]struct{ yaml, message string }{
		"empty":             {"", "EOF"},
		"not YAML":          {"name: [", "did not find"},
		"a list":            {"- name", "keys and values"},
		"two documents":     {"name: a\n---\nname: b\n", "only one YAML document"},
		"an anchor":         {"name: &a x\nfreshness: *a\n", "anchors and aliases"},
		"no rules":          {"name: a\nfreshness: {max_age: 45m}\nrules: []\n", "admits every known device"},
		"rules left out":    {"name: a\nfreshness: {max_age: 45m}\n", `"rules" is missing`},
		"huge":              {"# " + strings.Repeat("x", maxDocumentBytes), "at most"},
		"a key of a list":   {"? [a]\n: b\n", "plain word"},
		"a merged map":      {"<<: {name: a}\n", `unknown key "<<"`},
		"freshness of year": {"name: a\nfreshness: {max_age: 365d}\nrules: []\n", "between 1m and 30d"},
	} {
		t.Run(name, func(t *testing.T) {
			p, errs := Compile([]byte(tt.yaml))
			if p != nil || len(errs) == 0 {
				t.Fatal("compiled")
			}
			var all []string
			for _, e := range errs {
				all = append(all, e.GetMessage())
			}
			if got := strings.Join(all, "\n"); !strings.Contains(got, tt.message) {
				t.Errorf("%s\nlacks %q", got, tt.message)
			}
		})
	}
}

func TestParamsHaveTheTypeOfTheirValue(t *testing.T) {
	p := onePolicy(t, `params.days == 14 && params.on && params.text == "a" && params.share == 0.5 &&
params.wait == duration("36h") && "b" in params.list && "openvpn" in approved.clients && evidence.tpm.version != params.text`, "",
		`params: {days: 14, on: true, text: a, share: 0.5, wait: {duration: 1d12h}, list: [a, b]}
approved: {clients: [openvpn]}
`)
	if f := findingOf(t, Appraise(inputOf(t, p, goodEvidence())), "the-rule"); f.GetOutcome() != passes {
		t.Errorf("%v: %s", f.GetOutcome(), f.GetReason().GetEn())
	}
}

func TestSectionsReadAreFoundThroughAnyExpression(t *testing.T) {
	for expr, want := range map[string]string{
		"evidence.tpm.version == ''":                                                                        "tpm",
		"has(evidence.firewall)":                                                                            "firewall",
		"[evidence].all(e, e.tpm.version != '')":                                                            "antivirus firewall patch platform screen_lock secure_boot tpm volumes vpn",
		"[evidence.vpn, evidence.vpn].map(v, v.clients).size() > 0":                                         "vpn",
		"{'a': evidence.patch}['a'].held == 0u":                                                             "patch",
		"evidence.volumes.fixed().map(v, v.paths).exists(p, p.size() > 1)":                                  "volumes",
		"(asset.unit == '' ? evidence.patch.package_system : evidence.tpm.version) == ''":                   "patch tpm",
		"evidence == pfoertner.posture.v1.Evidence{tpm: evidence.tpm}":                                      "antivirus firewall patch platform screen_lock secure_boot tpm volumes vpn",
		"evidence.vpn.clients.filter(c, yes(c.installed)).all(c, c.product != evidence.platform.edition)":   "platform vpn",
		"evidence.vpn.clients.all(evidence, evidence.product != '')":                                        "vpn",
		"evidence.vpn.clients.all(c, c.product != '') && evidence.vpn.clients.all(c, 1 == 1) || now == now": "vpn",
		"asset.unit == 'x'": "",
	} {
		t.Run(expr, func(t *testing.T) {
			lang, err := newLanguage(ruleVariables())
			if err != nil {
				t.Fatal(err)
			}
			checked, found := lang.compile(expr)
			if len(found) > 0 {
				t.Fatal(found)
			}
			got, _ := analyse(checked)
			if s := strings.Join(sorted(got.sections), " "); s != want {
				t.Errorf("reads %q, want %q", s, want)
			}
		})
	}
}

func TestValuesShownAreThoseRead(t *testing.T) {
	for expr, want := range map[string]string{
		"evidence.volumes.volumes.all(v, v.mount_class != ROOT || v.filesystem == 'ext4')": "evidence.volumes.volumes[].filesystem evidence.volumes.volumes[].mount_class",
		"evidence.volumes.fixed().all(v, v.encrypted())":                                   "evidence.volumes.volumes[]",
		"evidence.volumes.volumes.size() > 2":                                              "evidence.volumes.volumes",
		"evidence.vpn.clients[0].product == asset.vendor":                                  "asset.vendor evidence.vpn.clients[].product",
		"asset.groups.exists(g, g == 'x')":                                                 "asset.groups[]",
	} {
		t.Run(expr, func(t *testing.T) {
			lang, err := newLanguage(ruleVariables())
			if err != nil {
				t.Fatal(err)
			}
			checked, found := lang.compile(expr)
			if len(found) > 0 {
				t.Fatal(found)
			}
			got, _ := analyse(checked)
			if s := strings.Join(sorted(got.paths), " "); s != want {
				t.Errorf("shows %q, want %q", s, want)
			}
		})
	}
}

func TestPlacesInScalars(t *testing.T) {
	for name, tt := range map[string]struct {
		yaml         string
		find         string
		line, column int
	}{
		"plain":               {"a: one two", "two", 1, 8},
		"double quoted":       {`a: "one \"x\" two"`, "two", 1, 15},
		"a quoted line break": {`a: "one\n two"`, "two", 1, 11},
		"single quoted":       {`a: 'it''s two'`, "two", 1, 11},
		"literal":             {"a: |\n  one\n    two\n", "two", 3, 5},
		"literal, kept":       {"a: |+\n\n  one\n\n  two\n", "two", 5, 3},
		"folded":              {"a: >\n  one\n  two\n", "two", 3, 3},
		"folded plain":        {"a: one\n  two", "two", 2, 3},
		"not only ASCII":      {"a: größe two", "two", 1, 10},
	} {
		t.Run(name, func(t *testing.T) {
			var n yaml.Node
			if err := yaml.Unmarshal([]byte(tt.yaml), &n); err != nil {
				t.Fatal(err)
			}
			v := n.Content[0].Content[1]
			offset := len([]rune(v.Value[:strings.Index(v.Value, tt.find)]))
			line, column := place(strings.Split(tt.yaml, "\n"), v, offset)
			if line != tt.line || column != tt.column {
				t.Errorf("%d:%d, want %d:%d", line, column, tt.line, tt.column)
			}
		})
	}
}

func TestWithoutReferenceValuesRulesThatNeedThemAreUnknown(t *testing.T) {
	in := inputOf(t, shipped(t), goodEvidence())
	in.References = nil
	if f := findingOf(t, Appraise(in), "system-supported"); f.GetOutcome() != isUnknown {
		t.Errorf("%v: %s", f.GetOutcome(), f.GetReason().GetEn())
	}
}
