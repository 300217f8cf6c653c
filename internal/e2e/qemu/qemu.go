//go:build linux

// Package qemu has what the emulated machines of the tests are made of: a
// kernel, an initial file system, a TPM, and the emulator itself.
//
// Rules. The machines are emulated without KVM, so they run anywhere and need no
// root. Their kernel is Debian's, fetched once and kept in the user's cache;
// programs of an initial file system are those of this machine, with their
// libraries. Nothing of a machine is left when its test ends.
package qemu

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"pfoertner/internal/e2e"
)

// startLimit is how long what starts at once may take on a busy machine.
const startLimit = 5 * time.Minute

// Require skips the test, loudly, unless a machine can be made and started here
// and the programs it takes along are installed.
func Require(t testing.TB, programs ...string) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skipf("SKIPPED: the emulated machine takes its programs from this one, and it is no amd64 but %s", runtime.GOARCH)
	}
	for _, p := range append([]string{"qemu-system-x86_64", "swtpm", "modprobe", "depmod", "ldd"}, programs...) {
		Find(t, p)
	}
}

// Start switches a machine on. Its console, where there is one on stdio, is the
// program's output. Other tests measure times meanwhile: it is nice to them.
func Start(t testing.TB, name string, arguments ...string) *e2e.Program {
	t.Helper()
	return e2e.Start(t, name, exec.Command("nice", append([]string{"-n", "10", "qemu-system-x86_64"}, arguments...)...))
}

// StartTPM starts a TPM 2.0 whose state lies in a directory; without any it is new.
func StartTPM(t testing.TB, state, socket string) {
	t.Helper()
	tpm := e2e.Start(t, "tpm", exec.Command("swtpm", "socket", "--tpm2",
		"--tpmstate", "dir="+state, "--ctrl", "type=unixio,path="+socket, "--terminate"))
	listens := func() bool {
		_, err := os.Stat(socket)
		return err == nil || tpm.Ended()
	}
	if !e2e.Eventually(t, startLimit, listens) || tpm.Ended() {
		t.Fatalf("the TPM does not start:\n%s", tpm.Output())
	}
}

// Find returns the path of a program, also of one for the administrator.
func Find(t testing.TB, program string) string {
	t.Helper()
	for _, name := range []string{program, "/usr/sbin/" + program, "/sbin/" + program} {
		if found, err := exec.LookPath(name); err == nil {
			return found
		}
	}
	t.Skipf("SKIPPED: this test needs the program %q", program)
	return ""
}

// output runs a program to its end and returns what it printed.
func output(t testing.TB, program string, arguments ...string) string {
	t.Helper()
	out, err := command(t, program, arguments...).Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, arguments, err, said(err))
	}
	return string(out)
}

func command(t testing.TB, program string, arguments ...string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(t.Context(), Find(t, program), arguments...)
}

// said is what a program that failed complained of.
func said(err error) string {
	if e, ok := err.(*exec.ExitError); ok {
		return string(e.Stderr)
	}
	return ""
}
