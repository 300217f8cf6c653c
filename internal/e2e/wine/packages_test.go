//go:build linux

package wine_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"pfoertner/internal/e2e"
	"pfoertner/internal/e2e/wine"
)

// The tests of what calls Windows, where it is called.
// All else is portable and was tested on this machine.
func TestCallsOfWindowsPassTheirTests(t *testing.T) {
	m := wine.New(t)
	for pkg, files := range map[string]string{
		"agent/probe": "host_windows*_test.go", "agent/service": "host_windows*_test.go", "agent/notice": "host_windows*_test.go",
		"agent/identity": "hold_test.go",
	} {
		t.Run(pkg, func(t *testing.T) {
			source := filepath.Join(top, pkg)
			names := testsIn(t, filepath.Join(source, files))
			if len(names) == 0 {
				t.Fatal("no test of what calls Windows was found")
			}
			test := filepath.Join(t.TempDir(), "package.test.exe")
			e2e.Build{System: "windows"}.Tests(t, test, "pfoertner/"+pkg)
			m.CopyTree(t, source, "testdata", pkg)
			content, err := os.ReadFile(test)
			if err != nil {
				t.Fatal(err)
			}
			m.Write(t, pkg+"/package.test.exe", content)
			batch := m.Write(t, pkg+"/run.bat", []byte("@cd /d %~dp0\r\n"+
				`@package.test.exe -test.v -test.run "^(`+strings.Join(names, "|")+")$\"\r\n"))
			ended := m.Run(t, limit, "cmd", "/c", batch)
			if ended.Code != 0 || !strings.Contains(ended.Output, "--- PASS") {
				t.Errorf("ended with %d:\n%s", ended.Code, ended.Output)
			}
		})
	}
}

var testFunction = regexp.MustCompile(`(?m)^func (Test\w+)\(`)

// testsIn names the tests in files.
func testsIn(t *testing.T, pattern string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range testFunction.FindAllStringSubmatch(string(content), -1) {
			names = append(names, m[1])
		}
	}
	return names
}
