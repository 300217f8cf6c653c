package probe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// dpkgStatusFile is dpkg's database of packages.
const dpkgStatusFile = "var/lib/dpkg/status"

// packageID names a package. Packages for all architectures belong to the
// native one, as they do for apt: a package may change from "all" to "amd64"
// and back from one version to the next.
type packageID struct{ name, architecture string }

// installedPackage is a package whose files are on the disk.
type installedPackage struct {
	version string
	// held: an administrator keeps it from being updated.
	held bool
}

// packageDatabase is what dpkg knows to be installed.
type packageDatabase struct {
	// native is the architecture of dpkg itself: "amd64".
	native    string
	installed map[packageID]installedPackage
}

// id returns the identity of a package of the given architecture.
func (d packageDatabase) id(name, architecture string) packageID {
	if architecture == "all" {
		architecture = d.native
	}
	return packageID{name, architecture}
}

// parseDpkgStatus reads dpkg's status file. Packages of which only the
// configuration is left are not installed; packages that are unpacked and not
// yet configured are. A database without a single package, or without dpkg
// itself, is an error: it is damaged, and would make every notebook look as if
// it had nothing to update.
func parseDpkgStatus(r io.Reader) (packageDatabase, error) {
	type entry struct {
		packageID
		installedPackage
	}
	var entries []entry
	var db packageDatabase
	paragraphs := newParagraphReader(r, "Package", "Status", "Architecture", "Version")
	for {
		err := paragraphs.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return db, fmt.Errorf("dpkg status: %w", err)
		}
		name, architecture, version := paragraphs.value(0), paragraphs.value(2), paragraphs.value(3)
		want, state, ok := parseDpkgState(paragraphs.value(1))
		if !ok || len(name) == 0 {
			return db, fmt.Errorf("dpkg status: package %.80q with status %.80q", name, paragraphs.value(1))
		}
		if state == "not-installed" || state == "config-files" {
			continue
		}
		if len(version) == 0 || len(architecture) == 0 {
			return db, fmt.Errorf("dpkg status: package %.80q has no version or architecture", name)
		}
		e := entry{packageID{string(name), string(architecture)}, installedPackage{string(version), want == "hold"}}
		if e.name == "dpkg" {
			db.native = e.architecture
		}
		entries = append(entries, e)
	}
	if db.native == "" {
		return db, errors.New("dpkg status: dpkg itself is not in it, it is damaged")
	}
	db.installed = make(map[packageID]installedPackage, len(entries))
	for _, e := range entries {
		db.installed[db.id(e.name, e.architecture)] = e.installedPackage
	}
	return db, nil
}

// parseDpkgState reads "install ok installed": what is wanted, an error flag,
// the state.
func parseDpkgState(status []byte) (want, state string, ok bool) {
	words := bytes.Fields(status)
	if len(words) != 3 {
		return "", "", false
	}
	return string(words[0]), string(words[2]), true
}
