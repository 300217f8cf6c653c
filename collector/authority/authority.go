// Package authority is the collector's certificate authority: an offline root,
// and under it one issuing CA for each kind of peer.
//
// Rules. A listener trusts one issuing CA only, never the root: a device's
// certificate is worthless to an operator. Issuing CAs cannot make further
// CAs. The root's key is needed only to make issuing CAs: take root-ca.key off
// the machine after Create. Device certificates live 72 hours; what revokes a
// device earlier is its state in the registry, not a list.
package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
)

// Lives of certificates.
const (
	// DeviceLifetime and DeviceRenewAfter: a notebook that was away over a long
	// weekend still has a valid certificate.
	DeviceLifetime   = 72 * time.Hour
	DeviceRenewAfter = 24 * time.Hour
	// PeerLifetime is that of gates, operators, collectors and signers.
	PeerLifetime = 365 * 24 * time.Hour

	rootLifetime    = 20 * 365 * 24 * time.Hour
	issuingLifetime = 10 * 365 * 24 * time.Hour
	// clockSkew is how far a peer's clock may be behind ours.
	clockSkew = 5 * time.Minute
)

// ReferenceSignerFile is the name, without its ending, of certificate and key
// in a bundle of WriteReferenceSigner.
const ReferenceSignerFile = "reference-signer"

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

// Authority issues certificates. Its methods may be called concurrently.
type Authority struct {
	dir string
	now func() time.Time

	device, gate, operator, server issuer

	mu        sync.RWMutex // guards what Renew replaces
	collector *tls.Certificate
	signer    *tls.Certificate
}

// Create makes root, issuing CAs and the collector's own certificates in dir,
// all or nothing. It returns an error wrapping fs.ErrExist when dir is there
// and not empty: nothing is ever overwritten.
func Create(dir string, o Options) (*Authority, error) {
	if len(o.DNSNames)+len(o.Addresses) == 0 {
		return nil, errors.New("creating authority: no name or address of the collector")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Organisation == "" {
		o.Organisation = "Pförtner"
	}
	if o.Collector == "" {
		o.Collector = "collector"
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("creating authority: %s is in use: %w", dir, fs.ErrExist)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("creating authority: %w", err)
	}
	draft, err := os.MkdirTemp(filepath.Dir(dir), ".pki-*")
	if err != nil {
		return nil, fmt.Errorf("creating authority: %w", err)
	}
	defer os.RemoveAll(draft)
	if err := fill(draft, o); err != nil {
		return nil, fmt.Errorf("creating authority: %w", err)
	}
	if err := os.Rename(draft, dir); err != nil {
		return nil, fmt.Errorf("creating authority: %w", err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return nil, fmt.Errorf("creating authority: %w", err)
	}
	return Load(dir, o.Now)
}

// fill writes everything that belongs into a new authority's directory.
func fill(dir string, o Options) error {
	now := o.Now()
	root, err := newRoot(o.Organisation, now)
	if err != nil {
		return err
	}
	if err := writePair(dir, "root-ca", [][]byte{root.cert.Raw}, root.key); err != nil {
		return err
	}
	var server issuer
	for _, kind := range issuingKinds {
		ca, err := root.newIssuing(o.Organisation, kind, now)
		if err != nil {
			return err
		}
		if err := writePair(dir, kind.file, [][]byte{ca.cert.Raw}, ca.key); err != nil {
			return err
		}
		if kind == kindServer {
			server = ca
		}
	}
	key, err := attest.NewKey()
	if err != nil {
		return err
	}
	cert, err := server.issue(request{
		role: mtls.RoleCollector, name: o.Collector, key: &key.PublicKey,
		dns: o.DNSNames, addresses: o.Addresses, lifetime: PeerLifetime,
	}, now)
	if err != nil {
		return err
	}
	if err := writePair(dir, "collector", cert.Chain, key); err != nil {
		return err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	cert, err = server.issue(request{role: mtls.RoleLeaseSigner, name: o.Collector, key: public, lifetime: PeerLifetime}, now)
	if err != nil {
		return err
	}
	return writePair(dir, "lease-signer", cert.Chain, private)
}

// Load reads an authority that Create made. The root's key may be absent. A
// nil clock is time.Now.
func Load(dir string, now func() time.Time) (*Authority, error) {
	if now == nil {
		now = time.Now
	}
	a := &Authority{dir: dir, now: now}
	roots, err := mtls.ReadCertificates(filepath.Join(dir, "root-ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("loading authority: %w", err)
	}
	for _, ca := range []struct {
		kind issuingKind
		into *issuer
	}{
		{kindDevice, &a.device}, {kindGate, &a.gate}, {kindOperator, &a.operator}, {kindServer, &a.server},
	} {
		if *ca.into, err = loadIssuer(dir, ca.kind, roots[0]); err != nil {
			return nil, fmt.Errorf("loading authority: %w", err)
		}
	}
	if a.collector, err = readPair(dir, "collector"); err != nil {
		return nil, fmt.Errorf("loading authority: %w", err)
	}
	if a.signer, err = readPair(dir, "lease-signer"); err != nil {
		return nil, fmt.Errorf("loading authority: %w", err)
	}
	if _, ok := a.signer.PrivateKey.(ed25519.PrivateKey); !ok {
		return nil, errors.New("loading authority: lease-signer.key is not an Ed25519 key")
	}
	return a, nil
}

// Certificate is an issued certificate.
type Certificate struct {
	// Chain is the certificate and its issuing CA, DER.
	Chain [][]byte
	// Serial is the serial number in hexadecimal.
	Serial string
	// NotAfter is its end, RenewAfter when its holder should ask for the next.
	NotAfter, RenewAfter time.Time
}

// IssueDevice issues a device certificate for an ECDSA P-256 key. The device
// id is a UUID in canonical form.
func (a *Authority) IssueDevice(deviceID string, key crypto.PublicKey) (*Certificate, error) {
	return a.device.issue(request{
		role: mtls.RoleDevice, name: deviceID, key: key, lifetime: DeviceLifetime, renewAfter: DeviceRenewAfter,
	}, a.now())
}

// IssueGate issues a gateway's certificate.
func (a *Authority) IssueGate(name string, key crypto.PublicKey) (*Certificate, error) {
	return a.gate.issue(request{role: mtls.RoleGate, name: name, key: key, lifetime: PeerLifetime}, a.now())
}

// IssueOperator issues an operator's certificate.
func (a *Authority) IssueOperator(name string, key crypto.PublicKey) (*Certificate, error) {
	return a.operator.issue(request{role: mtls.RoleOperator, name: name, key: key, lifetime: PeerLifetime}, a.now())
}

// Devices, Gates, Operators and Servers are the pools that listeners and
// clients verify against. Each holds the issuing CA of its role and nothing
// else.
func (a *Authority) Devices() *x509.CertPool { return a.device.pool() }

// Gates: see Devices.
func (a *Authority) Gates() *x509.CertPool { return a.gate.pool() }

// Operators: see Devices.
func (a *Authority) Operators() *x509.CertPool { return a.operator.pool() }

// Servers: see Devices.
func (a *Authority) Servers() *x509.CertPool { return a.server.pool() }

// TrustBundle is the server CAs that agents trust, DER: what Issued carries.
func (a *Authority) TrustBundle() [][]byte { return [][]byte{a.server.cert.Raw} }

// ServerCertificate returns the collector's own certificate; it fits
// mtls.ServerOptions.Certificate.
func (a *Authority) ServerCertificate() (*tls.Certificate, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.collector, nil
}

// LeaseSigner returns the key that signs leases and its chain (leaf first,
// DER), which gates verify with mtls.VerifyLeaseSigner.
func (a *Authority) LeaseSigner() (ed25519.PrivateKey, [][]byte) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.signer.PrivateKey.(ed25519.PrivateKey), a.signer.Certificate // Load has checked the type
}

// Renew issues the collector's and the lease signer's certificates anew, for
// the same keys and names, when less than a third of their life is left. Call
// it at start and at least daily.
func (a *Authority) Renew() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for file, pair := range map[string]**tls.Certificate{"collector": &a.collector, "lease-signer": &a.signer} {
		old := (*pair).Leaf
		now := a.now()
		if left := old.NotAfter.Sub(now); left >= old.NotAfter.Sub(old.NotBefore)/3 {
			continue
		}
		role, name, err := mtls.Identity(old)
		if err != nil {
			return fmt.Errorf("renewing %s.crt: %w", file, err)
		}
		cert, err := a.server.issue(request{
			role: role, name: name, key: old.PublicKey,
			dns: old.DNSNames, addresses: old.IPAddresses, lifetime: PeerLifetime,
		}, now)
		if err != nil {
			return fmt.Errorf("renewing %s.crt: %w", file, err)
		}
		if err := writeCertificates(filepath.Join(a.dir, file+".crt"), cert.Chain); err != nil {
			return fmt.Errorf("renewing %s.crt: %w", file, err)
		}
		if *pair, err = readPair(a.dir, file); err != nil {
			return fmt.Errorf("renewing %s.crt: %w", file, err)
		}
	}
	return nil
}

// WriteOperator makes a key and certificate for an operator and writes
// operator.crt, operator.key and server-ca.crt into dir.
func (a *Authority) WriteOperator(dir, name string) error {
	return a.writeBundle(dir, "operator", func(key crypto.PublicKey) (*Certificate, error) {
		return a.IssueOperator(name, key)
	})
}

// WriteGate makes a key and certificate for a gateway and writes gate.crt,
// gate.key and server-ca.crt into dir.
func (a *Authority) WriteGate(dir, name string) error {
	return a.writeBundle(dir, "gate", func(key crypto.PublicKey) (*Certificate, error) {
		return a.IssueGate(name, key)
	})
}

// WriteReferenceSigner makes a key and certificate that sign reference values
// and VPN catalogues (internal/signed), and writes reference-signer.crt,
// reference-signer.key and server-ca.crt into dir.
func (a *Authority) WriteReferenceSigner(dir, name string) error {
	return a.writeBundle(dir, ReferenceSignerFile, func(key crypto.PublicKey) (*Certificate, error) {
		return a.server.issue(request{role: mtls.RoleReferenceSigner, name: name, key: key, lifetime: PeerLifetime}, a.now())
	})
}

func (a *Authority) writeBundle(dir, file string, issue func(crypto.PublicKey) (*Certificate, error)) error {
	key, err := attest.NewKey()
	if err != nil {
		return err
	}
	cert, err := issue(&key.PublicKey)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := writeCertificates(filepath.Join(dir, "server-ca.crt"), a.TrustBundle()); err != nil {
		return err
	}
	return writePair(dir, file, cert.Chain, key)
}

// keyAllowed keeps lease signers to Ed25519 and all others to ECDSA P-256.
func keyAllowed(role mtls.Role, key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if role != mtls.RoleLeaseSigner && k.Curve.Params().Name == "P-256" {
			return nil
		}
	case ed25519.PublicKey:
		if role == mtls.RoleLeaseSigner {
			return nil
		}
	}
	return fmt.Errorf("a %s certificate is not issued for a key of type %T", role, key)
}

func subject(organisation, name string) pkix.Name {
	return pkix.Name{Organization: []string{organisation}, CommonName: name}
}
