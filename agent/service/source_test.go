//go:build !windows

package service

import (
	"fmt"
	"go/build"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// These tests read the module's own files: they are not there when the tests are
// run on a Windows that has only the program.

// One unit: what `install` writes is what packages install, but for the path and
// what comes with a package alone.
func TestUnitIsThatOfThePackages(t *testing.T) {
	packaged, err := os.ReadFile(filepath.Join("..", "..", "installer", "systemd", "pfoertner-agent.service"))
	if err != nil {
		t.Fatal(err)
	}
	directives := func(text string) []string {
		var list []string
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			name, _, set := strings.Cut(line, "=")
			own := name == "ExecStart" || name == "Documentation" || name == "ConditionFileIsExecutable"
			if set && !own && !strings.HasPrefix(line, "#") {
				list = append(list, line)
			}
		}
		return list
	}
	here, there := directives(unit), directives(string(packaged))
	for _, d := range there {
		if !slices.Contains(here, d) {
			t.Errorf("only the package has %s", d)
		}
	}
	for _, d := range here {
		if !slices.Contains(there, d) {
			t.Errorf("the package lacks %s", d)
		}
	}
}

// What makes the service start under Wine is not in the program that is shipped.
func TestReleasedProgramAsksWindowsWhetherItIsAService(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		context := build.Default
		context.GOOS, context.GOARCH, context.BuildTags = "windows", arch, []string{"grpcnotrace"}
		if in, err := context.MatchFile(".", "host_winetest.go"); err != nil || in {
			t.Errorf("%s: a release has it: %v, %v", arch, in, err)
		}
		context.BuildTags = append(context.BuildTags, "winetest")
		if in, err := context.MatchFile(".", "host_winetest.go"); err != nil || !in {
			t.Errorf("%s: a trial does not: %v, %v", arch, in, err)
		}
	}
	root := filepath.Join("..", "..")
	for _, name := range []string{"Makefile", filepath.Join(".ci", "dist")} {
		recipe, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(recipe), "winetest") {
			t.Errorf("%s builds with winetest", name)
		}
	}
}

// An event whose message nobody logs any more would be missed in silence.
func TestEveryEventOfTheCatalogueIsLoggedSomewhere(t *testing.T) {
	var source strings.Builder
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") || filepath.Base(path) == "events.go" {
			return err
		}
		content, err := os.ReadFile(path)
		source.Write(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range Catalogue() {
		if !strings.Contains(source.String(), `"`+e.Message+`"`) {
			t.Errorf("nobody logs %q", e.Message)
		}
	}
}

func TestEveryEventIsDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "agent.md"))
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]bool{}
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		for n := range strings.SplitSeq(cells[1], ",") {
			numbers[strings.TrimSpace(n)] = true
		}
	}
	for _, id := range []uint32{otherWarning, otherError} {
		if !numbers[fmt.Sprint(id)] {
			t.Errorf("docs/agent.md does not have %d", id)
		}
	}
	for _, e := range Catalogue() {
		if !numbers[fmt.Sprint(e.ID)] {
			t.Errorf("docs/agent.md does not have %d", e.ID)
		}
	}
}
