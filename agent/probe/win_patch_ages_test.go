package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// updateNumber is the UpdateID of the update number n.
func updateNumber(n int) string { return fmt.Sprintf("%08x-0000-4000-8000-00805f9b34fb", n) }

// cumulative is the cumulative update number n, which supersedes those listed.
func cumulative(n int, supersedes ...int) OfferedUpdate {
	u := securityUpdate(fmt.Sprint(5000000 + n))
	u.ID = updateNumber(n)
	for _, s := range supersedes {
		u.Supersedes = append(u.Supersedes, updateNumber(s))
	}
	return u
}

// upTo are the numbers of all updates before n.
func upTo(n int) (numbers []int) {
	for i := 1; i < n; i++ {
		numbers = append(numbers, i)
	}
	return numbers
}

// agingNotebook is one whose ledger outlives the agent. Its time counts in days.
type agingNotebook struct {
	*windowsNotebook
	t      *testing.T
	ledger FileLedger
	begin  time.Time
}

func newAgingNotebook(t *testing.T) *agingNotebook {
	ledger := FileLedger{Path: filepath.Join(t.TempDir(), "ledger")}
	n := newWindowsNotebook(ledger)
	return &agingNotebook{n, t, ledger, n.now}
}

// on makes a search that offers this, after a start of the agent; it returns
// for how many days each is pending.
func (n *agingNotebook) on(day float64, offered ...OfferedUpdate) string {
	n.t.Helper()
	n.now = n.begin.Add(time.Duration(day * 24 * float64(time.Hour)))
	n.probe = patchProbe(n.ledger, nil)
	n.search.LastSearch = n.now.Add(-time.Hour)
	n.search.Pending = append([]OfferedUpdate{}, offered...)
	p := n.patch(n.t)
	if got := searchReading(p); got != "OBSERVED" {
		n.t.Fatalf("the search: %s", got)
	}
	var ages []string
	for _, u := range p.GetPending() {
		ages = append(ages, fmt.Sprintf("%g", n.now.Sub(u.GetFirstSeenAt().AsTime()).Hours()/24))
	}
	return strings.Join(ages, " ")
}

func (n *agingNotebook) want(ages, got string) {
	n.t.Helper()
	if got != ages {
		n.t.Errorf("on day %g pending for %q days, want %q", n.now.Sub(n.begin).Hours()/24, got, ages)
	}
}

// revision is what an installation raises.
func (n *agingNotebook) revision(ubr int) { n.registry[currentVersionKey+`\UBR`] = ubr }

func TestWindowsThatIsNeverUpdatedAgesOverTheMonths(t *testing.T) {
	n := newAgingNotebook(t)
	n.want("0", n.on(0, cumulative(1)))
	n.want("27", n.on(27, cumulative(1)))
	n.want("28", n.on(28, cumulative(2, 1)))
	n.want("55", n.on(55, cumulative(2, 1)))
	n.want("56", n.on(56, cumulative(3, 2))) // lists only the one before it
	n.want("84", n.on(84, cumulative(4, upTo(4)...)))
	sightings, err := n.ledger.Load()
	if err != nil || len(sightings) != 1 {
		t.Errorf("the ledger remembers %v, %v; want what is pending now", sightings, err)
	}
}

func TestNotebookThatWasOffForMonthsKnowsTheOldUpdateAgain(t *testing.T) {
	n := newAgingNotebook(t)
	n.on(0, cumulative(1))
	n.want("120", n.on(120, cumulative(5, upTo(5)...)))
}

func TestInstalledUpdateMakesTheNextOneNoOlder(t *testing.T) {
	for name, gap := range map[string]bool{"installed before the next came": false, "between two searches": true} {
		n := newAgingNotebook(t)
		n.on(0, cumulative(1))
		n.on(10, cumulative(1))
		n.revision(8777)
		if !gap {
			n.want("", n.on(11))
		}
		if got := n.on(28, cumulative(2, 1)); got != "0" {
			t.Errorf("%s: the next is pending for %s days", name, got)
		}
		n.want("2", n.on(30, cumulative(2, 1)))
	}
}

func TestFailedUpdateIsNotInstalled(t *testing.T) {
	n := newAgingNotebook(t)
	n.on(0, cumulative(1))
	// Rolled back: other things were installed, the revision is what it was.
	n.search.LastInstallation = n.begin.AddDate(0, 0, 27)
	n.want("28", n.on(28, cumulative(2, 1)))
	// Uninstalled: the revision is lower.
	n.revision(8000)
	n.want("56", n.on(56, cumulative(3, 1, 2)))
}

func TestRevisionThatIsNotKnownMakesNothingYoung(t *testing.T) {
	n := newAgingNotebook(t)
	n.on(0, cumulative(1))
	delete(n.registry, currentVersionKey+`\UBR`)
	n.want("28", n.on(28, cumulative(2, 1)))
	n.revision(8655)
	n.want("56", n.on(56, cumulative(3, 1, 2)))
}

// While the search after an installation runs, the answer from before serves.
// That Windows has a newer revision by then does not make what it lists missing
// in that one.
func TestRevisionIsThatOfTheSearch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newAgingNotebook(t)
		n.on(0, cumulative(1))
		n.revision(8777)
		end := n.slowly()
		n.patch(t)
		n.search.Pending = []OfferedUpdate{cumulative(2, 1)}
		n.now = n.begin.AddDate(0, 0, 1)
		end()
		if first := n.patch(t).GetPending()[0].GetFirstSeenAt().AsTime(); !first.Equal(n.now) {
			t.Errorf("after the first is installed the second is pending since %v", first)
		}
	})
}

// A server declines the old update before it approves the new one, people pause
// updates, Microsoft withdraws one: in that time nothing could be installed.
func TestTimeInWhichNothingIsOfferedIsNotCounted(t *testing.T) {
	n := newAgingNotebook(t)
	n.on(0, cumulative(1))
	n.want("10", n.on(10, cumulative(1)))
	n.want("", n.on(10.5))
	n.want("", n.on(13))
	n.want("10.5", n.on(14, cumulative(2, 1)))

	// The same one comes back.
	n.want("", n.on(20))
	n.want("16.5", n.on(30, cumulative(2, 1)))
}

func TestWithdrawnUpdateMakesNobodyLate(t *testing.T) {
	n := newAgingNotebook(t)
	n.on(0, cumulative(1))
	n.want("", n.on(2))
	n.want("0", n.on(28, cumulative(2, 1)))
}

// .NET has no revision of Windows: what is gone for long was installed.
func TestUpdateWithoutARevisionIsForgottenBeforeTheNextMonth(t *testing.T) {
	n := newAgingNotebook(t)
	n.want("0", n.on(0, cumulative(1)))
	n.want("", n.on(9))
	n.want("", n.on(9+goneKept.Hours()/24))
	if sightings, err := n.ledger.Load(); err != nil || len(sightings) != 0 {
		t.Errorf("the ledger remembers %v, %v", sightings, err)
	}
	n.want("0", n.on(28, cumulative(2, 1)))
}

func TestUpdateThatSupersedesNothingMissingIsNew(t *testing.T) {
	n := newAgingNotebook(t)
	n.on(0, cumulative(1), cumulative(7))
	n.want("20 0", n.on(20, cumulative(1), cumulative(8, 9)))
	n.want("25 0", n.on(25, cumulative(1), cumulative(9)))
	// What it supersedes is offered beside it: its own age is on the list.
	n.want("26 1 0", n.on(26, cumulative(1), cumulative(9), cumulative(10, 1)))
	n.want("27", n.on(27, cumulative(10, 1)))
}

func TestSupersedenceThatIsNotKnownInFullIsTakenForOlder(t *testing.T) {
	n := newAgingNotebook(t)
	n.on(0, cumulative(1), cumulative(2))
	next := cumulative(3, 99)
	next.SupersedesMore = true
	n.want("28 28", n.on(28, cumulative(2), next))
}

func TestKBNumberWithSeveralUpdatesInheritsTheOldest(t *testing.T) {
	n := newAgingNotebook(t)
	n.on(0, cumulative(1))
	n.on(5, cumulative(1), cumulative(2))
	next, beside := cumulative(3, 2), cumulative(4, 1)
	beside.KBs = next.KBs
	n.want("28 28", n.on(28, next, beside))
}

func TestClockDoesNotMakeSupersededUpdatesYoung(t *testing.T) {
	n := newAgingNotebook(t)
	right := n.begin
	n.on(365, cumulative(1)) // a clock that is a year ahead, Windows' own times too
	n.want("0", n.on(0, cumulative(1)))
	n.want("28", n.on(28, cumulative(2, 1)))

	// An empty clock battery when the next appears.
	n.probe = patchProbe(n.ledger, nil)
	n.now = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	n.search.Pending = []OfferedUpdate{cumulative(3, 1, 2)}
	n.search.LastSearch = right.AddDate(0, 0, 29)
	n.want("0", fmt.Sprintf("%g", n.now.Sub(n.patch(t).GetPending()[0].GetFirstSeenAt().AsTime()).Hours()))
	n.want("30", n.on(30, cumulative(3, 1, 2)))
}

func TestFirstSightWithAnEmptyClockBatteryIsNotDecadesOld(t *testing.T) {
	n := newAgingNotebook(t)
	n.now = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	n.search.Pending = []OfferedUpdate{cumulative(1)}
	n.search.LastSearch = n.begin
	n.patch(t)
	n.want("3", n.on(3, cumulative(1)))
}

func TestLedgersOfOlderAgentsAreRead(t *testing.T) {
	n := newAgingNotebook(t)
	old := `[{"package": "KB5000001", "architecture": "windows", "version": "offered", "first_seen": "` +
		n.begin.AddDate(0, 0, -5).Format(time.RFC3339) + `"}]`
	if err := os.WriteFile(n.ledger.Path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	n.want("5", n.on(0, cumulative(1)))
	n.want("33", n.on(28, cumulative(2, 1)))
}

func TestUpdateIDs(t *testing.T) {
	const id = "0fa1201d-4330-4fa8-8ae9-b877473b6441"
	for text, want := range map[string]string{
		id: id, "{" + strings.ToUpper(id) + "}": id, " " + id + " ": id,
		"": "", "KB5000001": "", id + "0": "", "../" + id: "", id[:35] + "g": "",
	} {
		if got := updateID(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestSupersededUpdatesAreLimited(t *testing.T) {
	item := func(i int32) (string, error) {
		switch i {
		case 1:
			return "", errors.New("0x80070005")
		case 2:
			return "no GUID", nil
		}
		return "{" + strings.ToUpper(updateNumber(int(i))) + "}", nil
	}
	for _, c := range []struct {
		count int32
		ids   int
		more  bool
	}{
		{-1, 0, true}, {0, 0, false}, {1, 1, false}, {2, 1, true}, {3, 1, true}, {4, 2, true},
		{51, 48, true}, {1 << 30, 48, true},
	} {
		if ids, more := supersededIDs(c.count, 50, item); len(ids) != c.ids || more != c.more {
			t.Errorf("%d items: %d IDs, more %v", c.count, len(ids), more)
		}
	}
	if ids, more := supersededIDs(3, 0, item); len(ids) != 0 || !more {
		t.Errorf("with nothing left of the limit: %v, more %v", ids, more)
	}
	if ids, _ := supersededIDs(1, 50, item); !slices.Equal(ids, []string{updateNumber(0)}) {
		t.Errorf("IDs: %v", ids)
	}
}

// FuzzAgesOfOffers searches day after day, as the bytes say, on a Windows that
// installs nothing: what is pending is never older than the notebook knows of
// updates, and where every update supersedes all before it and one is always
// offered, none is ever younger.
func FuzzAgesOfOffers(f *testing.F) {
	f.Add([]byte{1, 1, 2, 2, 3}, true)
	f.Add([]byte{1, 0, 0, 2, 0, 1, 3}, false)
	f.Fuzz(func(t *testing.T, days []byte, always bool) {
		begin := time.Date(2026, 6, 20, 8, 0, 0, 0, time.UTC)
		ages := fixAges{}
		newest := 0
		for day, b := range days[:min(len(days), 64)] {
			now := begin.AddDate(0, 0, day)
			answer := &UpdateSearch{LastSearch: now}
			switch number := int(b % 8); {
			case always:
				newest = max(newest, number, 1)
				answer.Pending = []OfferedUpdate{cumulative(newest, upTo(newest)...)}
			case number > 0:
				answer.Pending = []OfferedUpdate{cumulative(number, int(b/8)%8), cumulative(8+number, int(b/64))}
			}
			pending := securityUpdates(answer.Pending)
			ages.dateOffered(pending, answer, 26100<<32|8655, now)
			for _, p := range pending {
				first := p.GetFirstSeenAt().AsTime()
				if first.Before(begin) || first.After(now) || always && !first.Equal(begin) {
					t.Errorf("day %d: %s is first seen at %v", day, p.GetPackage(), first)
				}
			}
		}
	})
}
