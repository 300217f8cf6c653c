// Package authority is the collector's certificate authority: an offline root,
// and under it issuing CAs, one for each kind of peer, which can be replaced
// without that a peer notices.
//
// Rules. A listener trusts the issuing CAs of one kind only, never the root: a
// device's certificate is worthless to an operator. Issuing CAs cannot make
// further CAs. The root's key is needed only to make issuing CAs: it belongs on
// another machine (root.go). Of each kind one CA issues; its successor is
// accepted and handed out before, its predecessor as long as anything under it
// lives (rotation.go). Which is which stands in one file (generations.go), and
// everything that is changed is recorded before it is. Device certificates live
// 72 hours; what revokes a device earlier is its state in the registry, not a
// list.
package authority

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pfoertner/collector/audit"
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
	// ServerOverlap is how long the next server CA is handed out before it
	// issues: as long as a notebook may have been away and come back by itself.
	ServerOverlap = 90 * 24 * time.Hour
	// VPNLifetime is that of VPN clients, unless it is configured; at least a
	// day, at most maxVPNLifetime.
	VPNLifetime = 30 * 24 * time.Hour
	// VPNOverlap is how long administrators have to bring the next VPN CA to
	// their gateways before it issues.
	VPNOverlap = 30 * 24 * time.Hour

	minVPNLifetime = 24 * time.Hour
	maxVPNLifetime = 366 * 24 * time.Hour

	rootLifetime    = 20 * 365 * 24 * time.Hour
	issuingLifetime = 10 * 365 * 24 * time.Hour
	// clockSkew is how far a peer's clock may be behind ours.
	clockSkew = 5 * time.Minute

	// followEvery is how soon a running collector sees a change.
	followEvery = 5 * time.Second
	// ownOverlap is for CAs whose certificates only collectors verify.
	ownOverlap = time.Minute
	// settleAfter is when every collector surely works with a change.
	settleAfter = 3 * followEvery
)

// FollowEvery is how often a running collector has to call Follow.
const FollowEvery = followEvery

// Recorder writes records to the audit log. What it is told has not happened
// yet, and does not if it returns an error.
type Recorder func(...audit.Record) error

// Authority issues certificates. Its methods may be called concurrently.
type Authority struct {
	dir    string
	now    func() time.Time
	record Recorder

	mu sync.RWMutex // guards what Follow and Renew replace
	held
}

// held is what was read from the directory.
type held struct {
	register []byte
	settled  time.Time
	// issuers holds the current CA of each kind, by file. A kind without one
	// issues nothing.
	issuers map[string]issuer
	// accepted holds the CAs of each kind, by file, the current one first.
	accepted  map[string][]acceptance
	collector *tls.Certificate
	signer    *tls.Certificate
	// vpnRevoked is when a VPN CA was revoked last; zero: none was.
	vpnRevoked time.Time
}

// acceptance is a CA whose certificates are accepted.
type acceptance struct {
	cert *x509.Certificate
	generation
}

// Load reads an authority. The root's key may be absent. A nil clock is
// time.Now. It returns an error that wraps fs.ErrNotExist when there is none.
func Load(dir string, now func() time.Time) (*Authority, error) {
	if now == nil {
		now = time.Now
	}
	h, err := read(dir)
	if err != nil {
		return nil, fmt.Errorf("loading authority: %w", err)
	}
	return &Authority{dir: dir, now: now, held: h, record: func(...audit.Record) error { return nil }}, nil
}

// RecordTo has everything that is issued from now on recorded, but for device
// certificates: those who ask for them record more. Call it before anything
// else.
func (a *Authority) RecordTo(r Recorder) { a.record = r }

func read(dir string) (h held, err error) {
	// Of a register that changes meanwhile the older text is kept: the next
	// Follow reads again.
	if h.register, err = registerText(dir); err != nil {
		return held{}, err
	}
	r, err := readRegister(dir)
	if err != nil {
		return held{}, err
	}
	roots, err := mtls.ReadCertificates(filepath.Join(dir, rootFile+".crt"))
	if err != nil {
		return held{}, err
	}
	h.settled, h.issuers, h.accepted = r.TrustSettled, map[string]issuer{}, map[string][]acceptance{}
	h.vpnRevoked = lastRevoked(r, kindVPN)
	for _, s := range []State{Current, Next, Retiring} {
		for _, g := range r.Generations {
			if g.State != s {
				continue
			}
			if err := h.take(dir, g, roots); err != nil {
				return held{}, err
			}
		}
	}
	if h.collector, err = readPair(dir, collectorFile); err != nil {
		return held{}, err
	}
	if h.signer, err = readPair(dir, leaseSignerFile); err != nil {
		return held{}, err
	}
	if _, ok := h.signer.PrivateKey.(ed25519.PrivateKey); !ok {
		return held{}, errors.New("lease-signer.key is not an Ed25519 key")
	}
	return h, nil
}

// take reads one accepted CA, and its key if it issues.
func (h *held) take(dir string, g generation, roots []*x509.Certificate) error {
	kind, err := kindNamed(g.Kind)
	if err != nil {
		return err
	}
	cert, err := readCA(dir, g.Name, kind, roots)
	if err != nil {
		return err
	}
	h.accepted[kind.file] = append(h.accepted[kind.file], acceptance{cert, g})
	if g.State != Current {
		return nil
	}
	key, err := openKey(filepath.Join(dir, g.Name+".key"))
	if err != nil {
		return err
	}
	if !samePublic(cert.PublicKey, key.Public()) {
		return fmt.Errorf("%s.key does not belong to %s.crt", g.Name, g.Name)
	}
	h.issuers[kind.file] = issuer{cert, key}
	return nil
}

// Follow reads the directory again if its register has changed, says whether it
// has, and returns the kinds of which a CA was revoked: connections under it
// have to end. Without a change it is cheap. After an error the authority is
// what it was before.
func (a *Authority) Follow() (changed bool, revoked []string, err error) {
	text, err := registerText(a.dir)
	if err != nil {
		return false, nil, fmt.Errorf("following authority: %w", err)
	}
	a.mu.RLock()
	same := bytes.Equal(text, a.register)
	a.mu.RUnlock()
	if same {
		return false, nil, nil
	}
	fresh, err := read(a.dir)
	if err != nil {
		return false, nil, fmt.Errorf("following authority: %w", err)
	}
	r, err := readRegister(a.dir)
	if err != nil {
		return false, nil, fmt.Errorf("following authority: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range issuingKinds {
		for _, was := range a.accepted[k.file] {
			if r.stateOf(was.Name) == Revoked {
				revoked = append(revoked, k.name())
			}
		}
	}
	a.held = fresh
	return true, revoked, nil
}

func registerText(dir string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, registerFile))
	if os.IsNotExist(err) {
		return nil, nil
	}
	return text, err
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
// id is a UUID in canonical form. A lifetime of zero, or beyond it, is
// DeviceLifetime.
func (a *Authority) IssueDevice(deviceID string, key crypto.PublicKey, lifetime time.Duration) (*Certificate, error) {
	if lifetime <= 0 || lifetime > DeviceLifetime {
		lifetime = DeviceLifetime
	}
	return a.issuer(kindDevice).issue(request{
		role: mtls.RoleDevice, name: deviceID, key: key, lifetime: lifetime, renewAfter: lifetime / 3,
	}, a.now())
}

// IssueGate issues a gateway's certificate.
func (a *Authority) IssueGate(name string, key crypto.PublicKey) (*Certificate, error) {
	return a.issue(kindGate, request{role: mtls.RoleGate, name: name, key: key, lifetime: PeerLifetime})
}

// IssueOperator issues an operator's certificate.
func (a *Authority) IssueOperator(name string, key crypto.PublicKey) (*Certificate, error) {
	return a.issue(kindOperator, request{role: mtls.RoleOperator, name: name, key: key, lifetime: PeerLifetime})
}

// issue issues a certificate that is recorded before anybody has it.
func (a *Authority) issue(kind issuingKind, r request) (*Certificate, error) {
	by := a.issuer(kind)
	cert, err := by.issue(r, a.now())
	if err != nil {
		return nil, err
	}
	return cert, a.record(audit.Record{At: a.now(), Kind: "certificate.issued", Actor: actor, Details: map[string]string{
		"role": string(r.role), "name": r.name, "serial": cert.Serial, "issuer_sha256": fingerprint(by.cert),
		"ends": cert.NotAfter.Format(time.RFC3339),
	}})
}

func (a *Authority) issuer(kind issuingKind) issuer {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.issuers[kind.file]
}

// Devices, Gates, Operators and Servers are the pools that listeners and
// clients verify against, as of now: ask at every handshake. Each holds the
// issuing CAs of its role that are current, next or retiring, and nothing else.
func (a *Authority) Devices() *x509.CertPool { return a.pool(kindDevice) }

// Gates: see Devices.
func (a *Authority) Gates() *x509.CertPool { return a.pool(kindGate) }

// Operators: see Devices.
func (a *Authority) Operators() *x509.CertPool { return a.pool(kindOperator) }

// Servers: see Devices.
func (a *Authority) Servers() *x509.CertPool { return a.pool(kindServer) }

func (a *Authority) pool(kind issuingKind) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, cert := range a.acceptedOf(kind) {
		pool.AddCert(cert)
	}
	return pool
}

func (a *Authority) acceptedOf(kind issuingKind) (certs []*x509.Certificate) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, x := range a.accepted[kind.file] {
		if !x.gone(a.now()) {
			certs = append(certs, x.cert)
		}
	}
	return certs
}

// TrustBundle is the server CAs that agents trust, DER, the current one first:
// what Issued carries.
func (a *Authority) TrustBundle() (bundle [][]byte) {
	for _, cert := range a.acceptedOf(kindServer) {
		bundle = append(bundle, cert.Raw)
	}
	return bundle
}

// RenewAfter is when the holder of a device certificate should ask for the
// next one: a third into its life, but as soon as the servers' CAs have changed
// since it was issued, because the new ones come with the next certificate.
func (a *Authority) RenewAfter(device *x509.Certificate) time.Time {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if device.NotBefore.Add(clockSkew).Before(a.settled) {
		return a.settled
	}
	return device.NotBefore.Add(device.NotAfter.Sub(device.NotBefore) / 3)
}

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
	return a.signer.PrivateKey.(ed25519.PrivateKey), a.signer.Certificate // read has checked the type
}

// Renew issues the collector's and the lease signer's certificates anew, for
// the same keys and names, when less than a third of their life is left or
// another CA has become current. Call it at start, after Follow and at least
// daily.
func (a *Authority) Renew() error {
	for _, file := range []string{collectorFile, leaseSignerFile} {
		if err := a.renew(file); err != nil {
			return fmt.Errorf("renewing %s.crt: %w", file, err)
		}
	}
	return nil
}

func (a *Authority) renew(file string) error {
	a.mu.RLock()
	pair, by := a.collector, a.issuers[kindServer.file]
	if file == leaseSignerFile {
		pair = a.signer
	}
	a.mu.RUnlock()
	old := pair.Leaf
	fresh := by.cert == nil || old.CheckSignatureFrom(by.cert) == nil
	if left := old.NotAfter.Sub(a.now()); fresh && left >= old.NotAfter.Sub(old.NotBefore)/3 {
		return nil
	}
	role, name, err := mtls.Identity(old)
	if err != nil {
		return err
	}
	cert, err := a.issue(kindServer, request{
		role: role, name: name, key: old.PublicKey,
		dns: old.DNSNames, addresses: old.IPAddresses, lifetime: PeerLifetime,
	})
	if err != nil {
		return err
	}
	if err := writeCertificates(filepath.Join(a.dir, file+".crt"), cert.Chain); err != nil {
		return err
	}
	if pair, err = readPair(a.dir, file); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if file == leaseSignerFile {
		a.signer = pair
	} else {
		a.collector = pair
	}
	return nil
}
