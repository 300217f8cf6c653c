//go:build linux

// Package packages tests what `make dist` makes: that it makes the same twice,
// what is in it, and that deb, rpm and MSI do what an administrator who rolls
// them out unattended relies on.
//
// Rules. Packages are built by the scripts that release them, and installed by
// dpkg and rpm into roots of their own. The services run in internal/e2e/debian,
// the MSI is installed in internal/e2e/wine.
package packages

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pfoertner/internal/e2e"
)

const (
	suite   = "bookworm"
	archive = "http://deb.debian.org/debian"
	// epoch is the time in packages that tests build.
	epoch = "1763726400"
)

// repository is the top of the module.
func repository(t testing.TB) string {
	t.Helper()
	top, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	return top
}

// run runs a program in dir, with environment added, and returns what it
// prints on both outputs.
func run(t testing.TB, dir string, environment []string, program string, arguments ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, arguments...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), environment...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must is run for what has to succeed.
func must(t testing.TB, dir string, environment []string, program string, arguments ...string) string {
	t.Helper()
	out, err := run(t, dir, environment, program, arguments...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(arguments, " "), err, out)
	}
	return out
}

// need skips the test, loudly, unless it runs as root and has the programs.
func need(t testing.TB, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: packages are installed as root only")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("SKIPPED: this test needs the program %q: %v", p, err)
		}
	}
}

// root returns a Debian without systemd running, as an image builder has it.
// It is the caller's own.
func root(t testing.TB) string {
	t.Helper()
	template := e2e.Cached(t, "debian12-packages-1", func(dir string) {
		out, err := run(t, dir, nil, "debootstrap", "--variant=minbase", suite, dir, archive)
		if err != nil {
			t.Skipf("SKIPPED: this test needs a Debian 12 from %s: %v\n%s", archive, err, out)
		}
	})
	dir := filepath.Join(t.TempDir(), "root")
	must(t, "/", nil, "cp", "-a", template, dir)
	return dir
}

// inside runs a shell script in a root.
func inside(t testing.TB, root string, environment []string, script string) string {
	t.Helper()
	environment = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"}, environment...)
	return must(t, "/", environment, "chroot", root, "/bin/sh", "-ec", script)
}

// exists says whether a root has a file.
func exists(root, name string) bool {
	_, err := os.Lstat(filepath.Join(root, name))
	return err == nil
}

// content is a file of a root.
func content(t testing.TB, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(b))
}

// glob is the one file in dir that matches.
func glob(t testing.TB, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %d files in %s, want 1 (%v)", pattern, len(found), dir, err)
	}
	return found[0]
}
