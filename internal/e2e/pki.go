//go:build linux

package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority is a certificate authority of a test network.
type Authority struct {
	Certificate *x509.Certificate
	key         crypto.Signer
}

// Subject is what an Authority puts in a certificate.
type Subject struct {
	CommonName string
	// URI is the one subject alternative name URI: "urn:pfoertner:gate:g1".
	URI string
	// Names are DNS names, IPs addresses of a server.
	Names []string
	IPs   []net.IP
	// Server makes it a server's certificate, Client a client's. Neither: a
	// certificate that only signs data.
	Server, Client bool
	// Key is certified when set; otherwise an ECDSA P-256 key is made.
	Key crypto.Signer
}

// Identity is a certificate and its key.
type Identity struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// NewAuthority makes a self-signed authority that lasts a day.
func NewAuthority(t testing.TB, name string) *Authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber:          serial(t),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return &Authority{Certificate: sign(t, template, template, key.Public(), key), key: key}
}

// Issue makes a certificate that lasts a day.
func (a *Authority) Issue(t testing.TB, s Subject) *Identity {
	t.Helper()
	key := s.Key
	if key == nil {
		key = newKey(t)
	}
	template := &x509.Certificate{
		SerialNumber: serial(t),
		Subject:      pkix.Name{CommonName: s.CommonName},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		DNSNames:     s.Names,
		IPAddresses:  s.IPs,
	}
	if s.URI != "" {
		u, err := url.Parse(s.URI)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	if s.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if s.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	return &Identity{Certificate: sign(t, template, a.Certificate, key.Public(), a.key), Key: key}
}

// Pool is a pool of this authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Certificate)
	return pool
}

// Write writes the authority's certificate to dir/name.crt and returns the
// path.
func (a *Authority) Write(t testing.TB, dir, name string) string {
	t.Helper()
	return writePEM(t, filepath.Join(dir, name+".crt"), "CERTIFICATE", a.Certificate.Raw)
}

// Write writes dir/name.crt and dir/name.key (PKCS #8) and returns the paths.
func (i *Identity) Write(t testing.TB, dir, name string) (certificate, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(i.Key)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, filepath.Join(dir, name+".crt"), "CERTIFICATE", i.Certificate.Raw),
		writePEM(t, filepath.Join(dir, name+".key"), "PRIVATE KEY", der)
}

// TLS is the identity as crypto/tls wants it.
func (i *Identity) TLS() *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{i.Certificate.Raw}, PrivateKey: i.Key, Leaf: i.Certificate}
}

// Fingerprint is the certificate's SHA-256: what a gate reports.
func (i *Identity) Fingerprint() []byte {
	sum := sha256.Sum256(i.Certificate.Raw)
	return sum[:]
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func sign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func writePEM(t testing.TB, path, kind string, der []byte) string {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
