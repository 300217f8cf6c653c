package appraisal

import (
	"strings"
	"testing"
	"time"
)

// goodReferences is one row of everything.
const goodReferences = `issued: 2026-11-20
as_of: 2026-11-13
sources:
  s: {text: release notes, read: 2026-11-20}
distributions:
  - {id: a, version: "1", ends: 2026-01-01, source: s}
vpn_clients:
  - {product: p, oldest: "1.0", source: s}
windows_builds:
  - {build: 26100, track: client, ubr: 8457, release_date: 2026-05-12, kb: KB5089549, class: security, source: s}
windows_lifecycle:
  - {build: 26100, editions: [Enterprise], last_day: 2027-10-12, extended_last_day: 2028-10-10, source: s}
ring:
  - {build: 26100, track: client, ubr: 8457, approved_on: 2026-05-20, groups: [pilot]}
`

func mustParse(t testing.TB, file string) *References {
	t.Helper()
	r, faults := ParseReferences([]byte(file))
	for _, f := range faults {
		t.Errorf("line %d, column %d: %s", f.GetLine(), f.GetColumn(), f.GetMessage())
	}
	if r == nil {
		t.FailNow()
	}
	return r
}

func TestReferenceValuesAreReadStrictly(t *testing.T) {
	r := mustParse(t, goodReferences)
	if v, ok := r.oldestClient("p"); !ok || v != "1.0" {
		t.Errorf("oldest client %q", v)
	}
	if asOf, until := r.WindowsAsOf(); asOf.Format(time.DateOnly) != "2026-11-13" || until.Format(time.DateOnly) != "2026-12-18" {
		t.Errorf("as of %v, usable until %v", asOf, until)
	}
	for name, tt := range map[string]struct {
		old, new string
		line     uint32
		want     string
	}{
		"unknown key":             {"distributions", "distribution", 5, `unknown key "distribution"`},
		"unknown key in a row":    {"kb: KB", "ky: KB", 10, `unknown key "ky"`},
		"not issued":              {"issued: 2026-11-20\n", "", 1, `key "issued" is missing`},
		"issued some day":         {"2026-11-20\nas_of", "soon\nas_of", 1, "a date such as"},
		"as_of forgotten":         {"as_of: 2026-11-13\n", "", 1, `"as_of" is missing`},
		"no date":                 {"ends: 2026-01-01", "ends: soon", 6, "a date"},
		"no source":               {", source: s}\nvpn", "}\nvpn", 6, `"source" is missing`},
		"undeclared source":       {"class: security, source: s", "class: security, source: t", 10, `source "t" is not declared`},
		"number as text":          {`"1",`, "1,", 6, "a text is expected"},
		"no version":              {`"1.0"`, `"new"`, 8, "a version such as"},
		"build of words":          {"{build: 26100, track: client, ubr: 8457, release", "{build: 24H2, track: client, ubr: 8457, release", 10, "a whole number above zero"},
		"build zero":              {"ubr: 8457, release", "ubr: 0, release", 10, "a whole number above zero"},
		"unknown track":           {"track: client, ubr: 8457, release", "track: insider, ubr: 8457, release", 10, "one of client, hotpatch, ltsc, server"},
		"unknown class":           {"class: security", "class: important", 10, "one of oob, oob-security, preview, security"},
		"a KB without KB":         {"KB5089549", `"5089549"`, 10, "a number such as"},
		"released after as_of":    {"2026-05-12", "2026-11-14", 10, "released after as_of"},
		"extended too early":      {"2028-10-10", "2026-10-10", 12, "extended support ends before"},
		"the same update twice":   {"windows_lifecycle", twice + "windows_lifecycle", 11, "stands here twice"},
		"a slip in a revision":    {"windows_lifecycle", slip + "windows_lifecycle", 1, "26100.8460 (client) was released before 26100.8457"},
		"the same edition twice":  {"ring:", "  - {build: 26100, editions: [Enterprise], last_day: 2027-10-12, source: s}\nring:", 13, "stands here twice"},
		"the same group twice":    {"groups: [pilot]}", "groups: [pilot]}\n  - {build: 26100, track: client, ubr: 8500, approved_on: 2026-05-20, groups: [pilot]}", 15, `twice for the group "pilot"`},
		"everybody twice":         {", groups: [pilot]}", "}\n  - {build: 26100, track: client, ubr: 8500, approved_on: 2026-05-20}", 15, "twice for everybody"},
		"two documents":           {"ring:", "---\nring:", 13, "only one YAML document"},
		"anchors":                 {"ring:", "ring: &r", 13, "anchors"},
		"no YAML":                 {"ring:", "ring: [", 0, ""},
		"a list where one is not": {"issued: 2026-11-20", "issued: [2026-11-20]", 1, "a date such as"},
	} {
		t.Run(name, func(t *testing.T) {
			file := strings.Replace(goodReferences, tt.old, tt.new, 1)
			if file == goodReferences {
				t.Fatal("the case changes nothing")
			}
			r, faults := ParseReferences([]byte(file))
			if r != nil || len(faults) == 0 {
				t.Fatal("taken")
			}
			if f := faults[0]; !strings.Contains(f.GetMessage(), tt.want) || tt.line != 0 && f.GetLine() != tt.line {
				t.Errorf("line %d: %s; want line %d, %q", f.GetLine(), f.GetMessage(), tt.line, tt.want)
			}
		})
	}
}

const (
	twice = "  - {build: 26100, track: client, ubr: 8457, release_date: 2026-05-12, class: preview, source: s}\n"
	slip  = "  - {build: 26100, track: client, ubr: 8460, release_date: 2026-04-12, class: preview, source: s}\n"
)

func TestAnImportStandsAboveWhatIsShipped(t *testing.T) {
	base := mustParse(t, goodReferences)
	above := mustParse(t, `issued: 2026-11-21
as_of: 2026-11-20
sources: {s: {text: mine, read: 2026-11-20}}
distributions: [{id: b, version: "2", ends: 2027-01-01, source: s}]
vpn_clients: [{product: p, oldest: "2.0", source: s}]
windows_builds:
  - {build: 26100, track: client, ubr: 8457, release_date: 2026-05-12, class: oob, source: s}
  - {build: 26100, track: client, ubr: 9000, release_date: 2026-11-10, class: security, source: s}
`)
	r := above.Over(base)
	if got := r.Size(); got.GetDistributions() != 2 || got.GetVpnClients() != 1 || got.GetWindowsBuilds() != 2 || got.GetWindowsLifecycle() != 1 || got.GetRing() != 1 {
		t.Errorf("%v", got)
	}
	if v, _ := r.oldestClient("p"); v != "2.0" {
		t.Errorf("oldest client %q", v)
	}
	if rows := r.windows.updates[line{26100, trackClient}]; rows[0].class != classOOB || rows[0].kb != "" || rows[1].ubr != 9000 {
		t.Errorf("rows %v", rows)
	}
	if asOf, _ := r.WindowsAsOf(); asOf.Format(time.DateOnly) != "2026-11-20" {
		t.Errorf("as of %v", asOf)
	}
	if !r.Issued().Equal(above.Issued()) {
		t.Errorf("issued %v", r.Issued())
	}
	ring := mustParse(t, "issued: 2026-11-22\nring: [{build: 26200, track: client, ubr: 1, approved_on: 2026-11-22}]\n").Over(base)
	if ring.Size().GetRing() != 1 || ring.windows.ring[0].build != 26200 {
		t.Errorf("a ring is replaced as a whole: %v", ring.windows.ring)
	}
	if base.Size().GetWindowsBuilds() != 1 || base.windows.updates[line{26100, trackClient}][0].class != classSecurity {
		t.Error("the shipped values have changed")
	}
}

func TestDatesInTheFutureAreFound(t *testing.T) {
	r := mustParse(t, goodReferences)
	if err := r.CheckDates(noon); err != nil {
		t.Error(err)
	}
	for key, file := range map[string]string{
		"issued": strings.Replace(goodReferences, "issued: 2026-11-20", "issued: 2027-11-20", 1),
		"as_of":  strings.Replace(goodReferences, "as_of: 2026-11-13", "as_of: 2027-11-13", 1),
	} {
		if err := mustParse(t, file).CheckDates(noon); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// What is shipped is old on purpose, and says so; it must not be wrong.
func TestTheShippedTable(t *testing.T) {
	r := references(t)
	asOf, until := r.WindowsAsOf()
	if asOf.Format(time.DateOnly) != "2026-07-13" || !until.Equal(asOf.Add(35*day)) {
		t.Errorf("as of %v until %v", asOf, until)
	}
	size := r.Size()
	if size.GetWindowsBuilds() < 250 || size.GetWindowsLifecycle() < 30 || size.GetDistributions() < 12 || size.GetRing() != 0 {
		t.Errorf("%v", size)
	}
	for _, at := range []line{{19045, trackClient}, {22631, trackClient}, {26100, trackClient}, {26100, trackServer}, {26200, trackClient}, {20348, trackServer}} {
		rows := r.windows.updates[at]
		if len(rows) == 0 {
			t.Errorf("nothing of %v", at)
			continue
		}
		months := map[string]bool{}
		for _, row := range rows {
			if !row.class.secure() {
				continue
			}
			months[row.released.Format("2006-01")] = true
			if d := row.released; d.Weekday() != time.Tuesday || d.Day() < 8 || d.Day() > 14 {
				t.Errorf("%d.%d: the monthly security update of %s is from no second Tuesday", at.build, row.ubr, d.Format(time.DateOnly))
			}
		}
		for month := rows[0].released.AddDate(0, 1, 1-rows[0].released.Day()); month.Before(asOf.AddDate(0, 0, -13)); month = month.AddDate(0, 1, 0) {
			if !months[month.Format("2006-01")] {
				t.Errorf("%d %s: no security update of %s", at.build, at.track, month.Format("2006-01"))
			}
		}
	}
	if err := r.CheckDates(noon); err != nil {
		t.Error(err)
	}
}
