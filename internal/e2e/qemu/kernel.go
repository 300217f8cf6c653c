//go:build linux

package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pfoertner/internal/e2e"
)

// metapackage depends on Debian's newest kernel for virtual machines.
const metapackage = "linux-image-cloud-amd64"

// Kernel is an unpacked Debian kernel package.
type Kernel struct {
	// Image is the file that boots.
	Image   string
	root    string // where it was unpacked
	release string
}

// DebianKernel returns the kernel in the user's cache, and fetches it when
// there is none. Its version does not matter to what the machines show.
func DebianKernel(t testing.TB) Kernel {
	t.Helper()
	k := Kernel{root: e2e.Cached(t, "kernel", func(dir string) { fetchKernel(t, dir) })}
	images, err := filepath.Glob(filepath.Join(k.root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		t.Fatalf("not one kernel but %q in %s: %v", images, k.root, err)
	}
	k.Image = images[0]
	k.release = strings.TrimPrefix(filepath.Base(k.Image), "vmlinuz-")
	return k
}

// fetchKernel unpacks the kernel package without installing it.
func fetchKernel(t testing.TB, unpacked string) {
	t.Helper()
	dir := t.TempDir()
	download := func() error {
		listed, err := command(t, "apt-cache", "depends", "--important", metapackage).Output()
		if err != nil {
			return err
		}
		_, dependency, _ := strings.Cut(string(listed), "Depends: ")
		name, _, _ := strings.Cut(dependency, "\n")
		get := command(t, "apt-get", "download", "-qq", name)
		get.Dir = dir
		_, err = get.Output()
		return err
	}
	err := download()
	if err != nil && os.Geteuid() == 0 && command(t, "apt-get", "update", "-qq").Run() == nil { // the list may be missing or old
		err = download()
	}
	if err != nil {
		t.Skipf("SKIPPED: this test needs the Debian package that %s depends on: %v\n%s", metapackage, err, said(err))
	}
	packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(packages) != 1 {
		t.Fatalf("apt-get brought not one package but %q: %v", packages, err)
	}
	output(t, "dpkg", "-x", packages[0], unpacked)
	release, err := os.ReadDir(filepath.Join(unpacked, "lib", "modules"))
	if err != nil || len(release) != 1 {
		t.Fatalf("a kernel package without modules of one release: %v", err)
	}
	output(t, "depmod", "-b", unpacked, release[0].Name())
}

// Modules returns the files of modules and of those they need, in the order in
// which they are loaded. What is built into the kernel needs no file.
func (k Kernel) Modules(t testing.TB, names []string) []string {
	t.Helper()
	var files []string
	seen := map[string]bool{}
	for _, name := range names {
		for line := range strings.Lines(output(t, "modprobe", "-S", k.release, "-d", k.root, "--show-depends", name)) {
			file, ok := strings.CutPrefix(strings.TrimSpace(line), "insmod ")
			if ok && !seen[file] {
				seen[file] = true
				files = append(files, file)
			}
		}
	}
	return files
}
