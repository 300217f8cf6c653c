package identity

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pfoertner/agent/durable"
	"pfoertner/internal/attest/chip"
)

// Traits tell machines apart. They are weak signals: everybody can forge them,
// so that they agree proves nothing. That they differ means that the identity
// was made elsewhere, and it is not used. Empty: not known.
type Traits struct {
	// Model is vendor and model, Serial the serial number, as the firmware
	// states them.
	Model, Serial string
	// Install names the installation of the operating system. It counts only
	// where the firmware states no serial number: setting up a system anew does
	// not make another machine.
	Install string
}

// CopiedError says that the identity is not this machine's: copied with an
// image, a backup or a disk.
type CopiedError struct {
	// Aside is where the identity file is now.
	Aside string
	// Foreign: that was found out by the TPM, which does not have the keys. Then
	// it may also have been cleared, or replaced with the mainboard.
	Foreign bool
}

func (e *CopiedError) Error() string {
	if e.Foreign {
		return "the keys of the identity are not in this machine's TPM, and it is now at " + e.Aside
	}
	return "the identity was made on another machine, and is now at " + e.Aside
}

const (
	bindingName  = "machine.json"
	saltBytes    = 16
	maxBindBytes = 4 << 10
)

// binding is the file that remembers the machine of an identity: salted hashes,
// because serial numbers are nobody's business. Nil: was not known.
type binding struct {
	Salt    []byte `json:"salt"`
	Model   []byte `json:"model,omitempty"`
	Serial  []byte `json:"serial,omitempty"`
	Install []byte `json:"install,omitempty"`
}

func newBinding(salt []byte, t Traits) binding {
	hash := func(trait, value string) []byte {
		if value == "" {
			return nil
		}
		mac := hmac.New(sha256.New, salt)
		mac.Write([]byte(trait + "\x00" + value))
		return mac.Sum(nil)
	}
	return binding{
		Salt: salt, Model: hash("model", t.Model),
		Serial: hash("serial", t.Serial), Install: hash("install", t.Install),
	}
}

// of says whether the binding fits a machine. What one of both does not know
// says nothing.
func (b binding) of(t Traits) bool {
	now := newBinding(b.Salt, t)
	differ := func(a, b []byte) bool { return a != nil && b != nil && !hmac.Equal(a, b) }
	switch {
	case differ(b.Model, now.Model), differ(b.Serial, now.Serial):
		return false
	case b.Serial != nil && now.Serial != nil:
		return true
	}
	return !differ(b.Install, now.Install)
}

// with adds what was not known before, and takes over a new installation of the
// same machine.
func (b binding) with(t Traits) binding {
	now := newBinding(b.Salt, t)
	keep := func(new, old []byte) []byte {
		if new != nil {
			return new
		}
		return old
	}
	return binding{Salt: b.Salt, Model: keep(now.Model, b.Model), Serial: keep(now.Serial, b.Serial), Install: keep(now.Install, b.Install)}
}

func (b binding) equal(o binding) bool {
	return slices.Equal(b.Salt, o.Salt) && slices.Equal(b.Model, o.Model) &&
		slices.Equal(b.Serial, o.Serial) && slices.Equal(b.Install, o.Install)
}

// Bind says which machine this is. Every identity that is stored from now on
// remembers it. One that is stored already and was made on another machine is
// set aside, and a *CopiedError returned: after that there is none, and this
// machine needs an enrolment of its own. So is one whose keys are not in this
// machine's TPM. An identity of an agent that did not remember machines yet is
// taken as made here.
func (s *State) Bind(t Traits) error {
	salt := make([]byte, saltBytes)
	if _, err := rand.Read(salt); err != nil {
		return err
	}
	fresh := newBinding(salt, t)
	s.machine = &fresh
	if _, err := os.Lstat(s.path); errors.Is(err, fs.ErrNotExist) {
		return nil // what Save will write is of this machine
	}
	// Whatever else is wrong with it, whoever uses it finds out.
	if _, err := s.Load(); errors.Is(err, chip.ErrForeign) {
		return s.setAside(time.Now(), true)
	}
	stored, err := s.readBinding()
	if err != nil {
		return err
	}
	if stored == nil {
		return s.saveBinding()
	}
	if s.madeElsewhere(*stored, t) {
		return s.setAside(time.Now(), false)
	}
	known := stored.with(t)
	s.machine = &known
	if known.equal(*stored) {
		return nil
	}
	return s.saveBinding()
}

// Copied says whether the stored identity was made on another machine than one
// with these traits. It changes nothing.
func (s *State) Copied(t Traits) (bool, error) {
	stored, err := s.readBinding()
	if err != nil || stored == nil {
		return false, err
	}
	return s.madeElsewhere(*stored, t), nil
}

// madeElsewhere says whether what is remembered is another machine than one with
// these traits. Keys in a TPM are bound by it: beside it only a serial number
// counts, which tells a copied virtual machine from its original. A new firmware
// may write vendor and model in another way, and the notebook could not come
// back without a token.
func (s *State) madeElsewhere(stored binding, t Traits) bool {
	if id, err := s.read(); err == nil && id.InTPM() {
		t = Traits{Serial: t.Serial}
	}
	return !stored.of(t)
}

// readBinding returns nil for a binding that is not there or not readable as
// one: it is no key, and there is nothing that it could prove.
func (s *State) readBinding() (*binding, error) {
	content, err := os.ReadFile(s.beside(bindingName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the identity's machine: %w", err)
	}
	return parseBinding(content), nil
}

func parseBinding(content []byte) *binding {
	var b binding
	if len(content) > maxBindBytes || json.Unmarshal(content, &b) != nil || len(b.Salt) != saltBytes {
		return nil
	}
	return &b
}

func (s *State) saveBinding() error {
	if s.machine == nil {
		return nil
	}
	content, err := json.MarshalIndent(s.machine, "", "  ")
	if err == nil {
		err = durable.WriteFile(s.beside(bindingName), content, 0o600)
	}
	if err != nil {
		return fmt.Errorf("storing the identity's machine: %w", err)
	}
	return nil
}

const asideMark = ".other-machine-"

// setAside keeps the file for the case that a person knows better: a mainboard
// was replaced, and the collector agrees to the old key.
func (s *State) setAside(now time.Time, foreign bool) error {
	aside := s.path + asideMark + now.UTC().Format("20060102T150405")
	// In this order: whatever power is lost in between, the next identity gets a
	// key that no other machine knows, and the file is still seen to be another
	// machine's as long as it is there.
	err := s.without(nextName)
	if err == nil {
		err = os.Rename(s.path, aside)
	}
	if err == nil {
		err = s.without(bindingName)
	}
	if err != nil {
		return fmt.Errorf("setting the identity of another machine aside: %w", err)
	}
	return &CopiedError{Aside: aside, Foreign: foreign}
}

// without removes a file beside the identity, if it is there.
func (s *State) without(name string) error {
	if err := os.Remove(s.beside(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Remove removes the identity, be it whole or broken, its machine, and what was
// set aside. It says whether there was anything.
func (s *State) Remove() (bool, error) {
	names, err := s.files()
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			return true, fmt.Errorf("removing identity: %w", err)
		}
	}
	return len(names) > 0, nil
}

// files are the identity file and all that belongs to it, as far as they are
// there.
func (s *State) files() ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(s.path))
	if err != nil {
		return nil, fmt.Errorf("looking for an identity: %w", err)
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); holdsKey(n) || n == bindingName || n == tokenName {
			names = append(names, s.beside(n))
		}
	}
	return names, nil
}

// holdsKey knows the files that may hold a key, also a part of one that a crash
// has left behind.
func holdsKey(name string) bool {
	return name == fileName || name == nextName || strings.HasPrefix(name, fileName+asideMark) ||
		strings.HasPrefix(name, "."+fileName+".") || strings.HasPrefix(name, "."+nextName+".")
}

// Present says whether there is any key, enrolled or not, readable or not.
func (s *State) Present() (bool, error) {
	names, err := s.files()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(names, func(n string) bool { return holdsKey(filepath.Base(n)) }), nil
}

func (s *State) beside(name string) string { return filepath.Join(filepath.Dir(s.path), name) }
