package authority

import (
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pfoertner/collector/audit"
	"pfoertner/internal/mtls"
)

// ErrTooEarly is the error of Switch while not everybody knows the next CA yet.
var ErrTooEarly = errors.New("too early")

// Switch lets the next CA of a kind issue from now on; the current one retires.
// It returns an error wrapping ErrTooEarly, unless early, before the overlap is
// over.
func (r Rotation) Switch(name string, early bool) error {
	return r.change(func(reg *register) error {
		kind, err := kindNamed(name)
		if err != nil {
			return err
		}
		next := reg.of(kind, Next)
		if next == nil {
			return fmt.Errorf("there is no next %s: rotate first", kind.title)
		}
		if from := next.Since.Add(kind.overlap); r.now().Before(from) && !early {
			return fmt.Errorf("%w: not everybody who verifies certificates under %s knows it before %s",
				ErrTooEarly, next.Name, from.UTC().Format(time.RFC3339))
		}
		// The key is tried now: afterwards nothing could be issued without it.
		if err := r.tryKey(next, kind); err != nil {
			return err
		}
		was, err := r.succeed(reg, kind, next)
		if err != nil {
			return err
		}
		return r.recorded([]audit.Record{r.record("authority.switched", next, "from", was, "early", fmt.Sprint(early))})
	})
}

// SwitchBack undoes a Switch: the CA that retired last is current again, and
// the current one the next.
func (r Rotation) SwitchBack(name string) error {
	return r.change(func(reg *register) error {
		kind, err := kindNamed(name)
		if err != nil {
			return err
		}
		var before *generation
		for i := range reg.Generations {
			g := &reg.Generations[i]
			if g.Kind == name && g.State == Retiring && !g.gone(r.now()) && (before == nil || !g.Since.Before(before.Since)) {
				before = g
			}
		}
		current := reg.of(kind, Current)
		if before == nil || current == nil || reg.of(kind, Next) != nil {
			return fmt.Errorf("there is no switch of the %s to undo", kind.title)
		}
		if err := r.tryKey(before, kind); err != nil {
			return err
		}
		current.move(Next, r.now())
		before.move(Current, r.now())
		return r.recorded([]audit.Record{r.record("authority.switched_back", before, "from", current.Name)})
	})
}

// Revoke ends a CA at once, named by its SHA-256 or its name: nothing under it
// is accepted any more, and its key is removed. Of a current one the next takes
// over without delay; without a next, alone allows that nothing is issued until
// there is one.
func (r Rotation) Revoke(which, reason string, alone bool) error {
	var name string
	err := r.change(func(reg *register) error {
		g, kind, err := r.find(reg, which)
		if err != nil {
			return err
		}
		if g.State == Revoked {
			return fmt.Errorf("%s is revoked already", g.Name)
		}
		name = g.Name
		next := reg.of(kind, Next)
		if g.State == Current && next == nil && !alone {
			return fmt.Errorf("%s is current and has no successor: rotate first, or nothing can be issued afterwards", g.Name)
		}
		if g.State == Current && next != nil {
			if _, err := r.succeed(reg, kind, next); err != nil {
				return err
			}
		}
		g.move(Revoked, r.now())
		if kind == kindServer {
			reg.settle(r.now())
		}
		return r.recorded([]audit.Record{r.record("authority.revoked", g, "reason", reason)})
	})
	if err != nil {
		return err
	}
	return remove(r.Dir, name+".key")
}

// Tidy removes the retired CAs under which nothing can be valid any more.
func (r Rotation) Tidy() error {
	var ended []string
	err := r.change(func(reg *register) error {
		var records []audit.Record
		reg.Generations = slices.DeleteFunc(reg.Generations, func(g generation) bool {
			if !g.gone(r.now()) {
				return false
			}
			ended = append(ended, g.Name)
			records = append(records, r.record("authority.ended", &g))
			return true
		})
		if len(ended) == 0 {
			return errNothingToDo
		}
		return r.recorded(records)
	})
	if errors.Is(err, errNothingToDo) {
		return nil
	}
	for _, name := range ended {
		if err == nil {
			err = errors.Join(remove(r.Dir, name+".key"), remove(r.Dir, name+".crt"))
		}
	}
	return err
}

var errNothingToDo = errors.New("nothing to do")

// succeed makes next current and retires who was; it returns its name.
func (r Rotation) succeed(reg *register, kind issuingKind, next *generation) (was string, err error) {
	if current := reg.of(kind, Current); current != nil {
		cert, err := r.certificate(current)
		if err != nil {
			return "", err
		}
		was = current.Name
		current.retire(kind, cert, r.now())
	}
	next.move(Current, r.now())
	return was, nil
}

// tryKey signs with a CA's key, as issuing will.
func (r Rotation) tryKey(g *generation, kind issuingKind) error {
	cert, err := r.certificate(g)
	if err != nil {
		return err
	}
	key, err := openKey(filepath.Join(r.Dir, g.Name+".key"))
	if err != nil {
		return err
	}
	if !samePublic(cert.PublicKey, key.Public()) {
		return fmt.Errorf("%s.key does not belong to %s.crt", g.Name, g.Name)
	}
	if _, err := newRequest(kind, "", key); err != nil {
		return fmt.Errorf("trying the key of %s: %w", g.Name, err)
	}
	return nil
}

func (r Rotation) certificate(g *generation) (*x509.Certificate, error) {
	certs, err := mtls.ReadCertificates(filepath.Join(r.Dir, g.Name+".crt"))
	if err != nil {
		return nil, err
	}
	return certs[0], nil
}

// find returns the generation with this name or whose certificate's SHA-256
// begins with it.
func (r Rotation) find(reg *register, which string) (*generation, issuingKind, error) {
	which = strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(which))
	var found *generation
	for i := range reg.Generations {
		g := &reg.Generations[i]
		cert, err := r.certificate(g)
		byPrint := err == nil && len(which) >= 16 && strings.HasPrefix(fingerprint(cert), which)
		if g.Name == which || byPrint {
			found = g
			break
		}
	}
	if found == nil {
		return nil, issuingKind{}, fmt.Errorf("%q is neither the name nor (16 digits or more) the SHA-256 of an issuing CA", which)
	}
	kind, err := kindNamed(found.Kind)
	return found, kind, err
}
