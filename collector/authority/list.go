package authority

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
)

// Entry is one certificate and key of an authority.
type Entry struct {
	// Name is that of its files.
	Name string `json:"name"`
	// Role is what it is for.
	Role string `json:"role"`
	// State is empty for what has none: the root, and the collector's own.
	State State `json:"state,omitempty"`
	// SHA256 is the certificate's, in hexadecimal; for a request, which has
	// none, the key's fingerprint.
	SHA256 string `json:"sha256"`
	// NotAfter is the certificate's end; zero: there is none.
	NotAfter time.Time `json:"not_after,omitzero"`
	// Until is, for a retiring CA, when its last certificate ends.
	Until time.Time `json:"accepted_until,omitzero"`
	// Key is where the key is: file, agent, or empty: not here.
	Key string `json:"key,omitempty"`
}

// List returns all certificates and keys of the authority in dir, and what its
// administrators should look after.
func List(dir string, now time.Time) (entries []Entry, warnings []string, err error) {
	r, err := readRegister(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("listing authority: %w", err)
	}
	l := lister{dir: dir, now: now}
	if roots, err := mtls.ReadCertificates(filepath.Join(dir, rootFile+".crt")); err == nil {
		for _, root := range roots {
			l.entries = append(l.entries, Entry{Name: rootFile, Role: "root", SHA256: fingerprint(root), NotAfter: root.NotAfter, Key: keyPlace(dir, rootFile)})
			l.ends(rootFile, root.NotAfter, yearBefore)
		}
	}
	if keyPlace(dir, rootFile) != "" {
		l.warn("the root's key is on this machine: whoever takes this machine over can make CAs; move it away (ca move-root)")
	}
	for _, kind := range issuingKinds {
		l.kind(r, kind)
	}
	for _, own := range []struct{ file, role string }{
		{collectorFile, string(mtls.RoleCollector)}, {leaseSignerFile, string(mtls.RoleLeaseSigner)},
	} {
		certs, err := mtls.ReadCertificates(filepath.Join(dir, own.file+".crt"))
		if err != nil {
			l.warn(fmt.Sprintf("%s.crt cannot be read: run pfoertner-collector init if it was never made", own.file))
			continue
		}
		l.entries = append(l.entries, Entry{Name: own.file, Role: own.role, SHA256: fingerprint(certs[0]), NotAfter: certs[0].NotAfter, Key: keyPlace(dir, own.file)})
		l.ends(own.file, certs[0].NotAfter, monthBefore)
	}
	l.strays(r)
	return l.entries, l.warnings, nil
}

// When List begins to warn of an end.
const (
	yearBefore  = 365 * 24 * time.Hour
	monthBefore = 30 * 24 * time.Hour
)

type lister struct {
	dir      string
	now      time.Time
	entries  []Entry
	warnings []string
}

func (l *lister) warn(text string) { l.warnings = append(l.warnings, text) }

func (l *lister) ends(name string, at time.Time, early time.Duration) {
	switch {
	case !l.now.Before(at):
		l.warn(fmt.Sprintf("%s has ended on %s", name, at.Format(time.DateOnly)))
	case l.now.Add(early).After(at):
		l.warn(fmt.Sprintf("%s ends on %s", name, at.Format(time.DateOnly)))
	}
}

func (l *lister) kind(r register, kind issuingKind) {
	wanted := !kind.optional
	for _, g := range r.Generations {
		if g.Kind != kind.name() || g.gone(l.now) {
			continue
		}
		wanted = true
		e := Entry{Name: g.Name, Role: kind.title, State: g.State, Until: g.Until, Key: keyPlace(l.dir, g.Name)}
		if g.State == Requested {
			if key, err := openKey(filepath.Join(l.dir, g.Name+".key")); err == nil {
				e.SHA256, _ = attest.Fingerprint(key.Public())
			}
			l.warn(fmt.Sprintf("%s waits for its certificate: sign the request at the root and install it", g.Name))
		} else if cert := l.certificate(g.Name); cert != nil {
			e.SHA256, e.NotAfter = fingerprint(cert), cert.NotAfter
			if g.State == Current && r.of(kind, Next) == nil {
				l.ends(g.Name, cert.NotAfter, 2*yearBefore)
			}
		}
		if g.State == Next {
			if from := g.Since.Add(kind.overlap); l.now.Before(from) {
				l.warn(fmt.Sprintf("%s may be switched to from %s", g.Name, from.UTC().Format("2006-01-02 15:04 UTC")))
			}
		}
		if g.State == Revoked && e.Key != "" {
			l.warn(fmt.Sprintf("%s is revoked, but its key is still here", g.Name))
		}
		l.entries = append(l.entries, e)
	}
	if wanted && r.of(kind, Current) == nil {
		l.warn(fmt.Sprintf("there is no current %s: nothing can be issued under it", kind.title))
	}
}

func (l *lister) certificate(name string) *x509.Certificate {
	certs, err := mtls.ReadCertificates(filepath.Join(l.dir, name+".crt"))
	if err != nil {
		l.warn(fmt.Sprintf("%s.crt cannot be read", name))
		return nil
	}
	return certs[0]
}

// strays finds keys that nothing refers to: of a change that was broken off.
func (l *lister) strays(r register) {
	known := map[string]bool{rootFile: true, collectorFile: true, leaseSignerFile: true}
	for _, g := range r.Generations {
		known[g.Name] = true
	}
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		l.warn("the directory cannot be listed: " + err.Error())
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".key"); ok && !known[name] {
			l.warn(fmt.Sprintf("%s belongs to nothing: a change was broken off; remove it", e.Name()))
		}
	}
}

// keyPlace says where a key is; empty: not here.
func keyPlace(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name+".key"))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if block, _ := pem.Decode(text); err != nil || block == nil {
		return "unreadable"
	} else if block.Type == agentType {
		return "agent"
	}
	return "file"
}
