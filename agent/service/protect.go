package service

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Directories are where the agent keeps its files on Windows. Anybody may make
// directories in ProgramData, so what is found there may have been planted
// before the agent was installed: whoever owns a directory decides about it,
// whatever its access list says.
type Directories struct {
	// Base is everybody's to enter, and nobody's but the service's and the
	// administrators' to write. What lies in it is theirs to read, too.
	Base string
	// State holds the device key: only for the service and administrators.
	State string
	// Public is everybody's to read; empty: elsewhere, and not the agent's.
	Public string
	// Readable is a file in Base that everybody may read; it may be absent.
	Readable string
}

// Access lists in the security descriptor definition language: P keeps out what
// would be inherited, SY is the system, BA its administrators, BU its users;
// 0x1200a9 is to read and to enter.
const (
	accessBase     = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;;0x1200a9;;;BU)"
	accessState    = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
	accessPublic   = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;0x1200a9;;;BU)"
	accessReadable = "O:BAD:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;0x1200a9;;;BU)"
)

// found is what lies at a path.
type found struct {
	there     bool
	directory bool
	// link: a junction or symbolic link, which may lead anywhere.
	link bool
	// trusted: it belongs to the system, its administrators, or whoever this
	// process runs as.
	trusted bool
}

// guard is what the system does for protect.
type guard interface {
	// Look returns what lies at the path, itself and not where it leads. What
	// must not even be looked at is not trusted.
	Look(path string) (found, error)
	// Make makes a directory that has this access list from the beginning.
	Make(path, access string) error
	// Restrict gives a file or directory, and what inherits from it, this
	// access list and owner. It returns an error for a link.
	Restrict(path, access string) error
	// Children are the names in a directory.
	Children(path string) ([]string, error)
	Rename(from, to string) error
}

// asideMark is in the name of everything that was set aside.
const asideMark = ".untrusted-"

// protect makes the directories or corrects them, parents first, and sets aside
// what does not come from this machine's administration; stamp makes new names
// of it. It returns the names that were set aside. An error means that nothing
// in these directories may be used.
func protect(g guard, d Directories, stamp string) (aside []string, err error) {
	owned := []struct{ path, access string }{{d.Base, accessBase}, {d.State, accessState}, {d.Public, accessPublic}}
	for _, o := range owned {
		if o.path == "" {
			continue
		}
		moved, err := claim(g, o.path, o.access, stamp)
		if err != nil {
			return aside, fmt.Errorf("protecting %s: %w", o.path, err)
		}
		aside = append(aside, moved...)
	}
	// Nobody else can add anything any more: now what is there already counts.
	for _, o := range owned {
		if o.path == "" {
			continue
		}
		moved, err := sift(g, o.path, stamp)
		if err != nil {
			return aside, fmt.Errorf("protecting %s: %w", o.path, err)
		}
		aside = append(aside, moved...)
	}
	if d.Readable == "" {
		return aside, nil
	}
	f, err := g.Look(d.Readable)
	if err == nil && f.there {
		err = g.Restrict(d.Readable, accessReadable)
	}
	if err != nil {
		return aside, fmt.Errorf("protecting %s: %w", d.Readable, err)
	}
	return aside, nil
}

// claim makes one directory the agent's own.
func claim(g guard, path, access, stamp string) (aside []string, err error) {
	f, err := g.Look(path)
	if err != nil {
		return nil, err
	}
	if f.there && !(f.directory && !f.link && f.trusted) {
		if err := g.Rename(path, path+asideMark+stamp); err != nil {
			return nil, err
		}
		aside, f = []string{filepath.Base(path)}, found{}
	}
	if !f.there {
		return aside, g.Make(path, access)
	}
	return aside, g.Restrict(path, access)
}

// sift sets aside what is in a directory and belongs to somebody else.
func sift(g guard, dir, stamp string) (aside []string, err error) {
	names, err := g.Children(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.Contains(name, asideMark) {
			continue
		}
		path := filepath.Join(dir, name)
		f, err := g.Look(path)
		if err != nil {
			return aside, err
		}
		if !f.there || f.trusted && !f.link {
			continue
		}
		if err := g.Rename(path, path+asideMark+stamp); err != nil {
			return aside, err
		}
		aside = append(aside, name)
	}
	return aside, nil
}
