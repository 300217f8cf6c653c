//go:build linux

package wine

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"pfoertner/internal/e2e"
)

const (
	suite   = "trixie"
	archive = "http://deb.debian.org/debian"
	// buildLimit is how long the Debian may take, with all that it downloads.
	buildLimit = 15 * time.Minute
)

// buildScript installs Wine in the Debian and makes the Windows that every
// machine begins with.
const buildScript = `set -e
mount --make-rprivate /
mount -t proc proc "$1/proc"
exec chroot "$1" /bin/sh -c '
  set -e
  apt-get install -y -qq -o Acquire::Retries=3 --no-install-recommends wine wine64 >/dev/null
  rm -rf /var/cache/apt/archives/*.deb
  mkdir -p /root/windows
  /usr/lib/wine/wine64 wineboot --init
  wineserver --wait
  test -f /root/windows/system.reg
  echo "@@ built"'
`

// debian returns the root of a Debian with Wine and a Windows as new.
func debian(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: this test runs Wine in a Debian 13 of its own and needs root")
	}
	if runtime.GOARCH != "amd64" {
		t.Skipf("SKIPPED: Wine runs Windows programs for amd64, and this machine is %s", runtime.GOARCH)
	}
	for _, program := range []string{"debootstrap", "chroot", "nsenter", "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED: this test needs the program %q: %v", program, err)
		}
	}
	return e2e.Cached(t, recipe, func(dir string) { build(t, dir) })
}

func build(t testing.TB, dir string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "debootstrap", "--variant=minbase", suite, dir, archive).CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED: this test needs a Debian 13 from %s: %v\n%s", archive, err, tail(out))
	}
	resolver, err := os.ReadFile("/etc/resolv.conf")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "etc", "resolv.conf"), resolver, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	building := within(t, dir, buildScript)
	if !e2e.EventuallyEvery(t, 100*time.Millisecond, buildLimit, building.Ended) {
		t.Fatalf("building Wine has no end after %v:\n%s", buildLimit, building.Output())
	}
	building.Await(t, t.Context(), "@@ built")
}

// tail is the end of what a program said.
func tail(out []byte) []byte {
	return out[max(0, len(out)-2000):]
}
