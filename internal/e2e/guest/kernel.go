//go:build linux

package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// metapackage depends on Debian's newest kernel for virtual machines.
const metapackage = "linux-image-cloud-amd64"

// kernel is an unpacked Debian kernel package.
type kernel struct {
	root    string // where it was unpacked
	image   string
	release string
}

// debianKernel returns the kernel in the user's cache, and fetches it when
// there is none. Its version does not matter to what the guest shows.
func debianKernel(t testing.TB) kernel {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil { // no home
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "pfoertner-e2e")
	k := kernel{root: filepath.Join(cache, "kernel")}
	if _, err := os.Stat(k.root); err != nil {
		fetchKernel(t, cache, k.root)
	}
	images, err := filepath.Glob(filepath.Join(k.root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		t.Fatalf("not one kernel but %q in %s: %v", images, k.root, err)
	}
	k.image = images[0]
	k.release = strings.TrimPrefix(filepath.Base(k.image), "vmlinuz-")
	return k
}

// fetchKernel unpacks the kernel package without installing it, and puts it
// into its place as a whole.
func fetchKernel(t testing.TB, cache, place string) {
	t.Helper()
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
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
	err = download()
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
	unpacked := filepath.Join(dir, "kernel")
	output(t, "dpkg", "-x", packages[0], unpacked)
	release, err := os.ReadDir(filepath.Join(unpacked, "lib", "modules"))
	if err != nil || len(release) != 1 {
		t.Fatalf("a kernel package without modules of one release: %v", err)
	}
	output(t, "depmod", "-b", unpacked, release[0].Name())
	if err := os.Rename(unpacked, place); err != nil {
		t.Fatal(err)
	}
}

// modules returns the files of modules and of those they need, in the order in
// which they are loaded. What is built into the kernel needs no file.
func (k kernel) modules(t testing.TB, names []string) []string {
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
