package probe

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Each month brings a cumulative update of its own number, which takes the
// place of the month's before. If each counted from when it was first offered,
// a Windows that is never updated would look a few weeks behind for ever. So an
// update inherits the age of what it supersedes and what is not installed.
//
// What is no longer offered was installed, or was replaced, withdrawn or paused;
// Windows does not say which. The sign to go by is its revision: every cumulative
// update of Windows raises it, and one that fails and is rolled back does not.
// LastInstallationSuccessDate is no such sign: definitions of the antivirus
// change it every day, so whoever installs nothing else would look young.
//
// In doubt an update is missing still, as what is unknown is never a pass. That
// can make older only what is pending now, and ends when it is installed. It is
// bounded where doubt is common, which is when an update goes and nothing takes
// its place: the time until a newer one supersedes it is not counted, as nothing
// could be installed, and after goneKept it is forgotten. So an update that was
// installed in time without a new revision (.NET) makes next month's no older,
// and one that Microsoft withdraws makes nobody late.

const (
	// A sighting names an update by its KB number alone: Microsoft changes an
	// update after its release, which must not make it young again.
	offeredArchitecture = "windows"
	offeredVersion      = "offered"

	// goneKept is how long what is no longer offered, with nothing in its
	// place, may still be superseded: longer than a server takes that declines
	// the old before it approves the new, shorter than from one monthly update
	// to the next.
	goneKept = 14 * 24 * time.Hour
)

// successor is what is pending under one KB number, which several updates may
// have, and what it takes the place of.
type successor struct {
	ids        []string
	supersedes []string
	// any says that it supersedes more than is known: in doubt everything.
	any bool
}

func successors(pending []*posturev1.PendingUpdate, offered []OfferedUpdate) map[string]*successor {
	all := map[string]*successor{}
	for _, p := range pending {
		all[p.Package] = &successor{}
	}
	for _, u := range offered {
		o := all[knowledgeBase(u.KBs)]
		if o == nil {
			continue
		}
		if id := updateID(u.ID); id != "" {
			o.ids = append(o.ids, id)
		}
		o.supersedes = append(o.supersedes, u.Supersedes...)
		o.any = o.any || u.SupersedesMore
	}
	for _, o := range all {
		slices.Sort(o.ids)
		o.ids = slices.Compact(o.ids)
	}
	return all
}

// replaces says whether it supersedes what was seen.
func (o *successor) replaces(s Sighting) bool {
	return o.any || slices.ContainsFunc(s.UpdateIDs, func(id string) bool { return slices.Contains(o.supersedes, id) })
}

// dateOffered fills in first_seen_at as date does, over the answer of a search
// that was made when Windows had this revision. What is offered for the first
// time inherits the age of what it replaces and of what that replaced, which
// inherited it before. The notebook may have been off for months meanwhile: the
// newest update lists those that it never saw.
func (a *fixAges) dateOffered(pending []*posturev1.PendingUpdate, answer *UpdateSearch, revision uint64, now time.Time) (note string) {
	if revision>>32 == 0 || uint32(revision) == 0 { // half of it could not be read
		revision = 0
	}
	errLoad := a.load()
	changed := a.settle(now, answer.LastSearch)
	at := later(now, answer.LastSearch) // a clock that is behind makes nothing old
	offered := successors(pending, answer.Pending)
	inherited, left := a.leave(offered, revision, at)
	changed = changed || left
	for kb, o := range offered {
		s := Sighting{Package: kb, Architecture: offeredArchitecture, Version: offeredVersion, FirstSeen: at}
		known, ok := a.seen[s.key()]
		switch {
		case ok && known.Gone.IsZero():
			s = known
		case ok && known.missing(revision, at): // offered again
			s = known
			s.FirstSeen, s.Gone = known.resumed(at), time.Time{}
		}
		if first, ok := inherited[kb]; ok {
			s.FirstSeen = sooner(s.FirstSeen, first)
		}
		if len(o.ids) > 0 {
			s.UpdateIDs = o.ids
		}
		if revision != 0 {
			s.Revision = revision
		}
		if !ok || !s.equal(known) {
			a.seen[s.key()] = s
			changed = true
		}
	}
	for _, p := range pending {
		key := sightingKey{packageID{p.Package, offeredArchitecture}, offeredVersion}
		p.FirstSeenAt = timestamppb.New(sooner(a.seen[key].FirstSeen, now))
	}
	return a.keep(changed, errLoad)
}

// leave goes through what is no longer offered: since when is what now has its
// place missing, and is it forgotten.
func (a *fixAges) leave(offered map[string]*successor, revision uint64, at time.Time) (inherited map[string]time.Time, changed bool) {
	inherited = map[string]time.Time{}
	for key, s := range a.seen {
		if offered[s.Package] != nil {
			continue
		}
		replaced := false
		if s.missing(revision, at) {
			for kb, o := range offered {
				if !o.replaces(s) {
					continue
				}
				first, ok := inherited[kb]
				if !ok {
					first = s.resumed(at)
				}
				inherited[kb] = sooner(first, s.resumed(at))
				replaced = true
			}
		}
		switch {
		case replaced || !s.missing(revision, at):
			delete(a.seen, key)
			changed = true
		case s.Gone.IsZero():
			s.Gone = at
			a.seen[key] = s
			changed = true
		}
	}
	return inherited, changed
}

// missing says whether what was offered at this sighting is to be taken for not
// installed. What an unknown revision would tell is not known.
func (s Sighting) missing(revision uint64, at time.Time) bool {
	if s.Revision != 0 && revision > s.Revision {
		return false
	}
	return s.Gone.IsZero() || at.Sub(s.Gone) < goneKept
}

// resumed is since when it would be offered now if it had not been gone.
func (s Sighting) resumed(at time.Time) time.Time {
	if s.Gone.IsZero() {
		return s.FirstSeen
	}
	return sooner(at, s.FirstSeen.Add(max(0, at.Sub(s.Gone))))
}

func (s Sighting) equal(other Sighting) bool {
	return s.key() == other.key() && s.FirstSeen.Equal(other.FirstSeen) && s.Gone.Equal(other.Gone) &&
		s.Revision == other.Revision && slices.Equal(s.UpdateIDs, other.UpdateIDs)
}

// updateID is an UpdateID in the form in which they are compared; empty for
// what is none.
func updateID(text string) string {
	id := strings.ToLower(strings.Trim(strings.TrimSpace(text), "{}"))
	if !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(id) {
		return ""
	}
	return id
}

// supersededIDs reads a collection of UpdateIDs up to a limit. More says that it
// holds more than is told: those above the limit, those that cannot be read, or
// a number of items that is not known, which is negative.
func supersededIDs(count, limit int32, item func(int32) (string, error)) (ids []string, more bool) {
	for i := range min(count, limit) {
		text, err := item(i)
		id := updateID(text)
		if err != nil || id == "" {
			more = true
			continue
		}
		ids = append(ids, id)
	}
	return ids, more || count < 0 || count > limit
}
