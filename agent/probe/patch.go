package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// patchProbe reads which security updates are known and not installed. The
// ledger keeps since when; nil remembers it only while the agent runs.
func patchProbe(ledger Ledger, searches *UpdateSearches) Probe {
	if searches == nil {
		searches = NewUpdateSearches("")
	}
	p := &patch{ages: fixAges{ledger: ledger}, search: searches}
	return Probe{Section: "patch", Timeout: 30*time.Second + searches.Patience, Collect: p.collect}
}

type patch struct {
	mu     sync.Mutex
	apt    aptReader
	ages   fixAges
	search *UpdateSearches
}

func (p *patch) collect(ctx context.Context, h Host, ev *posturev1.Evidence) error {
	p.mu.Lock()
	defer p.mu.Unlock()

	out := &posturev1.Patch{Reading: &posturev1.Reading{}}
	ev.Patch = out
	if h.Windows != nil {
		return p.collectWindows(ctx, h, out)
	}
	if h.Files == nil {
		return errors.New("this machine's files are not readable")
	}
	release, _, err := readOSRelease(h.Files)
	if err != nil {
		return err
	}
	out.PackageSystem = packageSystem(h.Files, release)
	switch out.PackageSystem {
	case "apt":
		return p.collectAPT(ctx, h, release.codenames(), out)
	case "":
		return fmt.Errorf("the package system of %s is not known", release["ID"])
	default:
		return fmt.Errorf("updates of %s cannot be read by this version of the agent", out.PackageSystem)
	}
}

// packageSystem tells what keeps the system up to date: first by what the
// distribution is, since a foreign package tool may be installed as well.
func packageSystem(files fs.FS, release osRelease) string {
	switch {
	case release.like("debian", "ubuntu"):
		return "apt"
	case release.like("fedora", "rhel"):
		return "dnf"
	case release.like("suse", "opensuse"):
		return "zypper"
	}
	for _, known := range []struct{ database, system string }{
		{dpkgStatusFile, "apt"},
		{"usr/lib/sysimage/rpm", "dnf"},
		{"var/lib/rpm", "dnf"},
		{"var/lib/pacman", "pacman"},
		{"lib/apk/db", "apk"},
	} {
		if _, err := fs.Stat(files, known.database); err == nil {
			return known.system
		}
	}
	return ""
}

func (p *patch) collectAPT(ctx context.Context, h Host, codenames []string, out *posturev1.Patch) error {
	out.Reading.Source = "/" + aptListsDir
	if len(codenames) == 0 {
		return errors.New("os-release names no codename: which repository brings security updates cannot be told")
	}
	state, errRead := p.apt.read(ctx, h.Files, codenames)
	out.InstalledPackages = uint32(len(state.database.installed))
	out.Feeds = feeds(h.Files, state.repositories)
	if !state.changedAt.IsZero() {
		out.LastInstalledAt = timestamppb.New(state.changedAt)
	}
	images := installedKernels(h.Files, state.database)
	collectKernel(ctx, h, images, state.changedAt, out)

	var errFeed error
	var contradictions []*posturev1.Contradiction
	out.SecurityFeedConfigured, contradictions, errFeed = securityFeed(h.Files, state.repositories, codenames)
	out.Contradictions = append(out.Contradictions, contradictions...)
	if len(state.database.installed) == 0 {
		return errRead
	}
	// After an error this is less than there is: the reading says so.
	pending := pendingUpdates(state, images)
	out.Reading.Reason = p.ages.date(pending, state.database, h.Now(), newestIndex(state.repositories))
	out.PendingSecurity = uint32(len(pending))
	for _, update := range pending {
		if update.Held {
			out.Held++
		}
	}
	out.Pending = slices.Clip(pending[:min(len(pending), posture.MaxListedUpdates)])
	return errors.Join(errRead, errFeed)
}

// newestIndex is when the newest index of security updates was signed: a clock
// that shows an earlier time is behind, or an update would seem pending for
// decades.
func newestIndex(repos []repository) (newest time.Time) {
	for _, repo := range repos {
		if repo.security {
			newest = later(newest, repo.date)
		}
	}
	return newest
}

func collectKernel(ctx context.Context, h Host, images []kernelImage, changedAt time.Time, out *posturev1.Patch) {
	kernel, contradiction, err := readKernel(h.Files, images)
	out.Kernel = kernel
	out.KernelReading = partReading("/proc/sys/kernel/osrelease", h.Now(), err)
	if contradiction != nil {
		out.Contradictions = append(out.Contradictions, contradiction)
	}
	var bootedAt time.Time
	if h.System != nil {
		info, _ := h.System.Info(ctx) // what fails there, platform reports
		bootedAt = info.BootTime
	}
	out.RebootPending = rebootPending(h.Files, kernel, changedAt, bootedAt)
}

// partReading is the reading of a part that may fail alone.
func partReading(source string, now time.Time, err error) *posturev1.Reading {
	r := &posturev1.Reading{Source: source}
	complete(r, now, now, err)
	return r
}
