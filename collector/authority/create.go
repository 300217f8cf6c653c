package authority

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
)

// Options is what Create has to know.
type Options struct {
	// Organisation is shown in the names of the CAs; empty: "Pförtner".
	Organisation string
	// Collector is the name of this collector; empty: "collector".
	Collector string
	// DNSNames and Addresses are what agents, gates and operators dial: at
	// least one of them.
	DNSNames  []string
	Addresses []net.IP
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

func (o *Options) complete() error {
	if len(o.DNSNames)+len(o.Addresses) == 0 {
		return errors.New("no name or address of the collector")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Organisation == "" {
		o.Organisation = defaultOrganisation
	}
	if o.Collector == "" {
		o.Collector = "collector"
	}
	return nil
}

const defaultOrganisation = "Pförtner"

// Create makes root, issuing CAs and the collector's own certificates in dir,
// all or nothing. In a directory where an offline root's CAs were installed and
// nothing else is missing it makes the collector's own certificates. It returns
// an error wrapping fs.ErrExist for any other directory that is there and not
// empty: nothing is ever overwritten.
func Create(dir string, o Options) (*Authority, error) {
	if err := build(dir, o); err != nil {
		return nil, fmt.Errorf("creating authority: %w", err)
	}
	return Load(dir, o.Now)
}

func build(dir string, o Options) error {
	if err := o.complete(); err != nil {
		return err
	}
	if installed(dir) {
		return completeOwn(dir, o)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is in use: %w", dir, fs.ErrExist)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	draft, err := os.MkdirTemp(filepath.Dir(dir), ".pki-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(draft)
	if err := fill(draft, o); err != nil {
		return err
	}
	if err := os.Rename(draft, dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// installed says whether the directory holds CAs by an offline root, and no
// certificates of the collector yet.
func installed(dir string) bool {
	text, err := registerText(dir)
	if err != nil || text == nil {
		return false
	}
	r, err := parseRegister(text)
	if err != nil {
		return false
	}
	for _, k := range issuingKinds {
		if !k.optional && r.of(k, Current) == nil {
			return false
		}
	}
	_, err = os.Stat(filepath.Join(dir, leaseSignerFile+".crt"))
	return errors.Is(err, fs.ErrNotExist)
}

// fill writes everything that belongs into a new authority's directory.
func fill(dir string, o Options) error {
	key, err := attest.NewKey()
	if err != nil {
		return err
	}
	root, err := newRoot(o.Organisation, key, o.Now())
	if err != nil {
		return err
	}
	if err := writePair(dir, rootFile, [][]byte{root.cert.Raw}, root.key); err != nil {
		return err
	}
	for _, kind := range issuingKinds {
		if kind.optional {
			continue
		}
		key, err := attest.NewKey()
		if err != nil {
			return err
		}
		cert, err := root.signCA(kind, root.cert.Subject.Organization, &key.PublicKey, o.Now())
		if err != nil {
			return err
		}
		if err := writePair(dir, kind.file, [][]byte{cert.Raw}, key); err != nil {
			return err
		}
	}
	return completeOwn(dir, o)
}

// completeOwn makes the collector's own certificates; the lease signer's is the
// last, so that a directory without it is not complete.
func completeOwn(dir string, o Options) error {
	server, err := currentIssuer(dir, kindServer)
	if err != nil {
		return err
	}
	key, err := attest.NewKey()
	if err != nil {
		return err
	}
	err = issueOwn(server, dir, collectorFile, key, o.Now(), request{
		role: mtls.RoleCollector, name: o.Collector, key: &key.PublicKey,
		dns: o.DNSNames, addresses: o.Addresses, lifetime: PeerLifetime,
	})
	if err != nil {
		return err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	return issueOwn(server, dir, leaseSignerFile, private, o.Now(), request{
		role: mtls.RoleLeaseSigner, name: o.Collector, key: public, lifetime: PeerLifetime,
	})
}

func issueOwn(server issuer, dir, file string, key crypto.Signer, now time.Time, r request) error {
	cert, err := server.issue(r, now)
	if err != nil {
		return err
	}
	return writePair(dir, file, cert.Chain, key)
}

// currentIssuer reads the CA of a kind that issues now.
func currentIssuer(dir string, kind issuingKind) (issuer, error) {
	r, err := readRegister(dir)
	if err != nil {
		return issuer{}, err
	}
	roots, err := mtls.ReadCertificates(filepath.Join(dir, rootFile+".crt"))
	if err != nil {
		return issuer{}, err
	}
	h := held{issuers: map[string]issuer{}, accepted: map[string][]acceptance{}}
	if g := r.of(kind, Current); g != nil {
		err = h.take(dir, *g, roots)
	}
	return h.issuers[kind.file], err
}
