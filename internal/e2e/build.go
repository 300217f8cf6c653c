//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Build is how a program is built. The zero value is how it is released, for
// this machine.
type Build struct {
	// System is another operating system to build for ("windows"), on amd64.
	System string
	// Version is what the program calls itself; empty: unknown.
	Version string
	// Tags are Go's build tags beside those of a release.
	Tags []string
}

// Program builds package pkg of this module into a file.
func (b Build) Program(t testing.TB, program, pkg string) {
	t.Helper()
	b.run(t, "build", "-trimpath", "-ldflags", b.flags(), "-o", program, pkg)
}

// Tests builds the tests of package pkg into a file.
func (b Build) Tests(t testing.TB, program, pkg string) {
	t.Helper()
	b.run(t, "test", "-c", "-o", program, pkg)
}

func (b Build) flags() string {
	flags := "-s -w"
	if b.Version != "" {
		flags += " -X main.version=" + b.Version
	}
	return flags
}

func (b Build) run(t testing.TB, verb string, args ...string) {
	t.Helper()
	tags := strings.Join(append([]string{"grpcnotrace"}, b.Tags...), ",")
	build := exec.CommandContext(t.Context(), "go", append([]string{verb, "-tags", tags}, args...)...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b.System != "" {
		build.Env = append(build.Env, "GOOS="+b.System, "GOARCH=amd64")
	}
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(build.Args[1:], " "), err, out)
	}
}

// BuildProgram builds a program as it is released.
func BuildProgram(t testing.TB, program, pkg string) {
	t.Helper()
	Build{}.Program(t, program, pkg)
}
