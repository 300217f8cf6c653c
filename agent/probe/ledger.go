package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/agent/durable"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// ErrLedgerDamaged is wrapped by a Ledger whose stored sightings make no sense
// and were set aside. The reading goes on with an empty one.
var ErrLedgerDamaged = errors.New("the ledger of first sightings was damaged")

// Sighting is when this notebook first saw a fix offered. apt has no dates of
// its own, so this is how long an update is known to be pending.
//
// Sightings are kept as a list in JSON. Later agents add keys and change none:
// each reads the files of the others, and lacks at most what is new.
type Sighting struct {
	Package      string    `json:"package"`
	Architecture string    `json:"architecture"`
	Version      string    `json:"version"`
	FirstSeen    time.Time `json:"first_seen"`

	// What follows only updates of Windows have.

	// UpdateIDs are those under which it was offered last; none when an older
	// agent wrote the sighting.
	UpdateIDs []string `json:"update_ids,omitempty"`
	// Revision of Windows, as installedRevision gives it, when it was offered
	// last; zero: not known.
	Revision uint64 `json:"revision,omitempty"`
	// Gone is since when it is no longer offered, with nothing in its place;
	// zero while it is offered.
	Gone time.Time `json:"gone,omitzero"`
}

func (s Sighting) key() sightingKey {
	return sightingKey{packageID{s.Package, s.Architecture}, s.Version}
}

// Ledger keeps sightings over restarts of the agent.
type Ledger interface {
	// Load returns what was saved last, nothing when nothing was. It wraps
	// ErrLedgerDamaged when that makes no sense any more.
	Load() ([]Sighting, error)
	// Save replaces what was saved.
	Save([]Sighting) error
}

// FileLedger is a Ledger in one JSON file.
type FileLedger struct {
	// Path of the file; its directory must exist.
	Path string
}

// Load reads the file. One that makes no sense is renamed to end in ".damaged".
func (l FileLedger) Load() ([]Sighting, error) {
	content, err := os.ReadFile(l.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	sightings, err := parseSightings(content)
	if err == nil {
		return sightings, nil
	}
	if err := os.Rename(l.Path, l.Path+".damaged"); err != nil {
		return nil, fmt.Errorf("setting the damaged ledger aside: %w", err)
	}
	return nil, fmt.Errorf("%w: %w", ErrLedgerDamaged, err)
}

func parseSightings(content []byte) ([]Sighting, error) {
	var sightings []Sighting
	if err := json.Unmarshal(content, &sightings); err != nil {
		return nil, err
	}
	for _, s := range sightings {
		if s.Package == "" || s.Architecture == "" || s.Version == "" || s.FirstSeen.IsZero() {
			return nil, errors.New("a sighting without package, architecture, version or time")
		}
	}
	return sightings, nil
}

// Save replaces the file, all or nothing.
func (l FileLedger) Save(sightings []Sighting) error {
	content, err := json.MarshalIndent(sightings, "", " ")
	if err != nil {
		return err
	}
	return durable.WriteFile(l.Path, content, 0o600)
}

// fixAges tells since when updates are pending. Without a ledger it remembers
// only while the agent runs. It is not safe for concurrent use.
type fixAges struct {
	ledger Ledger
	loaded bool
	seen   map[sightingKey]Sighting
}

type sightingKey struct {
	packageID
	version string
}

// date fills in first_seen_at of pending updates: when the oldest fix that is
// still missing was first seen, even if a newer one has taken its place since.
// A sighting is dropped only when its package is fixed or removed, so a source
// that is gone for a day changes nothing. Earliest is a moment that is over
// whatever the clock shows. The note says what went wrong with the ledger; ages
// then count from when the agent started.
func (a *fixAges) date(pending []*posturev1.PendingUpdate, db packageDatabase, now, earliest time.Time) (note string) {
	errLoad := a.load()
	changed := a.settle(now, earliest)
	now = later(now, earliest)
	for _, p := range pending {
		s := Sighting{Package: p.Package, Architecture: p.Architecture, Version: p.FixedVersion, FirstSeen: now}
		if _, ok := a.seen[s.key()]; !ok {
			a.seen[s.key()] = s
			changed = true
		}
	}
	oldest := map[packageID]time.Time{}
	for key, s := range a.seen {
		installed, ok := db.installed[key.packageID]
		if !ok || compareVersions(installed.version, key.version) >= 0 {
			delete(a.seen, key)
			changed = true
			continue
		}
		if t, ok := oldest[key.packageID]; !ok || s.FirstSeen.Before(t) {
			oldest[key.packageID] = s.FirstSeen
		}
	}
	for _, p := range pending {
		seen := oldest[packageID{p.Package, p.Architecture}]
		if seen.After(now) { // the clock was wrong then, or is now
			seen = now
		}
		p.FirstSeenAt = timestamppb.New(seen)
	}
	return a.keep(changed, errLoad)
}

// settle puts what a clock that was ahead has seen in the future to now, or it
// would stay new until then. A clock that shows a time before earliest, which
// is over, is not believed: it changes nothing.
func (a *fixAges) settle(now, earliest time.Time) (changed bool) {
	if earliest.After(now) {
		return false
	}
	for key, s := range a.seen {
		if !s.FirstSeen.After(now) && !s.Gone.After(now) {
			continue
		}
		s.FirstSeen = sooner(s.FirstSeen, now)
		s.Gone = sooner(s.Gone, now)
		a.seen[key] = s
		changed = true
	}
	return changed
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func sooner(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// keep saves what was changed and says what went wrong with the ledger.
func (a *fixAges) keep(changed bool, errLoad error) (note string) {
	var errSave error
	if changed && a.ledger != nil && a.loaded {
		errSave = a.ledger.Save(a.sightings())
	}
	if err := errors.Join(errLoad, errSave); err != nil {
		return "ages of updates count from the start of the agent: " + err.Error()
	}
	return ""
}

// load reads the ledger once. As long as it cannot be read it is not written
// either, so nothing in it is lost.
func (a *fixAges) load() error {
	if a.seen == nil {
		a.seen = map[sightingKey]Sighting{}
	}
	if a.loaded || a.ledger == nil {
		return nil
	}
	sightings, err := a.ledger.Load()
	if err != nil && !errors.Is(err, ErrLedgerDamaged) {
		return err
	}
	a.loaded = true
	for _, s := range sightings {
		if known, ok := a.seen[s.key()]; !ok || s.FirstSeen.Before(known.FirstSeen) {
			a.seen[s.key()] = s
		}
	}
	return err
}

func (a *fixAges) sightings() []Sighting {
	return slices.SortedFunc(maps.Values(a.seen), func(x, y Sighting) int {
		return strings.Compare(x.Package+" "+x.Architecture+" "+x.Version, y.Package+" "+y.Architecture+" "+y.Version)
	})
}
