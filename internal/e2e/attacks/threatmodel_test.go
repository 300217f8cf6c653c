//go:build linux

package attacks_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every attack that docs/threat-model.md calls tried has tests, and these exist.
func TestThreatModelNamesTestsThatExist(t *testing.T) {
	top := filepath.Join("..", "..", "..")
	text, err := os.ReadFile(filepath.Join(top, "docs", "threat-model.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## What holds")
	table, _, _ = strings.Cut(table, "## What does not hold")
	word := regexp.MustCompile("`([a-z0-9/]+)`|(Test[A-Za-z0-9]+)")
	rows := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| attack") || strings.HasPrefix(line, "| **") {
			continue
		}
		rows++
		room, named := "", 0
		for _, m := range word.FindAllStringSubmatch(cells[3], -1) {
			if m[1] != "" {
				room = m[1]
				continue
			}
			named++
			if !declares(t, filepath.Join(top, room), m[2]) {
				t.Errorf("%s has no %s", room, m[2])
			}
		}
		if named == 0 {
			t.Errorf("no test shows: %s", strings.TrimSpace(cells[1]))
		}
	}
	if rows < 40 {
		t.Errorf("only %d attacks were found: this test looks at the wrong table", rows)
	}
}

// declares says whether a package's tests include one.
func declares(t *testing.T, room, test string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(room, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+test+"(") {
			return true
		}
	}
	return false
}
