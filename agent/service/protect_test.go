package service

import (
	"errors"
	"fmt"
	gopath "path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// disk is a directory tree with owners and access lists.
type disk struct {
	files  map[string]found
	access map[string]string
	// held are paths that cannot be renamed: somebody has them open.
	held map[string]bool
	log  []string
}

func newDisk() *disk {
	return &disk{files: map[string]found{}, access: map[string]string{}, held: map[string]bool{}}
}

// On Windows, too, the tree is written with slashes.
func (d *disk) Look(path string) (found, error) { return d.files[filepath.ToSlash(path)], nil }

func (d *disk) Make(path, access string) error {
	path = filepath.ToSlash(path)
	if d.files[path].there {
		return fmt.Errorf("%s is there already", path)
	}
	if parent := gopath.Dir(path); path != base && !d.files[parent].there {
		return fmt.Errorf("%s is not there", parent)
	}
	d.files[path], d.access[path] = found{there: true, directory: true, trusted: true}, access
	d.log = append(d.log, "make "+path)
	return nil
}

func (d *disk) Restrict(path, access string) error {
	path = filepath.ToSlash(path)
	if d.files[path].link {
		return errors.New("it is a link")
	}
	d.access[path] = access
	d.log = append(d.log, "restrict "+path)
	return nil
}

func (d *disk) Children(path string) ([]string, error) {
	var names []string
	for f := range d.files {
		if gopath.Dir(f) == filepath.ToSlash(path) {
			names = append(names, filepath.Base(f))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (d *disk) Rename(from, to string) error {
	from, to = filepath.ToSlash(from), filepath.ToSlash(to)
	if d.held[from] {
		return errors.New("in use")
	}
	for f, is := range d.files {
		if f == from || strings.HasPrefix(f, from+"/") {
			moved := to + strings.TrimPrefix(f, from)
			d.files[moved], d.access[moved] = is, d.access[f]
			delete(d.files, f)
			delete(d.access, f)
		}
	}
	d.log = append(d.log, "rename "+from)
	return nil
}

const base = "/data/Pfoertner"

func directories() Directories {
	return Directories{Base: base, State: base + "/agent", Public: base + "/public", Readable: base + "/agent.yaml"}
}

func ours(directory bool) found    { return found{there: true, directory: directory, trusted: true} }
func planted(directory bool) found { return found{there: true, directory: directory} }

func TestDirectoriesAreMadeClosedFromTheBeginning(t *testing.T) {
	d := newDisk()
	aside, err := protect(d, directories(), "1")
	if err != nil || len(aside) > 0 {
		t.Fatalf("%v, %v", aside, err)
	}
	for path, want := range map[string]string{base: accessBase, base + "/agent": accessState, base + "/public": accessPublic} {
		if d.access[path] != want {
			t.Errorf("%s has %q", path, d.access[path])
		}
	}
	if _, there := d.access[base+"/agent.yaml"]; there {
		t.Error("a configuration that is not there has an access list")
	}
}

func TestLooserAccessListsAreCorrected(t *testing.T) {
	d := newDisk()
	for _, path := range []string{base, base + "/agent", base + "/public"} {
		d.files[path], d.access[path] = ours(true), "loose"
	}
	d.files[base+"/agent.yaml"] = ours(false)
	d.files[base+"/agent/identity.json"] = ours(false)
	aside, err := protect(d, directories(), "1")
	if err != nil || len(aside) > 0 {
		t.Fatalf("%v, %v", aside, err)
	}
	if d.access[base] != accessBase || d.access[base+"/agent"] != accessState || d.access[base+"/agent.yaml"] != accessReadable {
		t.Errorf("access lists are %v", d.access)
	}
	if !d.files[base+"/agent/identity.json"].there {
		t.Error("the identity is gone")
	}
}

// Anybody may make C:\ProgramData\Pfoertner before the agent is installed, and
// stays its owner: then the configuration, and where files are written, would be
// theirs.
func TestPlantedDirectoryIsNotUsed(t *testing.T) {
	d := newDisk()
	d.files[base] = planted(true)
	d.files[base+"/agent.yaml"] = planted(false)
	d.files[base+"/agent"] = planted(true)
	aside, err := protect(d, directories(), "1")
	if err != nil || !slices.Equal(aside, []string{"Pfoertner"}) {
		t.Fatalf("%v, %v", aside, err)
	}
	if d.files[base+"/agent.yaml"].there || !d.files[base+".untrusted-1/agent.yaml"].there {
		t.Errorf("what was planted is still used: %v", d.files)
	}
	if d.access[base] != accessBase || d.access[base+"/agent"] != accessState {
		t.Errorf("access lists are %v", d.access)
	}
}

func TestPlantedDirectoryThatCannotBeMovedIsRefused(t *testing.T) {
	d := newDisk()
	d.files[base], d.held[base] = planted(true), true
	if _, err := protect(d, directories(), "1"); err == nil {
		t.Error("it is used")
	}
}

func TestPlantedFilesInADirectoryOfOursAreSetAside(t *testing.T) {
	d := newDisk()
	for _, path := range []string{base, base + "/agent", base + "/public"} {
		d.files[path] = ours(true)
	}
	d.files[base+"/agent.yaml"] = planted(false)
	d.files[base+"/token"] = ours(false)
	d.files[base+"/agent/identity.json"] = planted(false)
	d.files[base+"/public/status.json"] = found{there: true, link: true, trusted: true}
	aside, err := protect(d, directories(), "1")
	if err != nil || !slices.Equal(aside, []string{"agent.yaml", "identity.json", "status.json"}) {
		t.Fatalf("%v, %v", aside, err)
	}
	if !d.files[base+"/token"].there || d.files[base+"/agent.yaml"].there {
		t.Errorf("left are %v", d.files)
	}
	if aside, err := protect(d, directories(), "2"); err != nil || len(aside) > 0 {
		t.Errorf("the next start finds %v, %v", aside, err)
	}
}

// A directory that leads elsewhere would make the service write there.
func TestLinkInPlaceOfADirectoryIsReplaced(t *testing.T) {
	d := newDisk()
	d.files[base] = ours(true)
	d.files[base+"/agent"] = found{there: true, directory: true, link: true, trusted: true}
	aside, err := protect(d, directories(), "1")
	if err != nil || !slices.Equal(aside, []string{"agent"}) || d.files[base+"/agent"].link {
		t.Errorf("%v, %v; the directory is %+v", aside, err, d.files[base+"/agent"])
	}
}

// While somebody else could still add files, what is there must not be judged.
func TestDirectoriesAreClosedBeforeTheirContentIsLookedAt(t *testing.T) {
	d := newDisk()
	for _, path := range []string{base, base + "/agent", base + "/public"} {
		d.files[path] = ours(true)
	}
	d.files[base+"/agent.yaml"] = planted(false)
	if _, err := protect(d, directories(), "1"); err != nil {
		t.Fatal(err)
	}
	want := []string{"restrict " + base, "restrict " + base + "/agent", "restrict " + base + "/public", "rename " + base + "/agent.yaml"}
	if !slices.Equal(d.log, want) {
		t.Errorf("order is %q", d.log)
	}
}

func TestUsersMayReadButNeverWrite(t *testing.T) {
	for name, access := range map[string]string{"base": accessBase, "state": accessState, "public": accessPublic, "file": accessReadable} {
		if !strings.Contains(access, "D:P(") {
			t.Errorf("%s inherits: %s", name, access)
		}
		for ace := range strings.SplitSeq(access, "(") {
			if strings.HasSuffix(ace, ";;;BU)") && !strings.Contains(ace, ";0x1200a9;") {
				t.Errorf("%s: users have more than reading: %s", name, ace)
			}
		}
	}
	if strings.Contains(accessState, "BU") {
		t.Errorf("users may read the key: %s", accessState)
	}
}
