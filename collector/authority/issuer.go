package authority

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"pfoertner/internal/mtls"
)

// issuingKind is a kind of issuing CA: its files and what it may issue for.
type issuingKind struct {
	file, title string
	usage       x509.ExtKeyUsage
	// longest is the longest life that a certificate under it has.
	longest time.Duration
	// overlap is how long the next one is handed out before it issues.
	overlap time.Duration
	// optional CAs are made when they are wanted: an authority is whole without.
	optional bool
}

var (
	kindDevice   = issuingKind{file: "device-ca", title: "device CA", usage: x509.ExtKeyUsageClientAuth, longest: DeviceLifetime, overlap: ownOverlap}
	kindGate     = issuingKind{file: "gate-ca", title: "gate CA", usage: x509.ExtKeyUsageClientAuth, longest: PeerLifetime, overlap: ownOverlap}
	kindOperator = issuingKind{file: "operator-ca", title: "operator CA", usage: x509.ExtKeyUsageClientAuth, longest: PeerLifetime, overlap: ownOverlap}
	kindServer   = issuingKind{file: "server-ca", title: "server CA", usage: x509.ExtKeyUsageServerAuth, longest: PeerLifetime, overlap: ServerOverlap}
	kindVPN      = issuingKind{file: "vpn-ca", title: "VPN CA", usage: x509.ExtKeyUsageClientAuth, longest: maxVPNLifetime, overlap: VPNOverlap, optional: true}
	issuingKinds = []issuingKind{kindDevice, kindGate, kindOperator, kindServer, kindVPN}
)

// Kinds are the names of the issuing CAs that every authority has: device,
// gate, operator, server.
func Kinds() []string { return kindNames(false) }

// OptionalKinds are the names of the issuing CAs that are made when they are
// wanted: vpn. How: as the next CA of any kind; the first of a kind is current.
func OptionalKinds() []string { return kindNames(true) }

func kindNames(optional bool) (names []string) {
	for _, k := range issuingKinds {
		if k.optional == optional {
			names = append(names, k.name())
		}
	}
	return names
}

func kindNamed(name string) (issuingKind, error) {
	i := slices.IndexFunc(issuingKinds, func(k issuingKind) bool { return k.name() == name })
	if i < 0 {
		return issuingKind{}, fmt.Errorf("%q is none of the CAs: %s", name, strings.Join(slices.Concat(Kinds(), OptionalKinds()), ", "))
	}
	return issuingKinds[i], nil
}

func (k issuingKind) name() string { return strings.TrimSuffix(k.file, "-ca") }

func (k issuingKind) commonName() string { return "Pförtner " + k.title }

var laterGeneration = regexp.MustCompile(`^-[2-9][0-9]{0,3}$|^-1[0-9]{1,3}$`)

// owns says whether name is one that generations of this kind have: device-ca,
// device-ca-2 and so on.
func (k issuingKind) owns(name string) bool {
	rest, ok := strings.CutPrefix(name, k.file)
	return ok && (rest == "" || laterGeneration.MatchString(rest))
}

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
	// extra are extended key usages beside the role's.
	extra    []asn1.ObjectIdentifier
	lifetime time.Duration
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
	if i.cert == nil {
		return nil, fmt.Errorf("issuing %s certificate: no CA is current", r.role)
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
		UnknownExtKeyUsage:    r.extra,
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

// signCA issues an issuing CA's certificate. Nothing of it is the requester's
// choice but key and organisation.
func (i issuer) signCA(kind issuingKind, organisation []string, key crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	serial, err := randomSerial()
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(issuingLifetime)
	if notAfter.After(i.cert.NotAfter) {
		notAfter = i.cert.NotAfter
	}
	return signCertificate(&x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: organisation, CommonName: kind.commonName()},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{kind.usage},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, i.cert, key, i.key)
}

// newRoot certifies a root's own key.
func newRoot(organisation string, key crypto.Signer, now time.Time) (issuer, error) {
	serial, err := randomSerial()
	if err != nil {
		return issuer{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{organisation}, CommonName: rootName},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1,
	}
	cert, err := signCertificate(template, template, key.Public(), key)
	return issuer{cert, key}, err
}

func signCertificate(template, parent *x509.Certificate, key crypto.PublicKey, by crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, by)
	if err != nil {
		return nil, fmt.Errorf("issuing %s: %w", template.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// randomSerial is 128 random bits: unguessable, and unique without a counter.
func randomSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	return new(big.Int).SetBytes(b), nil
}
