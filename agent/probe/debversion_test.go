package probe

import (
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

// versionOrder holds versions from old to new, with what is special about the
// step.
var versionOrder = []struct{ older, newer, why string }{
	{"1.0~rc1-1", "1.0-1", "a tilde sorts before the end"},
	{"1.0~~", "1.0~", "two tildes before one"},
	{"1.0-1", "1.0-1+deb12u1", "a security fix adds a suffix"},
	{"1:9.2p1-2+deb12u9", "1:9.2p1-2+deb12u10", "numbers count by value"},
	{"2.0-1", "1:1.0-1", "the epoch comes first"},
	{"1.0-1~bpo12+1", "1.0-1", "a backport is older than what it was made of"},
	{"1.0", "1.0-1", "no revision is older than any"},
	{"1.2.a", "1.2.+", "letters sort before other signs"},
	{"1.0+20240101123456789012", "1.0+20240101123456789013", "numbers of any length"},
	{"v1.0", "v1.1", "dpkg only warns of a version that starts with a letter"},
	{"6.1.0-18", "6.1.0-50", "kernels"},
	{"2026b-0+deb12u1", "2026f-0+deb12u1", "letters within"},
}

func TestVersionsAreOrderedAsByDpkg(t *testing.T) {
	for _, step := range versionOrder {
		if compareVersions(step.older, step.newer) >= 0 || compareVersions(step.newer, step.older) <= 0 {
			t.Errorf("%s is not older than %s: %s", step.older, step.newer, step.why)
		}
	}
	for _, same := range [][2]string{{"1.0", "1.0-0"}, {"0:1.0", "1.0"}, {"1.00", "1.0"}, {"1.0-01", "1.0-1"}} {
		if compareVersions(same[0], same[1]) != 0 {
			t.Errorf("%s and %s are not the same", same[0], same[1])
		}
	}
}

func TestDpkgItselfAgrees(t *testing.T) {
	dpkg, err := exec.LookPath("dpkg")
	if err != nil {
		t.Skip("SKIPPED: dpkg is not installed, the order of versions is checked by the table alone")
	}
	agree := func(a, b string) {
		t.Helper()
		older := exec.Command(dpkg, "--compare-versions", a, "lt", b).Run() == nil
		if (compareVersions(a, b) < 0) != older {
			t.Errorf("%s lt %s: dpkg says %v", a, b, older)
		}
	}
	for _, step := range versionOrder {
		agree(step.older, step.newer)
		agree(step.newer, step.older)
	}
	random := rand.New(rand.NewPCG(1, 2))
	version := func() string {
		v := string("0123456789"[random.IntN(10)])
		for range random.IntN(8) {
			v += string("01299.+~abA-:"[random.IntN(13)])
		}
		return v
	}
	for range 400 {
		a, b := version(), version()
		if exec.Command(dpkg, "--validate-version", a).Run() == nil && exec.Command(dpkg, "--validate-version", b).Run() == nil {
			agree(a, b)
		}
	}
}

func FuzzCompareVersions(f *testing.F) {
	for _, step := range versionOrder {
		f.Add(step.older, step.newer)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if compareVersions(a, a) != 0 {
			t.Errorf("%q is not equal to itself", a)
		}
		if x, y := compareVersions(a, b), compareVersions(b, a); x != -y {
			t.Errorf("%q and %q: %d one way, %d the other", a, b, x, y)
		}
		if !strings.ContainsAny(a, ":-~ \t\n\v\f\r") && compareVersions(a+"~", a) >= 0 && a == strings.TrimSpace(a) {
			t.Errorf("%q~ is not older than %q", a, a)
		}
	})
}
