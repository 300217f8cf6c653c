package probe

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// kernelImage is an installed kernel.
type kernelImage struct {
	id      packageID
	release string // as uname has it: "6.1.0-50-amd64"
	installedPackage
}

// installedKernels lists the installed kernels, newest first by version.
// Packages that only pull in a kernel have the same kind of name
// ("linux-image-6.12-amd64") but bring no image.
func installedKernels(files fs.FS, db packageDatabase) []kernelImage {
	var images []kernelImage
	for id, installed := range db.installed {
		release, ok := strings.CutPrefix(id.name, kernelImagePrefix)
		release = strings.TrimPrefix(release, "unsigned-")
		if !ok || release == "" || !isDigit(release[0]) {
			continue
		}
		if _, err := fs.Stat(files, "boot/vmlinuz-"+release); err != nil {
			continue
		}
		images = append(images, kernelImage{id, release, installed})
	}
	slices.SortFunc(images, func(a, b kernelImage) int {
		if d := compareVersions(b.version, a.version); d != 0 {
			return d
		}
		return strings.Compare(a.release, b.release)
	})
	return images
}

// readKernel reads the running kernel and the newest of the installed ones.
// The contradiction is nil unless the running one is none of them.
func readKernel(files fs.FS, images []kernelImage) (*posturev1.Kernel, *posturev1.Contradiction, error) {
	running, err := readLine(files, "proc/sys/kernel/osrelease")
	if err != nil {
		return nil, nil, err
	}
	kernel := &posturev1.Kernel{Running: running, RunningBuild: runningBuild(files, running)}
	if len(images) == 0 {
		return kernel, nil, errors.New("no package with a kernel is installed: whether the running one is current cannot be told")
	}
	kernel.NewestInstalled, kernel.NewestInstalledBuild = images[0].release, images[0].version
	if slices.ContainsFunc(images, func(k kernelImage) bool { return k.release == running }) {
		return kernel, nil, nil
	}
	return kernel, &posturev1.Contradiction{
		Subject: "patch.kernel.running",
		SourceA: "/proc/sys/kernel/osrelease", SaysA: running,
		SourceB: "dpkg", SaysB: "no installed package brings this kernel",
	}, nil
}

// runningBuild is the version of the package that the running kernel came
// from, empty when the kernel does not name one.
func runningBuild(files fs.FS, running string) string {
	// Ubuntu: "Ubuntu 6.8.0-45.45-generic 6.8.12".
	if signature, err := readLine(files, "proc/version_signature"); err == nil {
		if words := strings.Fields(signature); len(words) == 3 {
			_, flavour := kernelLine(running)
			return strings.TrimSuffix(words[1], "-"+flavour)
		}
	}
	// Debian: "… #1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)".
	version, err := readLine(files, "proc/version")
	if err != nil {
		return ""
	}
	i := strings.LastIndex(version, " Debian ")
	if i < 0 {
		return ""
	}
	build, _, _ := strings.Cut(version[i+len(" Debian "):], " ")
	return build
}

// kernelLine tells which kernels follow one another: those of one series and
// flavour. "6.1.0-50-amd64" is of "6.1" and "amd64", "6.12.38+deb13-rt-amd64"
// of "6.12" and "rt-amd64".
func kernelLine(release string) (series, flavour string) {
	version, rest, _ := strings.Cut(release, "-")
	if rest != "" && isDigit(rest[0]) { // the ABI number
		_, rest, _ = strings.Cut(rest, "-")
	}
	major, after, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(after, ".")
	return major + "." + minor, rest
}

// addKernelUpdate adds the update of the newest installed kernel when a
// security repository offers its successor under another name. Where a package
// that pulls in the newest kernel is installed, that one shows the update;
// without it nothing would.
func addKernelUpdate(pending map[packageID]*posturev1.PendingUpdate, offered []offer, images []kernelImage) {
	kernelPending := func(id packageID) bool { return strings.HasPrefix(id.name, kernelImagePrefix) }
	if len(images) == 0 || slices.ContainsFunc(slices.Collect(maps.Keys(pending)), kernelPending) {
		return
	}
	newest := images[0]
	series, flavour := kernelLine(newest.release)
	update := &posturev1.PendingUpdate{
		Package: newest.id.name, Architecture: newest.id.architecture,
		InstalledVersion: newest.version, FixedVersion: newest.version, Held: newest.held,
	}
	for _, offer := range offered {
		for id, version := range offer.newest {
			s, f := kernelLine(strings.TrimPrefix(id.name, kernelImagePrefix))
			if s == series && f == flavour && compareVersions(update.FixedVersion, version) < 0 {
				update.FixedVersion, update.Origin = version, offer.origin
			}
		}
	}
	if update.Origin != "" {
		pending[newest.id] = update
	}
}

// rebootPending says whether what is installed waits for a restart. Debian and
// Ubuntu leave a note, but only certain packages write it: that it is missing
// proves nothing. NO is said only when the newest kernel runs and the machine
// was started after anything was last installed.
func rebootPending(files fs.FS, kernel *posturev1.Kernel, changedAt, bootedAt time.Time) *posturev1.RebootPending {
	out := &posturev1.RebootPending{}
	for _, note := range []string{"run/reboot-required", "var/run/reboot-required"} {
		if _, err := fs.Stat(files, note); err == nil {
			out.Sources = append(out.Sources, "/"+note)
			break
		}
	}
	newest := kernel.GetNewestInstalled() != "" && kernel.GetNewestInstalled() == kernel.GetRunning()
	switch {
	case kernel.GetNewestInstalled() == "":
	case !newest && compareVersions(kernel.GetRunning(), kernel.GetNewestInstalled()) < 0,
		newest && kernel.GetRunningBuild() != "" && kernel.GetRunningBuild() != kernel.GetNewestInstalledBuild():
		out.Sources = append(out.Sources, "kernel")
	}
	switch {
	case len(out.Sources) > 0:
		out.Pending = posturev1.Ternary_TERNARY_YES
	case newest && !bootedAt.IsZero() && changedAt.Before(bootedAt):
		out.Pending = posturev1.Ternary_TERNARY_NO
		out.Sources = []string{"started after the last installation"}
	}
	return out
}
