package probe

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	securityPrefix = "var/lib/apt/lists/deb.debian.org_debian-security_dists_bookworm-security_"
	securityIndex  = securityPrefix + "main_binary-amd64_Packages"
)

func readPatch(t testing.TB, files fs.FS) *posturev1.Patch {
	t.Helper()
	return observe(t, Host{Files: files}, patchProbe(nil, nil)).Patch
}

// listed writes pending updates as "package:architecture installed → fixed".
func listed(patch *posturev1.Patch) string {
	var lines []string
	for _, p := range patch.Pending {
		lines = append(lines, fmt.Sprintf("%s:%s %s → %s", p.Package, p.Architecture, p.InstalledVersion, p.FixedVersion))
	}
	return strings.Join(lines, "\n")
}

// minimalPending is what the captured system lacks, as apt-get -s dist-upgrade
// named it there.
const minimalPending = `apt:amd64 2.6.1 → 2.6.2
libapt-pkg6.0:amd64 2.6.1 → 2.6.2
liblzma5:amd64 5.4.1-1+deb12u1 → 5.4.1-1+deb12u2
libpcre2-8-0:amd64 10.42-1 → 10.42-1+deb12u2
perl-base:amd64 5.36.0-7+deb12u3 → 5.36.0-7+deb12u4
tzdata:amd64 2026b-0+deb12u1 → 2026f-0+deb12u1`

func TestWithoutASecuritySourceNothingPendingMeansNothing(t *testing.T) {
	patch := readPatch(t, layTrees(t, "apt/minimal"))
	wantState(t, patch.Reading, observed)
	if patch.SecurityFeedConfigured != no || patch.PendingSecurity != 0 {
		t.Errorf("feed %s, %d pending: want a feed that is missing", patch.SecurityFeedConfigured, patch.PendingSecurity)
	}
}

func TestSecuritySourceShowsWhatIsPending(t *testing.T) {
	patch := readPatch(t, layTrees(t, "apt/minimal", "apt/security"))
	wantState(t, patch.Reading, observed)
	if got := listed(patch); got != minimalPending {
		t.Errorf("pending:\n%s\nwant:\n%s", got, minimalPending)
	}
	if patch.PendingSecurity != 6 || patch.InstalledPackages != 8 || patch.SecurityFeedConfigured != yes {
		t.Errorf("%d pending of %d, feed %s", patch.PendingSecurity, patch.InstalledPackages, patch.SecurityFeedConfigured)
	}
	if origin := patch.Pending[0].Origin; origin != "Debian-Security" {
		t.Errorf("origin %q", origin)
	}
}

func TestFeedTellsItsAge(t *testing.T) {
	files := with(layTrees(t, "apt/minimal", "apt/security"), fstest.MapFS{
		"var/lib/apt/lists/partial": {Mode: fs.ModeDir | 0o700, ModTime: testNow.Add(-2 * time.Hour)},
	})
	for _, feed := range readPatch(t, files).Feeds {
		if !feed.FetchedAt.AsTime().Equal(testNow.Add(-2 * time.Hour)) {
			t.Errorf("%s fetched at %s", feed.Origin, feed.FetchedAt.AsTime())
		}
		if !feed.Security {
			if feed.ValidUntil != nil {
				t.Errorf("%s is valid until %s, but names no end", feed.Origin, feed.ValidUntil.AsTime())
			}
			continue
		}
		released := time.Date(2026, time.November, 20, 0, 12, 41, 0, time.UTC)
		if !feed.ReleasedAt.AsTime().Equal(released) || !feed.ValidUntil.AsTime().Equal(released.AddDate(0, 0, 7)) {
			t.Errorf("released %s, valid until %s", feed.ReleasedAt.AsTime(), feed.ValidUntil.AsTime())
		}
	}
}

func TestNewerPointReleaseInMainDoesNotHideAMissedSecurityFix(t *testing.T) {
	patch := readPatch(t, layTrees(t, "apt/overdue", "apt/security"))
	// main has 1:9.2p1-2+deb12u10, which is all that "apt list --upgradable" shows.
	if got, want := listed(patch), "openssh-client:amd64 1:9.2p1-2+deb12u6 → 1:9.2p1-2+deb12u9"; !strings.Contains(got, want) {
		t.Errorf("pending:\n%s\nwant among them:\n%s", got, want)
	}
}

func TestInstalledUpdateIsNoLongerPending(t *testing.T) {
	files := layTrees(t, "apt/minimal", "apt/security")
	probe := patchProbe(nil, nil)
	before := observe(t, Host{Files: files}, probe).Patch
	status := string(files[dpkgStatusFile].Data)
	files[dpkgStatusFile] = &fstest.MapFile{
		Data:    []byte(strings.ReplaceAll(status, "Version: 2.6.1\n", "Version: 2.6.2\n")),
		ModTime: testNow, // same length: only the time tells
	}
	after := observe(t, Host{Files: files}, probe).Patch
	if before.PendingSecurity != 6 || after.PendingSecurity != 4 || strings.Contains(listed(after), "apt") {
		t.Errorf("%d, then %d pending:\n%s", before.PendingSecurity, after.PendingSecurity, listed(after))
	}
}

func TestPackageStatesThatCount(t *testing.T) {
	for _, c := range []struct {
		status              string
		pending, held, have uint32
	}{
		{"install ok installed", 6, 0, 8},
		{"hold ok installed", 6, 1, 8},
		{"install ok unpacked", 6, 0, 8},
		{"install ok half-configured", 6, 0, 8},
		{"install ok triggers-pending", 6, 0, 8},
		{"deinstall ok config-files", 5, 0, 7},
		{"purge ok not-installed", 5, 0, 7},
	} {
		t.Run(c.status, func(t *testing.T) {
			files := layTrees(t, "apt/minimal", "apt/security")
			status := string(files[dpkgStatusFile].Data)
			head, tail, _ := strings.Cut(status, "Package: tzdata\n")
			tail = strings.Replace(tail, "install ok installed", c.status, 1)
			files[dpkgStatusFile] = file(head + "Package: tzdata\n" + tail)
			patch := readPatch(t, files)
			if patch.PendingSecurity != c.pending || patch.Held != c.held || patch.InstalledPackages != c.have {
				t.Errorf("%d pending, %d held, %d installed: want %d, %d, %d",
					patch.PendingSecurity, patch.Held, patch.InstalledPackages, c.pending, c.held, c.have)
			}
		})
	}
}

// signedList puts an index under its name, plain or compressed, and its sum
// into the InRelease.
func signedList(files fstest.MapFS, index, ending string, content []byte) fstest.MapFS {
	var packed bytes.Buffer
	switch ending {
	case "":
		packed.Write(content)
	case ".lz4":
		write(lz4.NewWriter(&packed), content)
	case ".gz":
		write(gzip.NewWriter(&packed), content)
	case ".xz":
		w, err := xz.NewWriter(&packed)
		if err != nil {
			panic(err)
		}
		write(w, content)
	case ".zst":
		w, err := zstd.NewWriter(&packed)
		if err != nil {
			panic(err)
		}
		write(w, content)
	}
	name := strings.ReplaceAll(strings.TrimPrefix(index, securityPrefix), "_", "/")
	inRelease, _, _ := strings.Cut(string(files[securityPrefix+"InRelease"].Data), "SHA256:\n")
	inRelease += fmt.Sprintf("SHA256:\n %x %d %s\n", sha256.Sum256(content), len(content), name)
	return with(files, fstest.MapFS{
		index:                        nil,
		index + ending:               file(packed.String()),
		securityPrefix + "InRelease": file(inRelease),
	})
}

func write(w io.WriteCloser, content []byte) {
	if _, err := w.Write(content); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
}

func TestListsAreReadHoweverTheyAreCompressed(t *testing.T) {
	files := layTrees(t, "apt/minimal", "apt/security")
	plain := files[securityIndex].Data
	for _, ending := range []string{"", ".lz4", ".gz", ".xz", ".zst"} {
		t.Run("Packages"+ending, func(t *testing.T) {
			patch := readPatch(t, signedList(files, securityIndex, ending, plain))
			wantState(t, patch.Reading, observed)
			if got := listed(patch); got != minimalPending {
				t.Errorf("pending:\n%s", got)
			}
		})
		t.Run("cut short Packages"+ending, func(t *testing.T) {
			whole := signedList(files, securityIndex, ending, plain)
			f := whole[securityIndex+ending]
			whole[securityIndex+ending] = file(string(f.Data[:len(f.Data)/2]))
			wantState(t, readPatch(t, whole).Reading, failed)
		})
	}
}

func TestWhatCannotBeReadIsNotUpToDate(t *testing.T) {
	base := layTrees(t, "apt/minimal", "apt/security")
	sources := "etc/apt/sources.list.d/security.sources"
	for _, c := range []struct {
		name   string
		files  fs.FS
		reason string
	}{
		{"no package database", with(base, fstest.MapFS{dpkgStatusFile: nil}), "not exist"},
		{"empty package database", with(base, fstest.MapFS{dpkgStatusFile: file("")}), "damaged"},
		{"package database of nonsense", with(base, fstest.MapFS{dpkgStatusFile: file("\x00\x01\n\n")}), "field name"},
		{"package without a version", with(base, fstest.MapFS{dpkgStatusFile: file("Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\n")}), "no version"},
		{"security source never fetched", with(layTrees(t, "apt/minimal"), fstest.MapFS{sources: base[sources]}), "never fetched"},
		{"security source without its index", with(base, fstest.MapFS{securityIndex: nil}), "no list of packages"},
		{"index of another release of the list", with(base, fstest.MapFS{securityIndex: file("Package: a\nVersion: 1\nArchitecture: all\n")}), "InRelease"},
		{"index that InRelease does not name", with(base, fstest.MapFS{securityPrefix + "InRelease": file("Origin: Debian\nLabel: Debian-Security\nCodename: bookworm-security\nDate: Fri, 20 Nov 2026 00:12:41 UTC\n")}), "does not name"},
		{"security InRelease without a date", with(base, fstest.MapFS{securityPrefix + "InRelease": file("Origin: Debian\nLabel: Debian-Security\nCodename: bookworm-security\n")}), "no date"},
		{"date in a zone that means nothing", with(base, fstest.MapFS{securityPrefix + "InRelease": file("Date: Fri, 20 Nov 2026 00:12:41 CEST\n")}), "date"},
		{"list that may not be read", denied{base, []string{securityIndex}}, "permission denied"},
		{"unknown compression", with(base, fstest.MapFS{securityIndex: nil, securityIndex + ".br": file("x")}), "not known"},
		{"no codename", with(base, fstest.MapFS{"etc/os-release": file("ID=debian\n")}), "codename"},
		{"no os-release", with(base, fstest.MapFS{"etc/os-release": nil}), "not exist"},
		{"Fedora", fstest.MapFS{"etc/os-release": file("ID=fedora\nVERSION_ID=43\n")}, "updates of dnf"},
		{"openSUSE", fstest.MapFS{"etc/os-release": file("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n")}, "updates of zypper"},
		{"unknown distribution", fstest.MapFS{"etc/os-release": file("ID=plan9\n")}, "plan9 is not known"},
	} {
		t.Run(c.name, func(t *testing.T) {
			patch := readPatch(t, c.files)
			wantState(t, patch.Reading, failed)
			if !strings.Contains(patch.Reading.Reason, c.reason) {
				t.Errorf("reason %q does not say %q", patch.Reading.Reason, c.reason)
			}
		})
	}
}

func TestRemovedSecuritySourceLeavesAContradiction(t *testing.T) {
	files := with(layTrees(t, "apt/minimal", "apt/security"), fstest.MapFS{
		"etc/apt/sources.list.d/security.sources": file("Enabled: no\nTypes: deb\nURIs: http://deb.debian.org/debian-security\nSuites: bookworm-security\n"),
	})
	patch := readPatch(t, files)
	if patch.SecurityFeedConfigured != no || len(patch.Contradictions) == 0 || patch.PendingSecurity != 6 {
		t.Errorf("feed %s, %d pending, contradictions %v", patch.SecurityFeedConfigured, patch.PendingSecurity, patch.Contradictions)
	}
}

func TestSecurityRepositoriesByTheirOwnWord(t *testing.T) {
	for _, c := range []struct {
		name     string
		release  release
		codename string
		want     bool
	}{
		{"Debian now", release{origin: "Debian", label: "Debian-Security", suite: "oldstable-security", codename: "bookworm-security"}, "bookworm", true},
		{"Debian until buster", release{origin: "Debian", label: "Debian-Security", suite: "oldoldstable", codename: "buster"}, "buster", true},
		{"Debian main", release{origin: "Debian", label: "Debian", suite: "oldstable", codename: "bookworm"}, "bookworm", false},
		{"Debian updates", release{origin: "Debian", label: "Debian", suite: "oldstable-updates", codename: "bookworm-updates"}, "bookworm", false},
		{"security of another release", release{origin: "Debian", label: "Debian-Security", suite: "stable-security", codename: "trixie-security"}, "bookworm", false},
		{"Ubuntu", release{origin: "Ubuntu", label: "Ubuntu", suite: "jammy-security", codename: "jammy"}, "jammy", true},
		{"Ubuntu updates", release{origin: "Ubuntu", label: "Ubuntu", suite: "jammy-updates", codename: "jammy"}, "jammy", false},
		{"Ubuntu ESM", release{origin: "UbuntuESM", label: "UbuntuESM", suite: "jammy-infra-security", codename: "jammy"}, "jammy", true},
		{"Ubuntu ESM for applications", release{origin: "UbuntuESMApps", label: "UbuntuESMApps", suite: "jammy-apps-security", codename: "jammy"}, "jammy", true},
		{"Ubuntu ESM updates", release{origin: "UbuntuESM", label: "UbuntuESM", suite: "jammy-infra-updates", codename: "jammy"}, "jammy", false},
		{"another vendor", release{origin: "Example", label: "Example", suite: "stable", codename: "stable"}, "bookworm", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.release.security([]string{c.codename}); got != c.want {
				t.Errorf("security: %v", got)
			}
		})
	}
}

func TestUbuntuWithExtendedMaintenance(t *testing.T) {
	index := "Package: vim\nArchitecture: amd64\nVersion: 2:8.2.3995-1ubuntu2.30\n"
	esm := "Package: vim\nArchitecture: amd64\nVersion: 2:8.2.3995-1ubuntu2.31+esm1\n"
	repo := func(origin, suite, content string) string {
		return fmt.Sprintf("Origin: %s\nLabel: %s\nSuite: %s\nCodename: jammy\nDate: Thu, 19 Nov 2026 10:00:00 UTC\nSHA256:\n %x %d main/binary-amd64/Packages\n",
			origin, origin, suite, sha256.Sum256([]byte(content)), len(content))
	}
	const archive, pro = "var/lib/apt/lists/de.archive.ubuntu.com_ubuntu_dists_jammy-security_", "var/lib/apt/lists/esm.ubuntu.com_infra_ubuntu_dists_jammy-infra-security_"
	patch := readPatch(t, fstest.MapFS{
		"etc/os-release":                       file("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"22.04\"\nVERSION_CODENAME=jammy\n"),
		"etc/apt/sources.list":                 file("deb [arch=amd64 signed-by=/k] http://de.archive.ubuntu.com/ubuntu jammy-security main\ndeb https://esm.ubuntu.com/infra/ubuntu jammy-infra-security main # Pro\n"),
		dpkgStatusFile:                         file("Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.21.1ubuntu2\n\nPackage: vim\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2:8.2.3995-1ubuntu2\n"),
		archive + "InRelease":                  file(repo("Ubuntu", "jammy-security", index)),
		archive + "main_binary-amd64_Packages": file(index),
		pro + "InRelease":                      file(repo("UbuntuESM", "jammy-infra-security", esm)),
		pro + "main_binary-amd64_Packages":     file(esm),
	})
	wantState(t, patch.Reading, observed)
	if got := listed(patch); got != "vim:amd64 2:8.2.3995-1ubuntu2 → 2:8.2.3995-1ubuntu2.31+esm1" {
		t.Errorf("pending %s", got)
	}
	if origin := patch.Pending[0].Origin; origin != "UbuntuESM:jammy-infra-security" {
		t.Errorf("origin %q", origin)
	}
}

func TestArchitecturesAreKeptApart(t *testing.T) {
	files := layTrees(t, "apt/minimal", "apt/security")
	index := "Package: liblzma5\nArchitecture: i386\nVersion: 9\n\n" + // not installed for i386
		"Package: tzdata\nArchitecture: amd64\nVersion: 2027a-0\n\n" + // was "all" until now
		"Package: perl-base\nArchitecture: all\nVersion: 9\n"
	patch := readPatch(t, signedList(files, securityIndex, "", []byte(index)))
	want := "perl-base:amd64 5.36.0-7+deb12u3 → 9\ntzdata:amd64 2026b-0+deb12u1 → 2027a-0"
	if got := listed(patch); got != want {
		t.Errorf("pending:\n%s\nwant:\n%s", got, want)
	}
}

func TestLongListIsCutButCounted(t *testing.T) {
	files := layTrees(t, "apt/minimal", "apt/security")
	status, index := string(files[dpkgStatusFile].Data), ""
	for i := range 1200 {
		status += fmt.Sprintf("\nPackage: p%d\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n", i)
		index += fmt.Sprintf("Package: p%d\nArchitecture: amd64\nVersion: 2\n\n", i)
	}
	patch := readPatch(t, signedList(with(files, fstest.MapFS{dpkgStatusFile: file(status)}), securityIndex, ".gz", []byte(index)))
	if patch.PendingSecurity != 1200 || len(patch.Pending) != 1000 {
		t.Errorf("%d counted, %d listed", patch.PendingSecurity, len(patch.Pending))
	}
}

// openings counts how often files are opened.
type openings struct {
	fs.FS
	count map[string]int
}

func (o openings) Open(name string) (fs.File, error) {
	o.count[name]++
	return o.FS.Open(name)
}

func (o openings) Stat(name string) (fs.FileInfo, error) { return fs.Stat(o.FS, name) }

func TestUnchangedListsAreNotReadTwice(t *testing.T) {
	tree := layTrees(t, "apt/minimal", "apt/security")
	files := openings{tree, map[string]int{}}
	probe := patchProbe(nil, nil)
	for range 3 {
		if patch := observe(t, Host{Files: files}, probe).Patch; patch.PendingSecurity != 6 {
			t.Fatalf("%d pending", patch.PendingSecurity)
		}
	}
	for _, name := range []string{securityIndex, securityPrefix + "InRelease", dpkgStatusFile} {
		if files.count[name] != 1 {
			t.Errorf("%s was opened %d times", name, files.count[name])
		}
	}
	// A package installed since: its entries were not kept, so the list is
	// read again.
	tree[dpkgStatusFile] = file(string(tree[dpkgStatusFile].Data) + "\nPackage: unzip\nStatus: install ok installed\nArchitecture: amd64\nVersion: 6.0-28\n")
	if patch := observe(t, Host{Files: files}, probe).Patch; patch.PendingSecurity != 7 || files.count[securityIndex] != 2 {
		t.Errorf("%d pending, list opened %d times", patch.PendingSecurity, files.count[securityIndex])
	}
}
