package authority

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pfoertner/collector/audit"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
)

// Root is the root CA in a directory of its own, on a machine of its own: a
// stick in a safe.
type Root struct {
	// Dir holds root-ca.crt and root-ca.key.
	Dir string
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Record is told of every use of the key; nil: nobody is.
	Record Recorder
}

// Create makes a root. It returns an error wrapping fs.ErrExist when there is
// one already.
func (r Root) Create(organisation string, source Source) error {
	if organisation == "" {
		organisation = defaultOrganisation
	}
	if there(r.Dir, rootFile) {
		return fmt.Errorf("%s holds a root: %w", r.Dir, fs.ErrExist)
	}
	key, text, err := source.New(rootFile)
	if err != nil {
		return err
	}
	root, err := newRoot(organisation, key, r.now())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(r.Dir, rootFile+".key"), text); err != nil {
		return err
	}
	if err := r.recorded("authority.root_created", "sha256", fingerprint(root.cert)); err != nil {
		return err
	}
	return writeCertificates(filepath.Join(r.Dir, rootFile+".crt"), [][]byte{root.cert.Raw})
}

// CARequest is one request for a CA's certificate, as two persons compare it.
type CARequest struct {
	// Kind is what the key will issue for: device, gate, operator, server.
	Kind string
	// Fingerprint is that of the key.
	Fingerprint string

	organisation []string
	key          crypto.PublicKey
}

// ParseRequests reads what Rotation.Request has returned. It returns an error
// for a request whose signature is not by its key, or that is for no issuing
// CA.
func ParseRequests(text []byte) (requests []CARequest, err error) {
	for rest := text; len(strings.TrimSpace(string(rest))) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != requestType {
			return nil, errors.New("not a file of requests")
		}
		one, err := parseRequest(block.Bytes)
		if err != nil {
			return nil, err
		}
		requests = append(requests, one)
	}
	if len(requests) == 0 {
		return nil, errors.New("no request in the file")
	}
	return requests, nil
}

func parseRequest(der []byte) (CARequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return CARequest{}, err
	}
	if err := csr.CheckSignature(); err != nil {
		return CARequest{}, fmt.Errorf("request for %s: %w", csr.Subject.CommonName, err)
	}
	i := slices.IndexFunc(issuingKinds, func(k issuingKind) bool { return k.commonName() == csr.Subject.CommonName })
	if i < 0 {
		return CARequest{}, fmt.Errorf("%q is none of the issuing CAs", csr.Subject.CommonName)
	}
	if err := keyAllowed(mtls.RoleDevice, csr.PublicKey); err != nil {
		return CARequest{}, errors.New("the key of an issuing CA is ECDSA P-256")
	}
	person, err := attest.Fingerprint(csr.PublicKey)
	return CARequest{issuingKinds[i].name(), person, csr.Subject.Organization, csr.PublicKey}, err
}

const requestType = "CERTIFICATE REQUEST"

func newRequest(kind issuingKind, organisation string, key crypto.Signer) ([]byte, error) {
	subject := pkix.Name{CommonName: kind.commonName()}
	if organisation != "" {
		subject.Organization = []string{organisation}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: requestType, Bytes: der}), nil
}

// Sign signs requests and returns the certificates with the root's (PEM).
// expected are the keys' fingerprints as they were compared on another way than
// the requests came: one for each request, or nothing is signed.
func (r Root) Sign(text []byte, expected []string) ([]byte, error) {
	requests, err := ParseRequests(text)
	if err != nil {
		return nil, err
	}
	for _, q := range requests {
		if !slices.ContainsFunc(expected, func(e string) bool { return strings.EqualFold(e, q.Fingerprint) }) {
			return nil, fmt.Errorf("the key for the %s CA is %s, and that is none of those expected", q.Kind, q.Fingerprint)
		}
	}
	root, err := r.open()
	if err != nil {
		return nil, err
	}
	var signed [][]byte
	for _, q := range requests {
		kind, err := kindNamed(q.Kind)
		if err != nil {
			return nil, err
		}
		organisation := q.organisation
		if len(organisation) == 0 {
			organisation = root.cert.Subject.Organization
		}
		cert, err := root.signCA(kind, organisation, q.key, r.now())
		if err != nil {
			return nil, err
		}
		err = r.recorded("authority.signed", "ca", q.Kind, "key_fingerprint", q.Fingerprint, "sha256", fingerprint(cert), "ends", cert.NotAfter.Format(time.RFC3339))
		if err != nil {
			return nil, err
		}
		signed = append(signed, cert.Raw)
	}
	return certificatesText(append(signed, root.cert.Raw)), nil
}

// open reads the root and its key. Of several roots in the file the key's own
// counts.
func (r Root) open() (issuer, error) {
	key, err := openKey(filepath.Join(r.Dir, rootFile+".key"))
	if err != nil {
		return issuer{}, fmt.Errorf("opening the root: %w", err)
	}
	certs, err := mtls.ReadCertificates(filepath.Join(r.Dir, rootFile+".crt"))
	if err != nil {
		return issuer{}, fmt.Errorf("opening the root: %w", err)
	}
	for _, cert := range certs {
		if isRoot(cert) && samePublic(cert.PublicKey, key.Public()) {
			return issuer{cert, key}, nil
		}
	}
	return issuer{}, fmt.Errorf("opening the root: %s.key does not belong to %s.crt", rootFile, rootFile)
}

// Check returns an error unless the root can sign; one that wraps
// fs.ErrNotExist when its key is elsewhere.
func (r Root) Check() error {
	_, err := r.open()
	return err
}

// Move takes the root's key to another directory: a copy is written and read
// back before the key is removed here. The certificate stays and is copied. It
// returns an error wrapping fs.ErrExist when the other directory holds a root,
// and fs.ErrNotExist when there is no key here.
func (r Root) Move(to string) error {
	root, err := r.open()
	if err != nil {
		return err
	}
	if there(to, rootFile) {
		return fmt.Errorf("%s holds a root: %w", to, fs.ErrExist)
	}
	text, err := os.ReadFile(filepath.Join(r.Dir, rootFile+".key"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(to, rootFile+".key"), text); err != nil {
		return err
	}
	if err := writeCertificates(filepath.Join(to, rootFile+".crt"), [][]byte{root.cert.Raw}); err != nil {
		return err
	}
	if _, err := (Root{Dir: to}).open(); err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	if err := r.recorded("authority.root_moved", "sha256", fingerprint(root.cert)); err != nil {
		return err
	}
	return remove(r.Dir, rootFile+".key")
}

func (r Root) now() time.Time {
	if r.Now == nil {
		return time.Now()
	}
	return r.Now()
}

func (r Root) recorded(kind string, details ...string) error {
	if r.Record == nil {
		return nil
	}
	record := audit.Record{At: r.now(), Kind: kind, Actor: actor, Details: map[string]string{}}
	for i := 0; i+1 < len(details); i += 2 {
		record.Details[details[i]] = details[i+1]
	}
	return r.Record(record)
}
