package authority

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
)

// issuingKind is one of the issuing CAs: its files and what it may issue for.
type issuingKind struct {
	file, title string
	usage       x509.ExtKeyUsage
}

var (
	kindDevice   = issuingKind{"device-ca", "device CA", x509.ExtKeyUsageClientAuth}
	kindGate     = issuingKind{"gate-ca", "gate CA", x509.ExtKeyUsageClientAuth}
	kindOperator = issuingKind{"operator-ca", "operator CA", x509.ExtKeyUsageClientAuth}
	kindServer   = issuingKind{"server-ca", "server CA", x509.ExtKeyUsageServerAuth}
	issuingKinds = []issuingKind{kindDevice, kindGate, kindOperator, kindServer}
)

func (k issuingKind) commonName() string { return "Pförtner " + k.title }

// issuer is a CA certificate and its key. The key may be in a file, a token or
// an HSM: a crypto.Signer is all that is needed.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// request is what one certificate is issued for.
type request struct {
	role      mtls.Role
	name      string
	key       crypto.PublicKey
	dns       []string
	addresses []net.IP
	lifetime  time.Duration
	// renewAfter counts from now; zero: after two thirds of the lifetime.
	renewAfter time.Duration
}

func (i issuer) issue(r request, now time.Time) (*Certificate, error) {
	if err := keyAllowed(r.role, r.key); err != nil {
		return nil, err
	}
	uri, err := mtls.URI(r.role, r.name)
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(r.lifetime)
	if notAfter.After(i.cert.NotAfter) {
		notAfter = i.cert.NotAfter
	}
	if !notAfter.After(now) {
		return nil, fmt.Errorf("issuing %s certificate: %s has ended", r.role, i.cert.Subject.CommonName)
	}
	serial, err := randomSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: r.name},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           r.role.Usage(),
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{uri},
		DNSNames:              r.dns,
		IPAddresses:           r.addresses,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, r.key, i.key)
	if err != nil {
		return nil, fmt.Errorf("issuing %s certificate: %w", r.role, err)
	}
	renewAfter := now.Add(r.renewAfter)
	if r.renewAfter == 0 {
		renewAfter = now.Add(notAfter.Sub(now) * 2 / 3)
	}
	return &Certificate{
		Chain:      [][]byte{der, i.cert.Raw},
		Serial:     serial.Text(16),
		NotAfter:   notAfter.UTC().Truncate(time.Second),
		RenewAfter: renewAfter,
	}, nil
}

func (i issuer) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(i.cert)
	return pool
}

func newRoot(organisation string, now time.Time) (issuer, error) {
	key, err := attest.NewKey()
	if err != nil {
		return issuer{}, err
	}
	serial, err := randomSerial()
	if err != nil {
		return issuer{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject(organisation, "Pförtner root CA"),
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1,
	}
	return selfIssued(template, template, key, key)
}

func (i issuer) newIssuing(organisation string, kind issuingKind, now time.Time) (issuer, error) {
	key, err := attest.NewKey()
	if err != nil {
		return issuer{}, err
	}
	serial, err := randomSerial()
	if err != nil {
		return issuer{}, err
	}
	return selfIssued(&x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject(organisation, kind.commonName()),
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(issuingLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{kind.usage},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, i.cert, key, i.key)
}

// selfIssued makes a CA certificate for key, signed by parent's.
func selfIssued(template, parent *x509.Certificate, key, parentKey crypto.Signer) (issuer, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return issuer{}, fmt.Errorf("issuing %s: %w", template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return issuer{}, err
	}
	return issuer{cert: cert, key: key}, nil
}

// randomSerial is 128 random bits: unguessable, and unique without a counter.
func randomSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	return new(big.Int).SetBytes(b), nil
}
