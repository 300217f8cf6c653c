package probe

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// aged reads patches with a new probe, as after a restart of the agent, and
// returns the section and the age of liblzma5's update in days.
func aged(t *testing.T, ledger Ledger, files fstest.MapFS, now time.Time) (*posturev1.Patch, float64) {
	t.Helper()
	h := Host{Files: files, Now: func() time.Time { return now }}
	patch := observe(t, h, patchProbe(ledger, nil)).Patch
	wantState(t, patch.Reading, observed)
	for _, p := range patch.Pending {
		if p.Package == "liblzma5" {
			return patch, now.Sub(p.FirstSeenAt.AsTime()).Hours() / 24
		}
	}
	return patch, -1
}

func TestAgeOfAnUpdateSurvivesRestarts(t *testing.T) {
	files := layTrees(t, "apt/minimal", "apt/security")
	ledger := FileLedger{filepath.Join(t.TempDir(), "fixes.json")}
	for _, day := range []int{0, 1, 9} {
		if _, age := aged(t, ledger, files, testNow.AddDate(0, 0, day)); age != float64(day) {
			t.Errorf("on day %d pending for %v days", day, age)
		}
	}
	info, err := os.Stat(ledger.Path)
	if err != nil {
		t.Fatal(err)
	}
	// Windows has lists of who may read in place of modes: the directory's count.
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("the ledger may be read by others: %v", info.Mode())
	}
}

func TestNewerFixDoesNotMakeAnOldOneYoung(t *testing.T) {
	files := layTrees(t, "apt/minimal", "apt/security")
	ledger := FileLedger{filepath.Join(t.TempDir(), "fixes.json")}
	aged(t, ledger, files, testNow)

	index := strings.Replace(string(files[securityIndex].Data), "5.4.1-1+deb12u2", "5.4.1-1+deb12u3", 1)
	newer := signedList(files, securityIndex, "", []byte(index))
	if _, age := aged(t, ledger, newer, testNow.AddDate(0, 0, 5)); age != 5 {
		t.Errorf("with a newer fix on top it is pending for %v days, want 5", age)
	}

	// The first fix gets installed: only the second is missing, since day 5.
	status := strings.Replace(string(files[dpkgStatusFile].Data), "5.4.1-1+deb12u1", "5.4.1-1+deb12u2", 1)
	half := with(newer, fstest.MapFS{dpkgStatusFile: file(status)})
	if _, age := aged(t, ledger, half, testNow.AddDate(0, 0, 7)); age != 2 {
		t.Errorf("with the first fix installed the second is pending for %v days, want 2", age)
	}
}

func TestLedgerForgetsWhatIsInstalledAndNothingElse(t *testing.T) {
	files := layTrees(t, "apt/minimal", "apt/security")
	ledger := FileLedger{filepath.Join(t.TempDir(), "fixes.json")}
	aged(t, ledger, files, testNow)

	// A day without the security source: nothing is pending, nothing is forgotten.
	if _, age := aged(t, ledger, layTrees(t, "apt/minimal"), testNow.AddDate(0, 0, 1)); age != -1 {
		t.Fatalf("without a security source it is pending for %v days", age)
	}
	if _, age := aged(t, ledger, files, testNow.AddDate(0, 0, 3)); age != 3 {
		t.Errorf("pending for %v days, want 3", age)
	}

	status := strings.Replace(string(files[dpkgStatusFile].Data), "5.4.1-1+deb12u1", "5.4.1-1+deb12u2", 1)
	aged(t, ledger, with(files, fstest.MapFS{dpkgStatusFile: file(status)}), testNow.AddDate(0, 0, 4))
	sightings, err := ledger.Load()
	if err != nil || len(sightings) != 5 {
		t.Errorf("%d sightings kept, %v: want the 5 that are still missing", len(sightings), err)
	}
}

func TestDamagedLedgerIsSetAsideAndSaidSo(t *testing.T) {
	files := layTrees(t, "apt/minimal", "apt/security")
	for _, nonsense := range []string{"", "\x00", "[{]", `{"a":1}`, `[{"package":"apt"}]`} {
		ledger := FileLedger{filepath.Join(t.TempDir(), "fixes.json")}
		if err := os.WriteFile(ledger.Path, []byte(nonsense), 0o600); err != nil {
			t.Fatal(err)
		}
		patch, age := aged(t, ledger, files, testNow)
		if age != 0 || patch.PendingSecurity != 6 || !strings.Contains(patch.Reading.Reason, "damaged") {
			t.Errorf("%q: pending for %v days, %d in all, reason %q", nonsense, age, patch.PendingSecurity, patch.Reading.Reason)
		}
		if kept, err := os.ReadFile(ledger.Path + ".damaged"); err != nil || string(kept) != nonsense {
			t.Errorf("%q: set aside as %q, %v", nonsense, kept, err)
		}
		if _, age := aged(t, ledger, files, testNow.AddDate(0, 0, 2)); age != 2 {
			t.Errorf("%q: the new ledger says %v days, want 2", nonsense, age)
		}
	}
}

// stubbornLedger cannot be read at first.
type stubbornLedger struct {
	err   error
	saved []Sighting
	saves int
}

func (l *stubbornLedger) Load() ([]Sighting, error) { return l.saved, l.err }

func (l *stubbornLedger) Save(s []Sighting) error { l.saved = s; l.saves++; return nil }

func TestLedgerThatCannotBeReadIsNotOverwritten(t *testing.T) {
	files := layTrees(t, "apt/minimal", "apt/security")
	ledger := &stubbornLedger{err: errors.New("input/output error"), saved: []Sighting{
		{Package: "liblzma5", Architecture: "amd64", Version: "5.4.1-1+deb12u2", FirstSeen: testNow.AddDate(0, 0, -20)},
	}}
	probe := patchProbe(ledger, nil)
	first := observe(t, Host{Files: files}, probe).Patch
	if ledger.saves != 0 || !strings.Contains(first.Reading.Reason, "input/output error") {
		t.Errorf("saved %d times, reason %q", ledger.saves, first.Reading.Reason)
	}
	ledger.err = nil
	second := observe(t, Host{Files: files}, probe).Patch
	if second.Reading.Reason != "" || second.Pending[2].FirstSeenAt.AsTime() != testNow.AddDate(0, 0, -20) {
		t.Errorf("reason %q, first seen %s", second.Reading.Reason, second.Pending[2].FirstSeenAt.AsTime())
	}
}

func TestClockThatIsWrongMakesNothingOld(t *testing.T) {
	files := layTrees(t, "apt/minimal", "apt/security")
	ledger := FileLedger{filepath.Join(t.TempDir(), "fixes.json")}
	epoch := time.Date(1970, time.January, 1, 0, 1, 0, 0, time.UTC)
	aged(t, ledger, files, epoch)
	if _, age := aged(t, ledger, files, testNow); age > 2 {
		t.Errorf("pending for %v days since a start with an empty clock battery", age)
	}
	future := FileLedger{filepath.Join(t.TempDir(), "fixes.json")}
	aged(t, future, files, testNow.AddDate(1, 0, 0))
	if _, age := aged(t, future, files, testNow); age != 0 {
		t.Errorf("pending for %v days, want 0: first seen in the future", age)
	}
	if _, age := aged(t, future, files, testNow.AddDate(0, 0, 20)); age != 20 {
		t.Errorf("20 days later pending for %v days: it must not stay new for a year", age)
	}
	// A clock that is behind again says nothing about what was seen before.
	aged(t, future, files, epoch)
	if _, age := aged(t, future, files, testNow.AddDate(0, 0, 21)); age != 21 {
		t.Errorf("after a start with an empty clock battery pending for %v days, want 21", age)
	}
}

func FuzzSightings(f *testing.F) {
	f.Add([]byte(`[{"package":"apt","architecture":"amd64","version":"1","first_seen":"2026-11-21T19:00:00Z"}]`))
	f.Add([]byte(`[{"package":"KB5000001","architecture":"windows","version":"offered","first_seen":"2026-11-01T19:00:00Z",
		"update_ids":["00000001-0000-4000-8000-00805f9b34fb"],"revision":112150186040783,"gone":"2026-11-20T19:00:00Z"}]`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, content []byte) {
		sightings, err := parseSightings(content)
		if err != nil {
			return
		}
		for _, s := range sightings {
			if s.Package == "" || s.FirstSeen.IsZero() {
				t.Errorf("took a sighting without package or time: %+v", s)
			}
		}
		// Whatever was kept, what is pending now is never first seen tomorrow,
		// and what is kept next can be read again.
		answer := &UpdateSearch{LastSearch: testNow, Pending: []OfferedUpdate{cumulative(1), cumulative(2, 1)}}
		pending := securityUpdates(answer.Pending)
		ledger := &stubbornLedger{saved: sightings}
		ages := fixAges{ledger: ledger}
		ages.dateOffered(pending, answer, 26100<<32|8655, testNow)
		for _, p := range pending {
			if err := p.GetFirstSeenAt().CheckValid(); err != nil || p.GetFirstSeenAt().AsTime().After(testNow) {
				t.Errorf("%s is first seen at %v, %v", p.GetPackage(), p.GetFirstSeenAt(), err)
			}
		}
		kept, err := json.Marshal(ledger.saved)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseSightings(kept); err != nil {
			t.Errorf("kept what cannot be read: %v\n%s", err, kept)
		}
	})
}
