package appraisal

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

var fence = regexp.MustCompile("(?s)```(\\w+)\n(.*?)```")

func TestEveryExampleInTheDocumentationCompiles(t *testing.T) {
	page, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, m := range fence.FindAllStringSubmatch(string(page), -1) {
		kind, text := m[1], m[2]
		count[kind]++
		switch kind {
		case "yaml":
			p := mustCompile(t, text)
			for _, f := range Appraise(inputOf(t, p, goodEvidence())).GetFindings() {
				if f.GetOutcome() == isUnknown {
					t.Errorf("%s: %s: %s", p.Name(), f.GetRule(), f.GetReason().GetEn())
				}
			}
		case "cel":
			if _, err := CompileFilter(strings.TrimSpace(text)); err != nil {
				t.Error(err)
			}
		}
	}
	if count["yaml"] < 6 || count["cel"] < 3 {
		t.Errorf("examples found: %v", count)
	}
}

func TestTheReferenceFileInTheDocumentationParses(t *testing.T) {
	page, err := os.ReadFile("../../docs/references.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, m := range fence.FindAllStringSubmatch(string(page), -1) {
		if m[1] != "references" {
			continue
		}
		found++
		if r := mustParse(t, m[2]); r.Size().GetRing() == 0 {
			t.Error("the example has no ring")
		}
	}
	if found != 1 {
		t.Errorf("%d examples found", found)
	}
	asOf, until := references(t).WindowsAsOf()
	words := strings.Join(strings.Fields(strings.ReplaceAll(string(page), "**", "")), " ")
	for _, says := range []string{"ends on " + asOf.Format(time.DateOnly), "so from " + until.Format(time.DateOnly) + " on it is too old"} {
		if !strings.Contains(words, says) {
			t.Errorf("the page does not say of the shipped table that it %s", says)
		}
	}
}

func TestTheDocumentationNamesEveryFunction(t *testing.T) {
	page, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	lang, err := newLanguage(ruleVariables())
	if err != nil {
		t.Fatal(err)
	}
	own := 0
	for name, f := range lang.env.Functions() {
		for _, o := range f.OverloadDecls() {
			uses := o.ResultType().String()
			for _, a := range o.ArgTypes() {
				uses += a.String()
			}
			ours := strings.Contains(uses, "pfoertner.") || name == "yes" || name == "no" || name == "days" || name == "hex" ||
				name == "full_tunnel" || name == "version_at_least"
			if ours && !strings.HasPrefix(name, "_") && !strings.HasPrefix(name, "@") {
				own++
				if !strings.Contains(string(page), name+"(") {
					t.Errorf("%s is not described", name)
				}
			}
		}
	}
	if own < 15 {
		t.Errorf("only %d functions of ours found", own)
	}
}

// A section that the appraisal does not know would never be UNKNOWN.
func TestEverySectionOfEvidenceIsASource(t *testing.T) {
	fields := (&posturev1.Evidence{}).ProtoReflect().Descriptor().Fields()
	if fields.Len() != int(sourceKernel) {
		t.Fatalf("evidence has %d sections, the appraisal knows %d", fields.Len(), sourceKernel)
	}
	for i := range fields.Len() {
		section := fields.Get(i)
		if s, ok := sourceOf(string(section.Name())); !ok || s.section() != string(section.Name()) {
			t.Errorf("section %s is no source", section.Name())
		}
		// Contradictions of a section are looked up by hand in readStates.
		if c := section.Message().Fields().ByName(protoreflect.Name("contradictions")); c != nil {
			switch section.Name() {
			case "platform", "volumes", "patch", "vpn", "secure_boot", "firewall", "antivirus":
			default:
				t.Errorf("contradictions of %s are not looked at", section.Name())
			}
		}
		if sectionName(string(section.Name()), "de") == string(section.Name()) {
			t.Errorf("section %s has no German name", section.Name())
		}
	}
}
