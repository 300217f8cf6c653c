package appraisal

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// clockTolerance is how far ahead a notebook's clock may be of the collector's.
const clockTolerance = day

// windowsUpdate is the package system of Windows.
const windowsUpdate = "windows-update"

// offeredAt is since when the notebook has been offered an update: when it saw
// it first, or else when the update was released, which is never later.
func offeredAt(u *posturev1.PendingUpdate) *timestamppb.Timestamp {
	if u.GetFirstSeenAt() != nil {
		return u.GetFirstSeenAt()
	}
	return u.GetReleasedAt()
}

// daysPending is for how many full days at least the notebook has been offered
// an update.
func daysPending(u *posturev1.PendingUpdate, now time.Time) (int, error) {
	if offeredAt(u) == nil {
		return 0, cannotTell(
			fmt.Sprintf("Seit wann das Sicherheitsupdate für %s angeboten wird, ist nicht feststellbar.", short(u.GetPackage())),
			fmt.Sprintf("It is unknown since when the security update of %s has been offered.", short(u.GetPackage())))
	}
	pending := now.Sub(offeredAt(u).AsTime())
	if pending < -clockTolerance {
		return 0, cannotTell("Die Uhr des Geräts geht mehr als einen Tag vor.", "The clock of the device is more than a day fast.")
	}
	return int(max(pending, 0) / day), nil
}

// longestPending is how many full days the longest of the pending security
// updates has been offered, zero when none is pending. It cannot tell when not
// every pending update is listed, or when the package database is empty.
func longestPending(p *posturev1.Patch, now time.Time) (int, error) {
	if err := listedInFull(p); err != nil {
		return 0, err
	}
	longest := 0
	for _, u := range p.GetPending() {
		n, err := daysPending(u, now)
		if err != nil {
			return 0, err
		}
		longest = max(longest, n)
	}
	return longest, nil
}

func listedInFull(p *posturev1.Patch) error {
	switch listed := len(p.GetPending()); {
	case p.GetInstalledPackages() == 0 && p.GetPackageSystem() != windowsUpdate:
		return cannotTell("Das Gerät meldet, dass kein einziges Paket installiert ist; die Paketdatenbank wurde also nicht gelesen.",
			"The device reports not a single installed package, so its package database was not read.")
	case uint64(listed) != uint64(p.GetPendingSecurity()):
		return cannotTell(
			fmt.Sprintf("Von %d ausstehenden Sicherheitsupdates sind %d einzeln aufgeführt.", p.GetPendingSecurity(), listed),
			fmt.Sprintf("Of %d pending security updates %d are listed.", p.GetPendingSecurity(), listed))
	}
	return nil
}

// oldestFirstSeen is when the longest pending update was first offered.
func oldestFirstSeen(p *posturev1.Patch) (time.Time, error) {
	return pickFirstSeen(p, time.Time.Before)
}

// newestFirstSeen is when the latest pending update was first offered.
func newestFirstSeen(p *posturev1.Patch) (time.Time, error) {
	return pickFirstSeen(p, time.Time.After)
}

func pickFirstSeen(p *posturev1.Patch, better func(a, b time.Time) bool) (time.Time, error) {
	if err := listedInFull(p); err != nil {
		return time.Time{}, err
	}
	var picked time.Time
	for _, u := range p.GetPending() {
		if offeredAt(u) == nil {
			_, err := daysPending(u, time.Time{})
			return time.Time{}, err
		}
		if at := offeredAt(u).AsTime(); picked.IsZero() || better(at, picked) {
			picked = at
		}
	}
	if picked.IsZero() {
		return picked, cannotTell("Es steht kein Sicherheitsupdate aus.", "No security update is pending.")
	}
	return picked, nil
}

// feedFresh says whether the notebook fetched a source of updates within limit,
// and whether what it fetched is still valid. A source that names no end of
// validity has to be released within four times the limit: a mirror that stands
// still can be fetched every day.
func feedFresh(f *posturev1.Feed, now time.Time, limit time.Duration) (bool, error) {
	if f.GetReleasedAt() == nil || f.GetFetchedAt() == nil {
		return false, cannotTell(
			fmt.Sprintf("Der Stand der Updatequelle %s ist nicht feststellbar.", short(f.GetOrigin())),
			fmt.Sprintf("The age of the update source %s is unknown.", short(f.GetOrigin())))
	}
	if f.GetFetchedAt().AsTime().Sub(now) > clockTolerance {
		return false, cannotTell("Die Uhr des Geräts geht mehr als einen Tag vor.", "The clock of the device is more than a day fast.")
	}
	if now.Sub(f.GetFetchedAt().AsTime()) > limit {
		return false, nil
	}
	if f.GetValidUntil() != nil {
		return now.Before(f.GetValidUntil().AsTime()), nil
	}
	return now.Sub(f.GetReleasedAt().AsTime()) <= 4*limit, nil
}

// securityFeedsFresh says whether every source of security updates is fresh. It
// cannot tell when none is listed.
func securityFeedsFresh(p *posturev1.Patch, now time.Time, limit time.Duration) (bool, error) {
	any, fresh := false, true
	var unknown error
	for _, f := range p.GetFeeds() {
		if !f.GetSecurity() {
			continue
		}
		any = true
		is, err := feedFresh(f, now, limit)
		if err != nil {
			unknown = err
			continue
		}
		fresh = fresh && is
	}
	switch {
	case !any:
		return false, cannotTell("Das Gerät führt keine Quelle für Sicherheitsupdates auf.", "The device lists no source of security updates.")
	case !fresh:
		return false, nil
	}
	return unknown == nil, unknown
}

// searchedWithin says whether Windows has looked for updates, without an error,
// within limit. It cannot tell when the notebook does not say when it did.
func searchedWithin(p *posturev1.Patch, now time.Time, limit time.Duration) (bool, error) {
	at := p.GetWindowsUpdate().GetLastSearchAt()
	switch {
	case at == nil:
		return false, cannotTell("Wann Windows zuletzt nach Updates gesucht hat, ist nicht feststellbar.",
			"It is unknown when Windows last looked for updates.")
	case at.AsTime().Sub(now) > clockTolerance:
		return false, cannotTell("Die Uhr des Geräts geht mehr als einen Tag vor.", "The clock of the device is more than a day fast.")
	}
	return now.Sub(at.AsTime()) <= limit, nil
}

// updateSource is where Windows gets its updates, as policies write it. It
// cannot tell when the notebook does not say.
func updateSource(p *posturev1.Patch) (string, error) {
	switch p.GetWindowsUpdate().GetSource() {
	case posturev1.UpdateSource_UPDATE_SOURCE_WSUS:
		return "wsus", nil
	case posturev1.UpdateSource_UPDATE_SOURCE_WINDOWS_UPDATE_FOR_BUSINESS:
		return "windows-update-for-business", nil
	case posturev1.UpdateSource_UPDATE_SOURCE_MICROSOFT:
		return "microsoft", nil
	}
	return "", cannotTell("Woher Windows seine Updates bezieht, ist nicht feststellbar.", "It is unknown where Windows gets its updates.")
}
