package appraisal

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// track is a line of updates with revisions of its own. Builds alone do not
// tell: Windows 11 24H2 and Server 2025 are both 26100, and count apart.
type track string

const (
	trackClient   track = "client"
	trackServer   track = "server"
	trackHotpatch track = "hotpatch"
	trackLTSC     track = "ltsc"
)

// class is what kind of release an update is.
type class string

const (
	classSecurity    class = "security"     // the monthly one
	classPreview     class = "preview"      // optional, without security fixes of its own
	classOOB         class = "oob"          // out of band, repairs something else
	classOOBSecurity class = "oob-security" // out of band, closes a hole
)

// secure says whether the update closes holes, so that not having it exposes.
func (c class) secure() bool { return c == classSecurity || c == classOOBSecurity }

// line is one build on one track.
type line struct {
	build uint32
	track track
}

// windowsUpdateRow is one update of Windows.
type windowsUpdateRow struct {
	ubr      uint32
	released time.Time // start of the day, UTC
	kb       string
	class    class
}

// edition is one edition of one build; empty: every edition that no row names.
type edition struct {
	build uint32
	name  string
}

// windowsSupport is until when a build is supported, each day included.
// extended is zero when no extended support is sold.
type windowsSupport struct{ last, extended time.Time }

// ringRow is a build that the provider has approved. Without groups it is for
// everybody whom no other row of the line names.
type ringRow struct {
	line
	ubr      uint32
	approved time.Time
	groups   []string
}

// windowsTable is what is known of Windows' updates and of their support.
type windowsTable struct {
	// asOf is the last day for which the table is complete; zero: no table.
	asOf time.Time
	// updates are sorted by ubr.
	updates   map[line][]windowsUpdateRow
	lifecycle map[edition]windowsSupport
	ring      []ringRow
}

func newWindowsTable() windowsTable {
	return windowsTable{updates: map[line][]windowsUpdateRow{}, lifecycle: map[edition]windowsSupport{}}
}

// tracks and classes are the words of the file.
func tracks() map[string]track {
	return map[string]track{"client": trackClient, "server": trackServer, "hotpatch": trackHotpatch, "ltsc": trackLTSC}
}

func classes() map[string]class {
	return map[string]class{"security": classSecurity, "preview": classPreview, "oob": classOOB, "oob-security": classOOBSecurity}
}

func (r *referenceReader) build(n *yaml.Node) {
	var at line
	var row windowsUpdateRow
	r.mapping(n, map[string]func(*yaml.Node){
		"build":        func(v *yaml.Node) { at.build = r.number(v) },
		"track":        func(v *yaml.Node) { at.track = choice(r.document, v, tracks()) },
		"ubr":          func(v *yaml.Node) { row.ubr = r.number(v) },
		"release_date": func(v *yaml.Node) { row.released = r.date(v) },
		"kb": func(v *yaml.Node) {
			if row.kb = r.text(v, 16); !strings.HasPrefix(row.kb, "KB") {
				r.fail(v, "a number such as \"KB5089549\" is expected here")
			}
		},
		"class":  func(v *yaml.Node) { row.class = choice(r.document, v, classes()) },
		"source": r.source,
	}, "build", "track", "ubr", "release_date", "class", "source")
	rows := r.refs.windows.updates[at]
	if slices.ContainsFunc(rows, func(other windowsUpdateRow) bool { return other.ubr == row.ubr }) {
		r.fail(n, "%d.%d stands here twice on the track %s", at.build, row.ubr, at.track)
		return
	}
	r.refs.windows.updates[at] = append(rows, row)
	r.builds = append(r.builds, placed[time.Time]{n, row.released})
}

func (r *referenceReader) lifecycle(n *yaml.Node) {
	var build uint32
	var names []string
	var s windowsSupport
	r.mapping(n, map[string]func(*yaml.Node){
		"build":    func(v *yaml.Node) { build = r.number(v) },
		"editions": func(v *yaml.Node) { names = r.texts(v) },
		"last_day": func(v *yaml.Node) { s.last = r.date(v) },
		"extended_last_day": func(v *yaml.Node) {
			if s.extended = r.date(v); s.extended.Before(s.last) {
				r.fail(v, "extended support ends before support does")
			}
		},
		"source": r.source,
	}, "build", "last_day", "source")
	if names == nil {
		names = []string{""}
	}
	for _, name := range names {
		key := edition{build, name}
		if _, taken := r.refs.windows.lifecycle[key]; taken {
			r.fail(n, "build %d stands here twice for the edition %q", build, name)
		}
		r.refs.windows.lifecycle[key] = s
	}
}

func (r *referenceReader) ring(n *yaml.Node) {
	var row ringRow
	r.mapping(n, map[string]func(*yaml.Node){
		"build":       func(v *yaml.Node) { row.build = r.number(v) },
		"track":       func(v *yaml.Node) { row.track = choice(r.document, v, tracks()) },
		"ubr":         func(v *yaml.Node) { row.ubr = r.number(v) },
		"approved_on": func(v *yaml.Node) { row.approved = r.date(v) },
		"groups":      func(v *yaml.Node) { row.groups = r.texts(v) },
	}, "build", "track", "ubr", "approved_on")
	for _, other := range r.refs.windows.ring {
		if other.line != row.line {
			continue
		}
		if len(row.groups) == 0 && len(other.groups) == 0 {
			r.fail(n, "build %d, track %s stands here twice for everybody", row.build, row.track)
		}
		for _, g := range row.groups {
			if slices.Contains(other.groups, g) {
				r.fail(n, "build %d, track %s stands here twice for the group %q", row.build, row.track, g)
			}
		}
	}
	r.refs.windows.ring = append(r.refs.windows.ring, row)
}

// sorted puts the updates of every line in order, and checks that later ones
// have higher revisions: a slip of a digit would judge a fleet wrongly.
func (t *windowsTable) sorted() error {
	lines := slices.SortedFunc(maps.Keys(t.updates), func(a, b line) int {
		return cmp.Or(cmp.Compare(a.build, b.build), cmp.Compare(a.track, b.track))
	})
	for _, at := range lines {
		rows := t.updates[at]
		slices.SortFunc(rows, func(a, b windowsUpdateRow) int { return cmp.Compare(a.ubr, b.ubr) })
		for i := 1; i < len(rows); i++ {
			if rows[i].released.Before(rows[i-1].released) {
				return fmt.Errorf("%d.%d (%s) was released before %d.%d: one of the dates is wrong",
					at.build, rows[i].ubr, at.track, at.build, rows[i-1].ubr)
			}
		}
	}
	return nil
}

// over returns the table with what above says put over it, row by row.
func (t windowsTable) over(above windowsTable) windowsTable {
	merged := newWindowsTable()
	merged.asOf = t.asOf
	if above.asOf.After(merged.asOf) {
		merged.asOf = above.asOf
	}
	for _, from := range []windowsTable{t, above} {
		for at, rows := range from.updates {
			for _, row := range rows {
				merged.updates[at] = append(slices.DeleteFunc(merged.updates[at],
					func(other windowsUpdateRow) bool { return other.ubr == row.ubr }), row)
			}
		}
		maps.Copy(merged.lifecycle, from.lifecycle)
	}
	merged.ring = above.ring
	if len(above.ring) == 0 {
		merged.ring = t.ring
	}
	return merged
}
