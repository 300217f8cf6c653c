package authority

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"pfoertner/collector/audit"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
)

// Rotation replaces issuing CAs, in the directory that a collector may be
// working with at the same time. Every method happens wholly or not at all, and
// is recorded before it happens.
type Rotation struct {
	// Dir is the authority's directory.
	Dir string
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Record is told of every change; nil: nobody is.
	Record Recorder

	// write replaces writeFile in tests of faults; nil: writeFile.
	write func(path string, content []byte) error
}

// Request makes keys for the next CAs of kinds, and returns what a root has to
// sign (PEM, PKCS #10). Where a request waits already it is returned again. It
// returns an error for a kind that has a next CA. In a directory that is not
// there it begins an authority.
func (r Rotation) Request(kinds []string, organisation string, source Source) ([]byte, error) {
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return nil, err
	}
	if _, err := readRegister(r.Dir); errors.Is(err, fs.ErrNotExist) {
		if err := r.begin(); err != nil {
			return nil, err
		}
	}
	var requests []byte
	err := r.change(func(reg *register) error {
		var records []audit.Record
		for _, name := range kinds {
			kind, err := kindNamed(name)
			if err != nil {
				return err
			}
			if next := reg.of(kind, Next); next != nil {
				return fmt.Errorf("%s is the next %s already: switch to it first, or revoke it", next.Name, kind.title)
			}
			g := reg.of(kind, Requested)
			if g == nil {
				if g, err = r.newKey(reg, kind, source); err != nil {
					return err
				}
			}
			key, err := openKey(filepath.Join(r.Dir, g.Name+".key"))
			if err != nil {
				return err
			}
			text, err := newRequest(kind, organisation, key)
			if err != nil {
				return err
			}
			requests = append(requests, text...)
			person, err := attest.Fingerprint(key.Public())
			if err != nil {
				return err
			}
			records = append(records, r.record("authority.requested", g, "key_fingerprint", person))
		}
		return r.recorded(records)
	})
	return requests, err
}

// begin makes the register of an authority whose root is elsewhere.
func (r Rotation) begin() error {
	entries, err := os.ReadDir(r.Dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is in use: %w", r.Dir, fs.ErrExist)
	}
	return r.writer()(filepath.Join(r.Dir, registerFile), []byte(`{"format": 1, "generations": []}`))
}

// newKey makes the next generation of a kind. Its key file is written before
// the register names it.
func (r Rotation) newKey(reg *register, kind issuingKind, source Source) (*generation, error) {
	name := kind.file
	for i := 2; reg.stateOf(name) != "" || there(r.Dir, name); i++ {
		name = fmt.Sprintf("%s-%d", kind.file, i)
	}
	_, text, err := source.New(name)
	if err != nil {
		return nil, fmt.Errorf("key of %s: %w", name, err)
	}
	if err := r.writer()(filepath.Join(r.Dir, name+".key"), text); err != nil {
		return nil, err
	}
	reg.Generations = append(reg.Generations, generation{Kind: kind.name(), Name: name, State: Requested, Since: r.now()})
	return &reg.Generations[len(reg.Generations)-1], nil
}

// Install takes CA certificates that a root has signed for keys of Request, and
// the root's own. A CA becomes the next of its kind; the first of a kind
// becomes current. It returns the names of the CAs, and an error for any
// certificate that nobody asked for: nothing is installed then.
func (r Rotation) Install(certificates []byte) (names []string, err error) {
	certs, err := mtls.ParseCertificates(certificates)
	if err != nil {
		return nil, err
	}
	err = r.change(func(reg *register) error {
		roots, certs := r.roots(certs)
		var records []audit.Record
		for _, cert := range certs {
			g, err := r.requester(reg, cert)
			if err != nil {
				return err
			}
			kind, err := kindNamed(g.Kind)
			if err != nil {
				return err
			}
			if err := checkCA(cert, kind, roots); err != nil {
				return fmt.Errorf("the certificate for %s is %w", g.Name, err)
			}
			state := Next
			if reg.of(kind, Current) == nil {
				state = Current
			}
			g.move(state, r.now())
			if kind == kindServer {
				reg.settle(r.now())
			}
			names = append(names, g.Name)
			records = append(records, r.record("authority.installed", g, "sha256", fingerprint(cert)))
			if err := r.writer()(filepath.Join(r.Dir, g.Name+".crt"), certificatesText([][]byte{cert.Raw})); err != nil {
				return err
			}
		}
		if len(names) == 0 {
			return errors.New("there is no issuing CA's certificate among these")
		}
		var chain [][]byte
		for _, root := range roots {
			chain = append(chain, root.Raw)
		}
		if text := certificatesText(chain); !sameFile(filepath.Join(r.Dir, rootFile+".crt"), text) {
			if err := r.writer()(filepath.Join(r.Dir, rootFile+".crt"), text); err != nil {
				return err
			}
		}
		return r.recorded(records)
	})
	return names, err
}

// roots returns the roots that are known with those among certs, and the rest
// of certs. A root is trusted with nothing but having signed a CA for a key
// that was made here.
func (r Rotation) roots(certs []*x509.Certificate) (roots, rest []*x509.Certificate) {
	roots, _ = mtls.ReadCertificates(filepath.Join(r.Dir, rootFile+".crt"))
	for _, cert := range certs {
		switch {
		case !isRoot(cert):
			rest = append(rest, cert)
		case !slices.ContainsFunc(roots, cert.Equal):
			roots = append(roots, cert)
		}
	}
	return roots, rest
}

func isRoot(cert *x509.Certificate) bool {
	return cert.IsCA && cert.Subject.CommonName == rootName && cert.CheckSignatureFrom(cert) == nil
}

// requester returns the generation that waits for this certificate.
func (r Rotation) requester(reg *register, cert *x509.Certificate) (*generation, error) {
	for i, g := range reg.Generations {
		if g.State != Requested {
			continue
		}
		key, err := openKey(filepath.Join(r.Dir, g.Name+".key"))
		if err != nil {
			return nil, err
		}
		if samePublic(cert.PublicKey, key.Public()) {
			return &reg.Generations[i], nil
		}
	}
	return nil, fmt.Errorf("no request waits for the certificate of %s with SHA-256 %s", cert.Subject.CommonName, fingerprint(cert))
}

// settle notes that whom agents trust has changed.
func (reg *register) settle(now time.Time) {
	reg.TrustSettled = now.Add(settleAfter + time.Second).Truncate(time.Second)
}

func (r Rotation) now() time.Time {
	if r.Now == nil {
		return time.Now()
	}
	return r.Now()
}

func (r Rotation) writer() func(string, []byte) error {
	if r.write == nil {
		return writeFile
	}
	return r.write
}

func (r Rotation) change(do func(*register) error) error {
	return keep{r.Dir, r.writer()}.change(do)
}

func (r Rotation) record(kind string, g *generation, details ...string) audit.Record {
	d := map[string]string{"ca": g.Name, "state": string(g.State)}
	for i := 0; i+1 < len(details); i += 2 {
		d[details[i]] = details[i+1]
	}
	return audit.Record{At: r.now(), Kind: kind, Actor: actor, Details: d}
}

func (r Rotation) recorded(records []audit.Record) error {
	if r.Record == nil {
		return nil
	}
	return r.Record(records...)
}

// there says whether a generation's files are there, perhaps of a change that
// was never committed.
func there(dir, name string) bool {
	for _, ending := range []string{".key", ".crt"} {
		if _, err := os.Lstat(filepath.Join(dir, name+ending)); err == nil {
			return true
		}
	}
	return false
}

func remove(dir, file string) error {
	if err := os.Remove(filepath.Join(dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(dir)
}
