//go:build linux

// Package wine runs Windows programs of a test on this machine, in Wine 10: a
// registry, a service manager and a Windows Installer that are not ours.
//
// Rules. Wine lives in a Debian 13 of its own, built once and kept in the
// user's cache; a test gets a Windows of its own, as new, and changes nothing
// else. All its processes live in a namespace of their own and end with the
// test, also with one that is killed. What Wine lacks (BitLocker, Windows
// Update, the security centre, TPM services) it lacks here too: docs/windows.md
// says what was seen and what was not.
package wine

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pfoertner/internal/e2e"
)

const (
	// recipe names the cached Debian; whoever changes how it is built, counts on.
	recipe = "wine10-1"
	// prefix is where Wine keeps its Windows in the Debian's file system.
	prefix = "/root/windows"
	// bootLimit is how long Wine may take to start on a busy machine.
	bootLimit = 3 * time.Minute
)

// Machine is a Windows of one test.
type Machine struct {
	debian string // the cached root
	dir    string // what is this machine's own
	on     *e2e.Program
	runs   int
}

//go:embed machine.sh
var machineScript string

// New makes a Windows as new and switches it on. It skips the test, loudly,
// where there is none to be had.
func New(t testing.TB) *Machine {
	t.Helper()
	m := &Machine{debian: debian(t), dir: t.TempDir()}
	// A copy: registry and drive C: are the test's own.
	output(t, "cp", "-a", "--reflink=auto", filepath.Join(m.debian, prefix), filepath.Join(m.dir, "windows"))
	m.Start(t)
	return m
}

// Start switches the machine on: automatic services start, as they do when a
// notebook boots.
func (m *Machine) Start(t testing.TB) {
	t.Helper()
	m.on = within(t, m.debian, machineScript, m.dir)
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	m.on.Await(t, ctx, "@@ on")
}

// Stop ends all programs without a word to them, keeps the registry, and
// switches the machine off.
func (m *Machine) Stop(t testing.TB) {
	t.Helper()
	output(t, "nsenter", m.inside("wineserver", "--kill")...)
	m.on.Kill()
}

// Exit is how a Windows program ended.
type Exit struct {
	// Code is its exit status. Unix keeps only the lowest eight bits: compare it
	// with Code.
	Code int
	// Output is what it printed on both streams.
	Output string
}

// Code is a Windows exit status as Exit has it: 1603 becomes 67.
func Code(status int) int { return status & 0xff }

// Run runs a program to its end and fails the test if it has none within the
// limit. A program is a name that Windows finds ("msiexec") or a path of
// Windows; so are paths among its arguments: see In.
func (m *Machine) Run(t testing.TB, limit time.Duration, program string, args ...string) Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd, printed := m.command(t, ctx, program, args)
	err := cmd.Run()
	said := read(t, printed)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		t.Fatalf("%s %q has no end after %v:\n%s", program, args, limit, said)
	case err != nil && !errors.As(err, &exit):
		t.Fatalf("%s %q: %v", program, args, err)
	}
	return Exit{Code: cmd.ProcessState.ExitCode(), Output: said}
}

// command is a program that will run inside the machine. It prints into a file:
// Wine's server keeps a pipe open that it inherits.
func (m *Machine) command(t testing.TB, ctx context.Context, program string, args []string) (cmd *exec.Cmd, printed string) {
	t.Helper()
	m.runs++
	printed = filepath.Join(m.dir, "output-"+strconv.Itoa(m.runs))
	out, err := os.Create(printed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	cmd = exec.CommandContext(ctx, "nsenter", m.inside("/usr/lib/wine/wine64", append([]string{program}, args...)...)...)
	cmd.Env = environment
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, printed
}

// inside are the arguments with which nsenter runs a program of the Debian in
// the machine.
func (m *Machine) inside(program string, args ...string) []string {
	return append([]string{"--target", strconv.Itoa(m.on.PID()), "--mount", "--pid", "--root", "--wdns=" + prefix + "/drive_c", program}, args...)
}

// PID is the process id, on this machine, of a running Windows program: the one
// whose command line has name in it.
func (m *Machine) PID(t testing.TB, name string) int {
	t.Helper()
	mine, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(m.on.PID()), "ns", "pid"))
	if err != nil {
		t.Fatal(err)
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range processes {
		namespace, err := os.Readlink(filepath.Join(process, "ns", "pid"))
		if err != nil || namespace != mine {
			continue // ended meanwhile, or somebody else's
		}
		if line, err := os.ReadFile(filepath.Join(process, "cmdline")); err == nil && bytes.Contains(line, []byte(name)) {
			pid, err := strconv.Atoi(filepath.Base(process))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("no process runs %q", name)
	return 0
}

// File is the path on this machine of a file on the Windows' drive C:, named
// with slashes: "ProgramData/Pfoertner/status.json".
func (m *Machine) File(name string) string {
	return filepath.Join(m.dir, "windows", "drive_c", filepath.FromSlash(name))
}

// Copy puts a file of this machine where the Windows finds it, and returns its
// path there.
func (m *Machine) Copy(t testing.TB, from string) string {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	return m.Write(t, filepath.Base(from), content)
}

// Write makes a file in C:\test and returns its path there.
func (m *Machine) Write(t testing.TB, name string, content []byte) string {
	t.Helper()
	place := m.File("test/" + name)
	if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(place, content, 0o755); err != nil {
		t.Fatal(err)
	}
	return `C:\test\` + strings.ReplaceAll(name, "/", `\`)
}

// CopyTree copies from/name, where there is such a directory, into C:\test\to.
func (m *Machine) CopyTree(t testing.TB, from, name, to string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(from, name)); err != nil {
		return
	}
	if err := os.MkdirAll(m.File("test/"+to), 0o755); err != nil {
		t.Fatal(err)
	}
	output(t, "cp", "-r", filepath.Join(from, name), m.File("test/"+to))
}

// Registry is what a key and all below it hold, as reg.exe exports it; empty
// when there is no such key.
func (m *Machine) Registry(t testing.TB, key string) string {
	t.Helper()
	m.Write(t, "export.reg", nil)
	if e := m.Run(t, bootLimit, "reg", "export", key, `C:\test\export.reg`, "/y"); e.Code != 0 {
		return ""
	}
	return utf16le(read(t, m.File("test/export.reg")))
}

// environment is that of every program in the Debian. Wine is quiet: its
// complaints would be taken for the program's.
var environment = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
	"WINEPREFIX=" + prefix, "WINEDEBUG=-all", "WINEDLLOVERRIDES=mscoree,mshtml=", "XDG_RUNTIME_DIR=/tmp",
	"DEBIAN_FRONTEND=noninteractive",
}

// within starts a script in the Debian, in namespaces of its own for mounts and
// processes: with its first process all others end. The first process ends with
// this one (Pdeathsig; it would also end with this goroutine's thread, but no
// test here lets a thread end).
func within(t testing.TB, debian, script string, arguments ...string) *e2e.Program {
	t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "machine", debian}, arguments...)...)
	cmd.Env = environment
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	return e2e.Start(t, "wine", cmd)
}

func read(t testing.TB, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func output(t testing.TB, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = environment
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, bytes.TrimSpace(out))
	}
}
