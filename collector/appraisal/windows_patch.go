package appraisal

import (
	"fmt"
	"slices"
	"strings"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// tableUsable is for how long after its last complete day a table of updates
// says anything: a month and a few days, because updates come monthly.
const tableUsable = 35 * day

// leastStep is how far beyond the newest revision that a table has of a line
// another is believed at least: monthly updates are some hundreds apart. What is
// farther away than that, and than the table is long, belongs to another line:
// servers of build 26100 count from 32,000 on, clients from 1,700.
const leastStep = 1000

// position is where a Windows installation stands in the table of updates.
type position struct {
	line
	ubr uint32
	// at is the installed update itself, nil when the table does not have it:
	// then its place is interpolated between before and after. before is nil
	// when the table begins later, after when it ends earlier.
	at, before, after *windowsUpdateRow
	// secured is the newest update with security fixes that is installed, exposed
	// the oldest that is not; nil when the table has none.
	secured, exposed *windowsUpdateRow
}

// trackOf finds the track of an installation: which one it is depends on what
// was installed and how it is updated, never on the build alone.
func (t *windowsTable) trackOf(p *posturev1.Platform) (line, error) {
	w := p.GetWindows()
	at := line{build: w.GetBuild()}
	kind := w.GetInstallationType()
	switch {
	case p.GetOperatingSystem() != posturev1.OperatingSystem_OPERATING_SYSTEM_WINDOWS:
		return at, cannotTell("Das Gerät läuft nicht mit Windows.", "The device does not run Windows.")
	case w.GetBuild() == 0 || w.GetUbr() == 0:
		return at, cannotTell("Der Build von Windows ist nicht feststellbar.", "The build of Windows is unknown.")
	case strings.HasPrefix(kind, "Server"):
		at.track = trackServer
	case kind == "Client":
		at.track = trackClient
	default:
		return at, cannotTell(fmt.Sprintf("Die Installationsart von Windows („%s“) ist nicht bekannt.", short(kind)),
			fmt.Sprintf("The installation type of Windows (%q) is not known.", short(kind)))
	}
	_, hotpatches := t.updates[line{at.build, trackHotpatch}]
	switch {
	case w.GetHotpatch() == posturev1.Ternary_TERNARY_YES && at.track == trackServer:
		// Hotpatches for servers count apart from those for clients.
		return at, cannotTell("Für Server, die Hotpatches erhalten, liegt keine Tabelle vor.", "There is no table for servers that take hotpatches.")
	case w.GetHotpatch() == posturev1.Ternary_TERNARY_YES:
		at.track = trackHotpatch
	case w.GetHotpatch() == posturev1.Ternary_TERNARY_UNSPECIFIED && at.track == trackClient && hotpatches:
		return at, cannotTell("Ob das Gerät Hotpatches erhält, ist nicht feststellbar; für diesen Build macht das einen Unterschied.",
			"It is unknown whether the device takes hotpatches, which makes a difference on this build.")
	case at.track == trackClient && isLTSC(p.GetEdition()):
		// LTSC takes the same cumulative updates, unless the table says otherwise.
		if _, own := t.updates[line{at.build, trackLTSC}]; own {
			at.track = trackLTSC
		}
	}
	return at, nil
}

// isLTSC knows the editions of the long-term servicing channel: EnterpriseS,
// EnterpriseSN, IoTEnterpriseS.
func isLTSC(edition string) bool {
	return strings.HasSuffix(strings.TrimSuffix(edition, "N"), "EnterpriseS")
}

// usable says whether the table may be relied on.
func (t *windowsTable) usable(now time.Time) error {
	switch {
	case t.asOf.IsZero():
		return cannotTell("Es liegt keine Tabelle der Windows-Updates vor.", "There is no table of Windows updates.")
	case now.Sub(t.asOf) > tableUsable:
		return cannotTell(
			fmt.Sprintf("Die Tabelle der Windows-Updates reicht nur bis zum %s und ist damit zu alt.", dateDE(t.asOf)),
			fmt.Sprintf("The table of Windows updates ends on %s and is too old.", dateEN(t.asOf)))
	}
	return nil
}

// locate finds where an installation stands. It cannot tell when the table is
// too old, does not know the build on its track, or ends far before.
func (r *References) locate(p *posturev1.Platform, now time.Time) (position, error) {
	t := r.windowsTable()
	if err := t.usable(now); err != nil {
		return position{}, err
	}
	at, err := t.trackOf(p)
	if err != nil {
		return position{}, err
	}
	rows := t.updates[at]
	if len(rows) == 0 {
		return position{}, cannotTell(
			fmt.Sprintf("Zu Windows-Build %d (%s) liegen keine Referenzwerte vor.", at.build, at.track),
			fmt.Sprintf("There are no reference values for Windows build %d (%s).", at.build, at.track))
	}
	pos := find(rows, at, p.GetWindows().GetUbr())
	if last := rows[len(rows)-1].ubr; pos.ubr > last && pos.ubr-last > max(last-rows[0].ubr, leastStep) {
		return position{}, cannotTell(
			fmt.Sprintf("Windows-Build %d.%d liegt weit jenseits der Tabelle der Windows-Updates (%s).", at.build, pos.ubr, at.track),
			fmt.Sprintf("Windows build %d.%d is far beyond the table of Windows updates (%s).", at.build, pos.ubr, at.track))
	}
	return pos, nil
}

// find brackets a revision in the rows of its line, which are sorted.
func find(rows []windowsUpdateRow, at line, ubr uint32) position {
	pos := position{line: at, ubr: ubr}
	for i := range rows {
		row := &rows[i]
		if row.ubr <= ubr && row.class.secure() {
			pos.secured = row
		}
		switch {
		case row.ubr == ubr:
			pos.at = row
		case row.ubr < ubr:
			pos.before = row
		default:
			if pos.after == nil {
				pos.after = row
			}
			if row.class.secure() && (pos.exposed == nil || row.released.Before(pos.exposed.released)) {
				pos.exposed = row
			}
		}
	}
	return pos
}

// exposureDays is for how many full days an update with security fixes has been
// out that is not installed: today − min(release date of the security updates
// that are newer on the build and track), 0 when there is none. It cannot tell
// when the table leaves out months in which one came.
func exposureDays(p *posturev1.Platform, r *References, now time.Time) (int, error) {
	pos, err := r.locate(p, now)
	if err == nil {
		err = pos.gap(r.windowsTable().asOf)
	}
	if err != nil || pos.exposed == nil {
		return 0, err
	}
	return daysSince(pos.exposed.released, now), nil
}

// gap finds that the table has nothing of the line for more than a month after
// what is installed: a file that adds one update, or one build, speaks for all
// lines by its as_of.
func (pos position) gap(asOf time.Time) error {
	next := asOf
	if pos.exposed != nil {
		next = pos.exposed.released
	}
	if pos.secured == nil || next.Sub(pos.secured.released) <= tableUsable {
		return nil
	}
	from := pos.secured.released
	return cannotTell(
		fmt.Sprintf("Die Tabelle der Windows-Updates hat für Build %d (%s) zwischen dem %s und dem %s eine Lücke.", pos.build, pos.track, dateDE(from), dateDE(next)),
		fmt.Sprintf("The table of Windows updates has a gap for build %d (%s) between %s and %s.", pos.build, pos.track, dateEN(from), dateEN(next)))
}

// contentAge is how many full days ago the installed update was released. Of
// one that the table does not have, the neighbour before it counts: it may be
// newer, never older. It cannot tell when the table begins later.
func contentAge(p *posturev1.Platform, r *References, now time.Time) (int, error) {
	pos, err := r.locate(p, now)
	if err != nil {
		return 0, err
	}
	row := pos.at
	if row == nil {
		row = pos.before
	}
	if row == nil {
		return 0, cannotTell(
			fmt.Sprintf("Windows-Build %d.%d ist älter als die Tabelle der Windows-Updates.", pos.build, pos.ubr),
			fmt.Sprintf("Windows build %d.%d is older than the table of Windows updates.", pos.build, pos.ubr))
	}
	return daysSince(row.released, now), nil
}

// daysSince is how many full days lie between the start of a day and now.
func daysSince(date, now time.Time) int { return int(max(now.Sub(date), 0) / day) }

// patchPlace is where an installation stands, in words for the reason of a
// finding: "26100.8500, nicht in der Tabelle: zwischen .8457 vom 12.05.2026 und
// .8524 vom 26.05.2026".
func patchPlace(p *posturev1.Platform, r *References, now time.Time, lang string) (string, error) {
	pos, err := r.locate(p, now)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("%d.%d", pos.build, pos.ubr)
	if pos.track != trackClient {
		name += " " + string(pos.track)
	}
	w := englishPlaces
	if lang == "de" {
		w = germanPlaces
	}
	return name + ", " + pos.words(w), nil
}

// placeWords are formats for revision and date of rows, in one language.
type placeWords struct {
	exact, between, before, after string
	date                          func(time.Time) string
}

var (
	germanPlaces = placeWords{
		"vom %s", "nicht in der Tabelle: zwischen .%d vom %s und .%d vom %s",
		"nicht in der Tabelle: vor .%d vom %s", "nicht in der Tabelle: nach .%d vom %s", dateDE,
	}
	englishPlaces = placeWords{
		"of %s", "not in the table: between .%d of %s and .%d of %s",
		"not in the table: before .%d of %s", "not in the table: after .%d of %s", dateEN,
	}
)

func (pos position) words(w placeWords) string {
	switch {
	case pos.at != nil:
		return strings.TrimSuffix(fmt.Sprintf(w.exact, w.date(pos.at.released))+", "+pos.at.kb, ", ")
	case pos.before != nil && pos.after != nil:
		return fmt.Sprintf(w.between, pos.before.ubr, w.date(pos.before.released), pos.after.ubr, w.date(pos.after.released))
	case pos.after != nil:
		return fmt.Sprintf(w.before, pos.after.ubr, w.date(pos.after.released))
	}
	return fmt.Sprintf(w.after, pos.before.ubr, w.date(pos.before.released))
}

// ringDays is for how many full days the installation has been behind the build
// that the provider approved for it; 0 when it is not behind. It cannot tell
// when the provider has approved nothing for the build and track.
func ringDays(p *posturev1.Platform, r *References, groups []string, now time.Time) (int, error) {
	t := r.windowsTable()
	at, err := t.trackOf(p)
	if err != nil {
		return 0, err
	}
	row := t.approved(at, groups)
	switch {
	case row == nil:
		return 0, cannotTell(
			fmt.Sprintf("Für Windows-Build %d (%s) ist kein freigegebener Stand hinterlegt.", at.build, at.track),
			fmt.Sprintf("No approved level is on record for Windows build %d (%s).", at.build, at.track))
	case p.GetWindows().GetUbr() >= row.ubr:
		return 0, nil
	}
	return max(daysSince(row.approved, now), 1), nil
}

// approved is the row of the ring for a line: the first of the file that names
// a group of the asset, else the one without groups; nil when there is none.
func (t *windowsTable) approved(at line, groups []string) *ringRow {
	var all *ringRow
	for i := range t.ring {
		row := &t.ring[i]
		switch {
		case row.line != at:
		case len(row.groups) == 0:
			all = row
		case slices.ContainsFunc(row.groups, func(g string) bool { return slices.Contains(groups, g) }):
			return row
		}
	}
	return all
}

// endOfWindows is the first moment without support. Extended support counts
// only when the notebook proves that it has it.
func (r *References) endOfWindows(p *posturev1.Platform) (time.Time, error) {
	w := p.GetWindows()
	t := r.windowsTable()
	s, ok := t.lifecycle[edition{w.GetBuild(), p.GetEdition()}]
	if !ok {
		s, ok = t.lifecycle[edition{build: w.GetBuild()}]
	}
	if !ok {
		name := short(fmt.Sprintf("Windows %s %s, Build %d", p.GetVersion(), p.GetEdition(), w.GetBuild()))
		return time.Time{}, cannotTell(
			fmt.Sprintf("Für das Betriebssystem „%s“ ist kein Ende der Unterstützung hinterlegt.", name),
			fmt.Sprintf("No end of support is on record for the operating system %q.", name))
	}
	last := s.last
	if w.GetExtendedSupport() == posturev1.Ternary_TERNARY_YES && s.extended.After(last) {
		last = s.extended
	}
	return last.Add(day), nil
}

func dateDE(t time.Time) string { return t.UTC().Format("02.01.2006") }
func dateEN(t time.Time) string { return t.UTC().Format("2 January 2006") }
