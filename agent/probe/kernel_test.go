package probe

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const debianVersion = "Linux version 6.1.0-48-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0, GNU ld (GNU Binutils for Debian) 2.40) #1 SMP PREEMPT_DYNAMIC Debian 6.1.172-1 (2026-05-02)\n"

// kernelTree is a system with installed kernels, given as "package version",
// that runs the one named by osrelease.
func kernelTree(t *testing.T, running, version string, packages ...string) fstest.MapFS {
	files := with(layTrees(t, "apt/minimal", "apt/security"), fstest.MapFS{
		"proc/sys/kernel/osrelease": file(running + "\n"),
		"proc/version":              file(version),
	})
	status := string(files[dpkgStatusFile].Data)
	for _, p := range packages {
		name, version, _ := strings.Cut(p, " ")
		status += "\nPackage: " + name + "\nStatus: install ok installed\nArchitecture: amd64\nVersion: " + version + "\n"
		release := strings.TrimPrefix(name, kernelImagePrefix)
		if isDigit(release[0]) && strings.Count(release, ".") > 1 { // no metapackage
			files["boot/vmlinuz-"+release] = file("")
		}
	}
	files[dpkgStatusFile] = file(status)
	return files
}

func TestKernelThatArrivedUnderANewNameIsPending(t *testing.T) {
	t.Run("the metapackage shows it", func(t *testing.T) {
		patch := readPatch(t, kernelTree(t, "6.1.0-48-amd64", debianVersion, "linux-image-amd64 6.1.172-1", "linux-image-6.1.0-48-amd64 6.1.172-1"))
		if got := listed(patch); !strings.Contains(got, "linux-image-amd64:amd64 6.1.172-1 → 6.1.192-2") || strings.Contains(got, "6.1.0-48") {
			t.Errorf("pending:\n%s", got)
		}
	})
	t.Run("without a metapackage too", func(t *testing.T) {
		patch := readPatch(t, kernelTree(t, "6.1.0-48-amd64", debianVersion, "linux-image-6.1.0-48-amd64 6.1.172-1"))
		if got := listed(patch); !strings.Contains(got, "linux-image-6.1.0-48-amd64:amd64 6.1.172-1 → 6.1.192-2") {
			t.Errorf("pending:\n%s", got)
		}
	})
	t.Run("another flavour does not count", func(t *testing.T) {
		patch := readPatch(t, kernelTree(t, "6.1.0-48-cloud-amd64", debianVersion, "linux-image-6.1.0-48-cloud-amd64 6.1.172-1"))
		if got := listed(patch); strings.Contains(got, "linux-image") {
			t.Errorf("pending:\n%s", got)
		}
	})
	t.Run("nor another series", func(t *testing.T) {
		patch := readPatch(t, kernelTree(t, "6.1.0-56-amd64", debianVersion, "linux-image-6.1.0-56-amd64 6.1.192-2"))
		if got := listed(patch); strings.Contains(got, "linux-image") {
			t.Errorf("pending:\n%s", got)
		}
	})
}

func TestKernelLine(t *testing.T) {
	for release, want := range map[string][2]string{
		"6.1.0-50-amd64":          {"6.1", "amd64"},
		"6.1.0-50-cloud-amd64":    {"6.1", "cloud-amd64"},
		"6.12.117+deb12-rt-amd64": {"6.12", "rt-amd64"},
		"6.1.0-0.deb11.5-amd64":   {"6.1", "amd64"},
		"6.8.0-45-generic":        {"6.8", "generic"},
		"6.1.0-50-amd64-unsigned": {"6.1", "amd64-unsigned"},
		"6.18.44-fc-v445":         {"6.18", "fc-v445"},
		"":                        {".", ""},
	} {
		if series, flavour := kernelLine(release); series != want[0] || flavour != want[1] {
			t.Errorf("%s: %q %q", release, series, flavour)
		}
	}
}

func TestRunningKernelAgainstTheNewestInstalled(t *testing.T) {
	old, current := "linux-image-6.1.0-48-amd64 6.1.172-1", "linux-image-6.1.0-56-amd64 6.1.192-2"
	built := strings.Replace(debianVersion, "6.1.0-48", "6.1.0-56", 1)
	for _, c := range []struct {
		name, running, version string
		packages               []string
		bootedAt               time.Time
		note                   bool
		want                   posturev1.Ternary
		source                 string
		newest                 string
		contradictions         int
		kernel                 posturev1.ReadingState
	}{
		{name: "an older one runs", running: "6.1.0-48-amd64", version: debianVersion, packages: []string{old, current},
			want: yes, source: "kernel", newest: "6.1.0-56-amd64", kernel: observed},
		{name: "the newest runs, but in an older build", running: "6.1.0-56-amd64", version: built, packages: []string{old, current},
			want: yes, source: "kernel", newest: "6.1.0-56-amd64", kernel: observed},
		{name: "the newest runs: other parts may wait", running: "6.1.0-48-amd64", version: debianVersion, packages: []string{old},
			want: unknown, newest: "6.1.0-48-amd64", kernel: observed},
		{name: "the newest runs since after the last installation", running: "6.1.0-48-amd64", version: debianVersion, packages: []string{old},
			bootedAt: testNow, want: no, source: "started after the last installation", newest: "6.1.0-48-amd64", kernel: observed},
		{name: "the note is there", running: "6.1.0-48-amd64", version: debianVersion, packages: []string{old}, bootedAt: testNow, note: true,
			want: yes, source: "/run/reboot-required", newest: "6.1.0-48-amd64", kernel: observed},
		{name: "a kernel of one's own, newer than all", running: "6.18.44-fc-v445", version: "Linux version 6.18.44-fc-v445 (builder)", packages: []string{old},
			bootedAt: testNow, want: unknown, newest: "6.1.0-48-amd64", contradictions: 1, kernel: observed},
		{name: "an older kernel whose package is gone", running: "6.1.0-13-amd64", version: debianVersion, packages: []string{old},
			want: yes, source: "kernel", newest: "6.1.0-48-amd64", contradictions: 1, kernel: observed},
		{name: "a metapackage is no kernel", running: "6.1.0-48-amd64", version: debianVersion, packages: []string{"linux-image-6.12-amd64 6.12.117-1~deb12u1", old},
			want: unknown, newest: "6.1.0-48-amd64", kernel: observed},
		{name: "no kernel package at all", running: "6.1.0-48-amd64", version: debianVersion,
			want: unknown, kernel: failed},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := kernelTree(t, c.running, c.version, c.packages...)
			if c.note {
				files["run/reboot-required"] = file("*** System restart required ***\n")
			}
			patch := observe(t, Host{Files: files, System: fakeSystem{BootTime: c.bootedAt}}, patchProbe(nil, nil)).Patch
			wantState(t, patch.KernelReading, c.kernel)
			if patch.RebootPending.Pending != c.want || strings.Join(patch.RebootPending.Sources, " ") != c.source {
				t.Errorf("reboot %s by %v, want %s by %q", patch.RebootPending.Pending, patch.RebootPending.Sources, c.want, c.source)
			}
			if patch.Kernel.Running != c.running || patch.Kernel.NewestInstalled != c.newest {
				t.Errorf("running %q, newest %q", patch.Kernel.Running, patch.Kernel.NewestInstalled)
			}
			if len(patch.Contradictions) != c.contradictions {
				t.Errorf("contradictions: %v", patch.Contradictions)
			}
		})
	}
}

func TestBuildOfTheRunningKernel(t *testing.T) {
	ubuntu := "Linux version 6.8.0-45-generic (buildd@lcy02-amd64-115) (x86_64-linux-gnu-gcc-13 (Ubuntu 13.2.0-23ubuntu4) 13.2.0, GNU ld (GNU Binutils for Ubuntu) 2.42) #45-Ubuntu SMP PREEMPT_DYNAMIC Fri Aug 30 12:02:04 UTC 2024\n"
	for _, c := range []struct {
		name, running, want string
		files               fs.FS
	}{
		{"Debian", "6.1.0-48-amd64", "6.1.172-1", fstest.MapFS{"proc/version": file(debianVersion)}},
		{"Ubuntu", "6.8.0-45-generic", "6.8.0-45.45", fstest.MapFS{"proc/version": file(ubuntu), "proc/version_signature": file("Ubuntu 6.8.0-45.45-generic 6.8.12\n")}},
		{"another's", "6.18.44", "", fstest.MapFS{"proc/version": file("Linux version 6.18.44 (builder)\n")}},
		{"hidden", "6.18.44", "", fstest.MapFS{}},
	} {
		if got := runningBuild(c.files, c.running); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
