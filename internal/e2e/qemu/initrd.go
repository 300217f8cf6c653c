//go:build linux

package qemu

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Initrd is an initial file system in the "new ASCII" format of cpio(5), which
// the kernel unpacks and starts /init of.
type Initrd struct {
	t       testing.TB
	content []byte
	known   map[string]bool
}

// NewInitrd holds /init, the directories that it mounts on, the programs with
// their libraries in /bin, and the modules of the kernel that are to be loaded,
// with those they need, in /modules; /modules/order says in which order.
func NewInitrd(t testing.TB, init []byte, programs []string, k Kernel, modules []string) *Initrd {
	t.Helper()
	a := &Initrd{t: t, known: map[string]bool{}}
	for _, dir := range []string{"dev", "proc", "sys", "run", "newroot"} {
		a.directory(dir)
	}
	for _, program := range programs {
		a.copy(path.Join("bin", filepath.Base(program)), program)
		for _, library := range libraries(t, program) {
			a.copy(library[1:], library)
		}
	}
	var order strings.Builder
	for _, module := range k.Modules(t, modules) {
		a.copy(path.Join("modules", filepath.Base(module)), module)
		fmt.Fprintln(&order, filepath.Base(module))
	}
	a.Add("modules/order", 0o644, []byte(order.String()))
	a.Add("init", 0o755, init)
	return a
}

// Write writes it into a file.
func (a *Initrd) Write(name string) {
	a.t.Helper()
	a.entry("TRAILER!!!", 0, nil)
	if err := os.WriteFile(name, a.content, 0o600); err != nil {
		a.t.Fatal(err)
	}
}

var libraryPath = regexp.MustCompile(`/\S+`)

// libraries returns those that a program is linked with, and the one that the
// C library loads by itself to end threads.
func libraries(t testing.TB, program string) []string {
	t.Helper()
	listed, err := command(t, "ldd", program).Output()
	if err != nil { // a static program
		return nil
	}
	found := libraryPath.FindAllString(string(listed), -1)
	unwinder, _ := filepath.Glob("/lib/x86_64-linux-gnu/libgcc_s.so.1")
	return append(found, unwinder...)
}

// copy adds a file of this machine.
func (a *Initrd) copy(name, from string) {
	a.t.Helper()
	if a.known[name] {
		return
	}
	content, err := os.ReadFile(from)
	if err != nil {
		a.t.Fatal(err)
	}
	a.Add(name, 0o755, content)
}

// Add adds a regular file and the directories above it.
func (a *Initrd) Add(name string, mode fs.FileMode, content []byte) {
	a.known[name] = true
	a.directory(path.Dir(name))
	a.entry(name, 0o100000|uint32(mode), content)
}

func (a *Initrd) directory(name string) {
	if name == "." || a.known[name] {
		return
	}
	a.known[name] = true
	a.directory(path.Dir(name))
	a.entry(name, 0o040755, nil)
}

// entry adds a header of thirteen numbers, a name and content, each padded to
// four bytes. The numbers are: inode, mode, owner, group, links, time, size,
// four device numbers, length of the name with its zero, checksum.
func (a *Initrd) entry(name string, mode uint32, content []byte) {
	a.content = append(a.content, "070701"...)
	for _, number := range []int{len(a.known), int(mode), 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0} {
		a.content = fmt.Appendf(a.content, "%08X", number)
	}
	a.pad(append([]byte(name), 0))
	a.pad(content)
}

func (a *Initrd) pad(b []byte) {
	a.content = append(a.content, b...)
	a.content = append(a.content, make([]byte, -len(a.content)&3)...)
}
