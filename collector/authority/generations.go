package authority

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// State is where an issuing CA is in its life.
type State string

// The states, in the order of a life. Certificates of a CA that is next,
// current or retiring are accepted, of all others not.
const (
	Requested State = "requested" // there is a key; the root has not signed yet
	Next      State = "next"      // handed out to whoever verifies, issues nothing
	Current   State = "current"   // issues; one of each kind
	Retiring  State = "retiring"  // issues nothing; accepted until its last certificate ends
	Revoked   State = "revoked"   // not accepted: its key is in wrong hands
)

// generation is one issuing CA of a kind.
type generation struct {
	Kind string `json:"kind"`
	// Name is that of its files, without their endings.
	Name  string `json:"name"`
	State State  `json:"state"`
	// Since is when it came into this state; zero: at its creation.
	Since time.Time `json:"since,omitzero"`
	// Until is, for a retiring CA, when the last certificate under it ends.
	Until time.Time `json:"until,omitzero"`
}

// gone says whether nothing of a CA can be valid any more.
func (g generation) gone(now time.Time) bool {
	return g.State == Retiring && !now.Before(g.Until)
}

// register is which issuing CAs there are and in which state: the one file
// that says so. It is replaced as a whole, after every file that it names was
// written, so that a change happens at one moment or not at all.
type register struct {
	Format int `json:"format"`
	// TrustSettled is when the last change of the servers' CAs had reached all
	// who issue: certificates from before came without it.
	TrustSettled time.Time    `json:"trust_settled,omitzero"`
	Generations  []generation `json:"generations"`
}

const (
	registerFile   = "issuing.json"
	registerFormat = 1
	// maxRegister is far above what a hundred years of rotations write.
	maxRegister = 1 << 20
)

// firstRegister is that of an authority whose CAs were never replaced: it has
// no file.
func firstRegister() register {
	r := register{Format: registerFormat}
	for _, name := range Kinds() {
		r.Generations = append(r.Generations, generation{Kind: name, Name: name + "-ca", State: Current})
	}
	return r
}

func readRegister(dir string) (register, error) {
	text, err := os.ReadFile(filepath.Join(dir, registerFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, rootFile+".crt")); err != nil {
			return register{}, err
		}
		return firstRegister(), nil
	}
	if err != nil {
		return register{}, err
	}
	r, err := parseRegister(text)
	if err != nil {
		return register{}, fmt.Errorf("%s: %w", registerFile, err)
	}
	return r, nil
}

// parseRegister refuses what this program would not have written: an unknown
// key could be a state that a newer collector knows and this one would ignore.
func parseRegister(text []byte) (register, error) {
	if len(text) > maxRegister {
		return register{}, errors.New("too long")
	}
	var r register
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return register{}, err
	}
	return r, r.check()
}

func (r register) check() error {
	if r.Format != registerFormat {
		return fmt.Errorf("format %d: this program knows %d", r.Format, registerFormat)
	}
	names, current := map[string]bool{}, map[string]bool{}
	for _, g := range r.Generations {
		kind, err := kindNamed(g.Kind)
		if err != nil {
			return err
		}
		if !kind.owns(g.Name) || names[g.Name] {
			return fmt.Errorf("%q is no name for a %s, or there twice", g.Name, kind.title)
		}
		names[g.Name] = true
		switch g.State {
		case Requested, Next, Revoked:
		case Current:
			if current[g.Kind] {
				return fmt.Errorf("two %ss are current", kind.title)
			}
			current[g.Kind] = true
		case Retiring:
			if g.Until.IsZero() {
				return fmt.Errorf("%s retires without an end", g.Name)
			}
		default:
			return fmt.Errorf("%s is %q, which is no state", g.Name, g.State)
		}
	}
	return nil
}

// of returns the generation of a kind that is in a state; nil: none.
func (r *register) of(kind issuingKind, s State) *generation {
	i := slices.IndexFunc(r.Generations, func(g generation) bool { return g.Kind == kind.name() && g.State == s })
	if i < 0 {
		return nil
	}
	return &r.Generations[i]
}

// move changes a generation's state.
func (g *generation) move(to State, now time.Time) {
	g.State, g.Since, g.Until = to, now, time.Time{}
}

// retire ends a CA's issuing: everything under it has ended when the longest
// life that it gives is over, or with itself.
func (g *generation) retire(kind issuingKind, cert *x509.Certificate, now time.Time) {
	g.move(Retiring, now)
	g.Until = now.Add(kind.longest + followEvery)
	if g.Until.After(cert.NotAfter) {
		g.Until = cert.NotAfter
	}
}

// keep is an authority's directory while it is changed.
type keep struct {
	dir string
	// write replaces one file; tests let it fail.
	write func(path string, content []byte) error
}

// change lets do change the register, alone, and commits what it did. An error
// of do or before the commit leaves everything as it was, but perhaps for files
// that no register names.
func (k keep) change(do func(*register) error) error {
	unlock, err := lock(k.dir)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := readRegister(k.dir)
	if err != nil {
		return err
	}
	if err := do(&r); err != nil {
		return err
	}
	if err := r.check(); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return k.write(filepath.Join(k.dir, registerFile), append(text, '\n'))
}

// stateOf returns the state of a generation by its name; empty: unknown.
func (r register) stateOf(name string) State {
	i := slices.IndexFunc(r.Generations, func(g generation) bool { return g.Name == name })
	if i < 0 {
		return ""
	}
	return r.Generations[i].State
}
