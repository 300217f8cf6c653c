package probe

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
)

// seed adds a captured file and parts of it.
func seed(f *testing.F, name string, dirs ...string) {
	f.Helper()
	content := layTrees(f, dirs...)[name].Data
	f.Add(content)
	f.Add(content[:len(content)/2])
	f.Add(content[:min(len(content), 200)])
}

func FuzzDpkgStatus(f *testing.F) {
	seed(f, dpkgStatusFile, "apt/minimal")
	seed(f, dpkgStatusFile, "apt/overdue")
	f.Add([]byte("Package: dpkg\nStatus: hold ok installed\nArchitecture: all\nVersion: 1"))
	f.Fuzz(func(t *testing.T, content []byte) {
		db, err := parseDpkgStatus(bytes.NewReader(content))
		if err != nil {
			return
		}
		if len(db.installed) == 0 || db.native == "" {
			t.Error("an empty database was taken")
		}
		for id, p := range db.installed {
			if id.name == "" || id.architecture == "" || p.version == "" {
				t.Errorf("package %v %v", id, p)
			}
		}
	})
}

func FuzzInRelease(f *testing.F) {
	seed(f, securityPrefix+"InRelease", "apt/security")
	f.Add([]byte("Date: Fri, 20 Nov 2026 00:12:41 UTC\nSHA256:\n x y z/Packages\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		rel, err := parseRelease(bytes.NewReader(content))
		if err != nil {
			return
		}
		for name, sum := range rel.packages {
			if sum.size < 0 || strings.Contains(name, "/") {
				t.Errorf("index %q of %d bytes", name, sum.size)
			}
		}
	})
}

func FuzzPackagesIndex(f *testing.F) {
	seed(f, securityIndex, "apt/security")
	f.Add([]byte("Package: apt\nVersion: 2\nVersion: 3\nArchitecture: amd64\n#\n x"))
	db, err := parseDpkgStatus(bytes.NewReader(layTrees(f, "apt/minimal")[dpkgStatusFile].Data))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		index, err := parsePackagesIndex(bytes.NewReader(content), db)
		if err != nil {
			return
		}
		if index.sum.size != int64(len(content)) {
			t.Errorf("%d bytes counted of %d", index.sum.size, len(content))
		}
		for id, version := range index.newest {
			if _, ok := db.installed[id]; version == "" || !ok && !strings.HasPrefix(id.name, kernelImagePrefix) {
				t.Errorf("kept %v %q", id, version)
			}
		}
	})
}

func FuzzDecompress(f *testing.F) {
	files := layTrees(f, "apt/security")
	for _, ending := range []string{"", ".lz4", ".gz", ".xz", ".zst"} {
		packed := signedList(files, securityIndex, ending, []byte("Package: a\n"))[securityIndex+ending].Data
		f.Add("x_Packages"+ending, packed)
		f.Add("x_Packages"+ending, packed[:len(packed)/2])
	}
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		plain, err := decompress(name, bytes.NewReader(content))
		if err != nil {
			return
		}
		defer plain.Close()
		// What comes out does not matter here: it must end, not panic.
		_, _ = io.Copy(io.Discard, io.LimitReader(plain, 1<<20))
	})
}

func FuzzAptSources(f *testing.F) {
	f.Add([]byte("deb [arch=amd64] http://deb.debian.org/debian bookworm main # x\ndeb-src http://a b\n"))
	f.Add([]byte("Types: deb\nURIs: http://a\nSuites: bookworm bookworm-security\nComponents: main\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, parse := range []func(io.Reader) ([]string, error){parseSourcesList, parseDeb822Sources} {
			suites, err := parse(bytes.NewReader(content))
			if err == nil && slices.Contains(suites, "") {
				t.Error("a suite without a name")
			}
		}
	})
}
