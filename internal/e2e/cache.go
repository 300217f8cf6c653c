//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// buildLimit is how long one test waits while another builds what both need.
const buildLimit = 15 * time.Minute

// Cached returns the directory of that name in the user's cache, which all
// tests share and none changes. Where it is missing, build fills it first. It
// is built once, also when several tests ask for it at the same time, and comes
// into its place as a whole: a build that was broken off leaves nothing behind
// that a later test would take for finished.
//
// A name holds the version of its recipe: who changes build changes the name.
func Cached(t testing.TB, name string, build func(dir string)) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil { // no home
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "pfoertner-e2e")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	defer lock(t, filepath.Join(cache, name+".lock"))()
	place := filepath.Join(cache, name)
	if _, err := os.Stat(place); err == nil {
		return place
	}
	aside := place + ".new"
	defer os.RemoveAll(aside)
	if err := os.RemoveAll(aside); err != nil { // of a build that was killed
		t.Fatal(err)
	}
	if err := os.Mkdir(aside, 0o755); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	build(aside)
	if t.Failed() {
		t.FailNow()
	}
	if err := os.Rename(aside, place); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s was built in %v", place, time.Since(began).Round(time.Second))
	return place
}

// lock takes a lock that the kernel releases when its holder dies: flock(2).
func lock(t testing.TB, name string) (release func()) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	taken := func() bool { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil }
	if !EventuallyEvery(t, 100*time.Millisecond, buildLimit, taken) {
		f.Close()
		t.Fatalf("%s is held by another test", name)
	}
	return func() { f.Close() }
}
