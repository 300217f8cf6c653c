package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// aptListsDir is where apt keeps what it fetched from its sources.
const aptListsDir = "var/lib/apt/lists"

// aptReader reads what apt knows. A file that has not changed is not parsed
// again. It is not safe for concurrent use.
type aptReader struct {
	database fileCache[packageDatabase]
	releases fileCache[release]
	// indexes holds only entries of installed packages, so it is emptied when
	// the package database changes.
	indexes       fileCache[packagesIndex]
	databaseStamp fileStamp
}

// repository is one source as it was fetched.
type repository struct {
	release
	// prefix begins the names of its lists: "deb.debian.org_debian_dists_bookworm_".
	prefix   string
	security bool
}

// aptState is everything read of apt.
type aptState struct {
	database     packageDatabase
	changedAt    time.Time // of the package database
	repositories []repository
	offered      []offer
}

// offer is what one security repository offers.
type offer struct {
	origin string
	newest map[packageID]string
}

// read reads packages, repositories and security updates. With an error the
// parts that were read before it are still returned.
func (a *aptReader) read(ctx context.Context, files fs.FS, codenames []string) (aptState, error) {
	var state aptState
	stamp, err := stampOf(files, dpkgStatusFile)
	if err != nil {
		return state, err
	}
	if stamp != a.databaseStamp {
		a.indexes = fileCache[packagesIndex]{}
		a.databaseStamp = stamp
	}
	state.changedAt = stamp.modified
	state.database, err = a.database.get(files, dpkgStatusFile, func(r io.Reader) (packageDatabase, error) {
		return parseDpkgStatus(untilDone{ctx, r})
	})
	if err != nil {
		return state, err
	}
	lists, err := fs.ReadDir(files, aptListsDir)
	if err != nil {
		return state, err
	}
	names := make([]string, len(lists))
	for i, entry := range lists {
		names[i] = entry.Name()
	}
	there := func(name string) bool { return slices.Contains(names, path.Base(name)) }
	a.releases.keep(there)
	a.indexes.keep(there)
	if state.repositories, err = a.readRepositories(files, names, codenames); err != nil {
		return state, err
	}
	for _, repo := range state.repositories {
		if !repo.security {
			continue
		}
		if repo.date.IsZero() {
			return state, fmt.Errorf("%s: its InRelease has no date", repo.name())
		}
		offers, err := a.readOffers(ctx, files, names, repo, state.database)
		if err != nil {
			return state, err
		}
		state.offered = append(state.offered, offers...)
	}
	return state, nil
}

func (a *aptReader) readRepositories(files fs.FS, names, codenames []string) ([]repository, error) {
	var repos []repository
	for _, name := range names {
		prefix, ok := strings.CutSuffix(name, "InRelease")
		if !ok {
			prefix, ok = strings.CutSuffix(name, "Release")
		}
		if !ok || !strings.HasSuffix(prefix, "_") {
			continue
		}
		rel, err := a.releases.get(files, aptListsDir+"/"+name, parseRelease)
		if err != nil {
			return repos, err
		}
		repos = append(repos, repository{rel, prefix, rel.security(codenames)})
	}
	return repos, nil
}

// readOffers reads the indexes of a security repository: one per component and
// architecture. A repository of which not a single one was fetched for the
// native architecture offers nothing that could be compared.
func (a *aptReader) readOffers(ctx context.Context, files fs.FS, names []string, repo repository, db packageDatabase) ([]offer, error) {
	var offers []offer
	native := false
	for _, name := range names {
		rest, ok := strings.CutPrefix(name, repo.prefix)
		index, _, _ := strings.Cut(rest, ".")
		if !ok || !strings.Contains(index, "_binary-") || !strings.HasSuffix(index, "_Packages") {
			continue
		}
		signed, ok := repo.packages[index]
		if !ok {
			return nil, fmt.Errorf("%s: its InRelease does not name it", name)
		}
		found, err := a.indexes.get(files, aptListsDir+"/"+name, func(r io.Reader) (packagesIndex, error) {
			plain, err := decompress(name, untilDone{ctx, r})
			if err != nil {
				return packagesIndex{}, err
			}
			defer plain.Close()
			return parsePackagesIndex(plain, db)
		})
		if err != nil {
			return nil, err
		}
		// A list that ends early or is older than its InRelease would look
		// like fewer fixes.
		if found.sum != signed {
			return nil, fmt.Errorf("%s: its %d bytes are not the %d that its InRelease names", name, found.sum.size, signed.size)
		}
		native = native || strings.HasSuffix(index, "_binary-"+db.native+"_Packages")
		offers = append(offers, offer{repo.name(), found.newest})
	}
	if !native {
		return nil, fmt.Errorf("%s: no list of packages for %s was fetched", repo.name(), db.native)
	}
	return offers, nil
}

// pendingUpdates lists, by name, each installed package that is older than any
// version a security repository offers, with the newest such version. Whether
// another repository offers a newer one does not matter: a point release must
// not hide that a security fix is missing.
func pendingUpdates(state aptState, kernels []kernelImage) []*posturev1.PendingUpdate {
	pending := map[packageID]*posturev1.PendingUpdate{}
	for _, offer := range state.offered {
		for id, fixed := range offer.newest {
			installed, ok := state.database.installed[id]
			if !ok || compareVersions(installed.version, fixed) >= 0 {
				continue
			}
			if p := pending[id]; p != nil && compareVersions(p.FixedVersion, fixed) >= 0 {
				continue
			}
			pending[id] = &posturev1.PendingUpdate{
				Package: id.name, Architecture: id.architecture,
				InstalledVersion: installed.version, FixedVersion: fixed,
				Origin: offer.origin, Held: installed.held,
			}
		}
	}
	addKernelUpdate(pending, state.offered, kernels)
	list := make([]*posturev1.PendingUpdate, 0, len(pending))
	for _, p := range pending {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *posturev1.PendingUpdate) int {
		return cmp.Or(strings.Compare(a.Package, b.Package), strings.Compare(a.Architecture, b.Architecture))
	})
	return list
}

// feeds lists the repositories as they were last fetched.
func feeds(files fs.FS, repos []repository) []*posturev1.Feed {
	fetched := lastFetch(files)
	list := make([]*posturev1.Feed, 0, len(repos))
	for _, repo := range repos {
		feed := &posturev1.Feed{
			Origin: repo.name(), Codename: repo.codename, Security: repo.security,
			FetchedAt: fetched,
		}
		if !repo.date.IsZero() {
			feed.ReleasedAt = timestamppb.New(repo.date)
		}
		if !repo.validUntil.IsZero() {
			feed.ValidUntil = timestamppb.New(repo.validUntil)
		}
		list = append(list, feed)
	}
	return list
}

// lastFetch is when apt last fetched any list; nil when it does not say. The
// lists themselves carry the server's times, but each one passes through the
// directory partial, also when it turns out to be unchanged; a look-up that
// fails leaves no trace there.
func lastFetch(files fs.FS) *timestamppb.Timestamp {
	info, err := fs.Stat(files, aptListsDir+"/partial")
	if err != nil {
		return nil
	}
	return timestamppb.New(info.ModTime())
}

// securityFeed compares the sources that are configured with the lists that
// were fetched: a list whose source was removed is no feed any more, and a
// source of which nothing was ever fetched tells nothing.
func securityFeed(files fs.FS, repos []repository, codenames []string) (posturev1.Ternary, []*posturev1.Contradiction, error) {
	suites, err := aptSuites(files)
	if err != nil {
		return posturev1.Ternary_TERNARY_UNSPECIFIED, nil, fmt.Errorf("sources of apt: %w", err)
	}
	configured := posturev1.Ternary_TERNARY_NO
	var contradictions []*posturev1.Contradiction
	var errs []error
	fetched := func(suite string, repo repository) bool {
		return strings.HasSuffix(repo.prefix, "_dists_"+strings.ReplaceAll(strings.TrimRight(suite, "/"), "/", "_")+"_")
	}
	for _, repo := range repos {
		if !repo.security {
			continue
		}
		if slices.ContainsFunc(suites, func(suite string) bool { return fetched(suite, repo) }) {
			configured = posturev1.Ternary_TERNARY_YES
			continue
		}
		contradictions = append(contradictions, &posturev1.Contradiction{
			Subject: "patch.security_feed_configured",
			SourceA: "/" + aptListsDir, SaysA: "lists of " + repo.name() + " are there",
			SourceB: "/etc/apt/sources.list", SaysB: "no source for them",
		})
	}
	for _, suite := range suites {
		if !securitySuite(suite, codenames) {
			continue
		}
		configured = posturev1.Ternary_TERNARY_YES
		if !slices.ContainsFunc(repos, func(repo repository) bool { return fetched(suite, repo) }) {
			errs = append(errs, fmt.Errorf("security updates %s are configured and were never fetched", suite))
		}
	}
	return configured, contradictions, errors.Join(errs...)
}
