//go:build linux

package guest

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

// needed are the modules that every guest loads: its disks, its random
// numbers, its firmware's variables, and its encrypted root.
var needed = []string{
	"virtio_pci", "virtio_blk", "virtio_rng", "efivarfs",
	"dm-crypt", "xts", "aesni-intel", "af_alg", "algif_skcipher",
}

// writeInitrd writes the file system that the guest boots from.
func (g Guest) writeInitrd(t testing.TB, name string, k kernel) {
	t.Helper()
	a := archive{t: t, known: map[string]bool{}}
	for _, dir := range []string{"dev", "proc", "sys", "run", "newroot"} {
		a.directory(dir)
	}
	for _, program := range append([]string{find(t, "busybox"), find(t, "cryptsetup")}, g.Programs...) {
		a.copy(path.Join("bin", filepath.Base(program)), program)
		for _, library := range libraries(t, program) {
			a.copy(library[1:], library)
		}
	}
	var order strings.Builder
	for _, module := range k.modules(t, append(needed, g.Modules...)) {
		a.copy(path.Join("modules", filepath.Base(module)), module)
		fmt.Fprintln(&order, filepath.Base(module))
	}
	a.file("modules/order", 0o644, []byte(order.String()))
	a.file("init", 0o755, initScript)
	a.file("bin/guest-script", 0o755, []byte("#!/bin/sh\n"+g.Script+"\necho '"+done+"'\npoweroff -f\n"))
	a.entry("TRAILER!!!", 0, nil)
	if err := os.WriteFile(name, a.content, 0o600); err != nil {
		t.Fatal(err)
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

// archive is an initial file system in the "new ASCII" format of cpio(5),
// which the kernel reads.
type archive struct {
	t       testing.TB
	content []byte
	known   map[string]bool
}

// copy adds a file of this machine.
func (a *archive) copy(name, from string) {
	a.t.Helper()
	if a.known[name] {
		return
	}
	content, err := os.ReadFile(from)
	if err != nil {
		a.t.Fatal(err)
	}
	a.file(name, 0o755, content)
}

// file adds a regular file and the directories above it.
func (a *archive) file(name string, mode fs.FileMode, content []byte) {
	a.known[name] = true
	a.directory(path.Dir(name))
	a.entry(name, 0o100000|uint32(mode), content)
}

func (a *archive) directory(name string) {
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
func (a *archive) entry(name string, mode uint32, content []byte) {
	a.content = append(a.content, "070701"...)
	for _, number := range []int{len(a.known), int(mode), 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0} {
		a.content = fmt.Appendf(a.content, "%08X", number)
	}
	a.pad(append([]byte(name), 0))
	a.pad(content)
}

func (a *archive) pad(b []byte) {
	a.content = append(a.content, b...)
	a.content = append(a.content, make([]byte, -len(a.content)&3)...)
}
