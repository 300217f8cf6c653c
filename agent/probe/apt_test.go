package probe

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func TestSuitesOfBothSourceFormats(t *testing.T) {
	files := fstest.MapFS{
		"etc/apt/sources.list": file("# comment\ndeb http://deb.debian.org/debian bookworm main\n" +
			"deb\t[ signed-by=/a b=c ] https://deb.debian.org/debian-security bookworm-security main contrib # tail\n" +
			"deb-src http://deb.debian.org/debian source-only main\n#deb http://x commented main\n"),
		"etc/apt/sources.list.d/a.sources":     file("Types: deb deb-src\nURIs: http://a\nSuites: one\n two\n\n# note\nTypes: deb-src\nSuites: none\n\nEnabled: No\nTypes: deb\nSuites: off\n"),
		"etc/apt/sources.list.d/b.list":        file("deb http://b flat/\n"),
		"etc/apt/sources.list.d/c.list.backup": file("deb http://c left-out main\n"),
	}
	got, err := aptSuites(files)
	want := []string{"bookworm", "bookworm-security", "flat/", "one", "two"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v: want %q", got, err, want)
	}
	for _, nonsense := range []string{"deb [arch=amd64 http://a b main\n", "deb http://a\n"} {
		if got, err := aptSuites(fstest.MapFS{"etc/apt/sources.list": file(nonsense)}); err == nil {
			t.Errorf("%q was taken as %q", nonsense, got)
		}
	}
}

// TestThisMachineAgreesWithApt compares the reading of this machine with
// apt's own plan: whatever apt would take from a security repository must be
// pending. It may name fewer: where a point release is newer than the security
// fix, apt names that one.
func TestThisMachineAgreesWithApt(t *testing.T) {
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		t.Skip("SKIPPED: this machine has no apt to compare with")
	}
	patch := readPatch(t, os.DirFS("/"))
	if patch.Reading.State != observed || patch.SecurityFeedConfigured != yes {
		t.Skipf("SKIPPED: this machine has no security lists to compare with: %s", patch.Reading.Reason)
	}
	out, err := exec.Command(apt, "-s", "-o", "Debug::NoLocking=1", "dist-upgrade").Output()
	if err != nil {
		t.Skipf("SKIPPED: apt-get -s dist-upgrade cannot plan here: %v", err)
	}
	compared := 0
	for line := range strings.Lines(string(out)) {
		// "Inst apt [2.6.1] (2.6.2 Debian-Security:12/oldstable-security [amd64])";
		// without a version in brackets it is newly installed.
		words := strings.Fields(line)
		if len(words) < 4 || words[0] != "Inst" || words[2][0] != '[' || !strings.Contains(strings.ToLower(line), "-security") {
			continue
		}
		compared++
		name, _, _ := strings.Cut(words[1], ":")
		if !slices.ContainsFunc(patch.Pending, func(p *posturev1.PendingUpdate) bool { return p.Package == name }) {
			t.Errorf("apt would update %s, it is not pending here", words[1])
		}
	}
	t.Logf("%d security updates planned by apt, %d pending", compared, patch.PendingSecurity)
}

// BenchmarkAptFullReading reads this machine's packages and lists with nothing
// remembered, and reports what stays on the heap.
func BenchmarkAptFullReading(b *testing.B) {
	files := os.DirFS("/")
	if _, err := os.Stat("/" + aptListsDir); err != nil {
		b.Skip("SKIPPED: this machine has no apt lists")
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var reader aptReader
	for b.Loop() {
		reader = aptReader{}
		if _, err := reader.read(b.Context(), files, []string{"bookworm"}); err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/1024, "KiB-kept")
	runtime.KeepAlive(&reader)
}
