//go:build linux

package packages

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestGroupPolicyIsWholeInBothLanguages compares the settings, what the agent
// reads, and the texts of both languages.
func TestGroupPolicyIsWholeInBothLanguages(t *testing.T) {
	dir := filepath.Join(repository(t), "installer/policy")
	var definitions struct {
		Policies []struct {
			Name  string `xml:"name,attr"`
			Class string `xml:"class,attr"`
			Key   string `xml:"key,attr"`
		} `xml:"policies>policy"`
	}
	admx := content(t, dir, "pfoertner-agent.admx")
	if err := xml.Unmarshal([]byte(admx), &definitions); err != nil {
		t.Fatal(err)
	}
	reads := content(t, repository(t), "agent/layers.go")
	for _, p := range definitions.Policies {
		if p.Class != "Machine" || !strings.Contains(reads, "policyKey = `"+p.Key+"`") {
			t.Errorf("%s: %s %s is not where the agent reads", p.Name, p.Class, p.Key)
		}
	}
	for _, value := range regexp.MustCompile(`valueName="(\w+)"`).FindAllStringSubmatch(admx, -1) {
		if !strings.Contains(reads, `l("`+value[1]+`")`) {
			t.Errorf("the agent does not read %s", value[1])
		}
	}
	languages, err := filepath.Glob(dir + "/*/pfoertner-agent.adml")
	if err != nil || len(languages) != 2 {
		t.Fatalf("%d languages, want 2: %v", len(languages), err)
	}
	for _, name := range languages {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var texts struct {
			Strings []struct {
				ID   string `xml:"id,attr"`
				Text string `xml:",chardata"`
			} `xml:"resources>stringTable>string"`
			Presentations []struct {
				ID string `xml:"id,attr"`
			} `xml:"resources>presentationTable>presentation"`
		}
		if err := xml.Unmarshal(b, &texts); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		has := map[string]bool{}
		for _, s := range texts.Strings {
			has["string."+s.ID] = strings.TrimSpace(s.Text) != ""
		}
		for _, p := range texts.Presentations {
			has["presentation."+p.ID] = true
		}
		for _, r := range regexp.MustCompile(`\$\(((?:string|presentation)\.\w+)\)`).FindAllStringSubmatch(admx, -1) {
			if !has[r[1]] {
				t.Errorf("%s has no %s", name, r[1])
			}
		}
	}
}
