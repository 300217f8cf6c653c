package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Why the maker of a TPM is not believed.
var (
	// ErrNoEndorsement is the error for a TPM without any certificate for its
	// endorsement key: who made it is not known.
	ErrNoEndorsement = errors.New("no certificate for the endorsement key")
	// ErrEndorsement is the error for certificates of which none is genuine by
	// the roots that are trusted, or none is for this key.
	ErrEndorsement = errors.New("certificate for the endorsement key is not genuine")
	// ErrVirtual is the error for a genuine certificate of a TPM that is a
	// program: its owner can copy it.
	ErrVirtual = errors.New("the TPM is a virtual one")
)

// Trust is whom the collector believes that a TPM is genuine.
type Trust struct {
	Roots, Intermediates *x509.CertPool
	// Virtual allows virtual TPMs.
	Virtual bool
}

// Maker is what an endorsement certificate says of a TPM (TCG EK Credential
// Profile 2.5, 3.1.2). It is empty where the certificate is silent.
type Maker struct {
	// Manufacturer as the TCG registered it, "INTC", or as stated when it is no
	// text.
	Manufacturer string
	// Model and Version (of the firmware) are as the manufacturer chose them.
	Model, Version string
	// Virtual: the manufacturer's TPMs are programs.
	Virtual bool
	// SerialNumber of the certificate, hexadecimal; Issuer, for people.
	SerialNumber, Issuer string
}

const (
	maxCertificates     = 8
	maxCertificateBytes = 8 << 10
)

// Endorsement finds out who made the TPM of a claim: one of its certificates
// must be for the claimed endorsement key and lead to a trusted root, at this
// time; the others may be steps on the way. The error is ErrNoEndorsement,
// ErrEndorsement or ErrVirtual; with the last, the maker is returned too.
func (c *Claim) Endorsement(trust Trust, at time.Time) (*Maker, error) {
	return VerifyEndorsement(c.EK, c.certificates, trust, at)
}

// VerifyEndorsement is Endorsement for a key and its certificates (DER).
func VerifyEndorsement(ek crypto.PublicKey, certificates [][]byte, trust Trust, at time.Time) (*Maker, error) {
	if len(certificates) == 0 {
		return nil, ErrNoEndorsement
	}
	certificates = certificates[:min(len(certificates), maxCertificates)]
	trust.Intermediates = withSteps(trust.Intermediates, certificates)
	var errs []error
	for _, der := range certificates {
		maker, err := verifyCertificate(ek, der, trust, at)
		if err == nil || errors.Is(err, ErrVirtual) {
			return maker, err
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%w: %w", ErrEndorsement, errors.Join(errs...))
}

// withSteps adds the authorities that a TPM brings along: they are believed
// only if they lead to a root.
func withSteps(known *x509.CertPool, certificates [][]byte) *x509.CertPool {
	if len(certificates) == 1 {
		return known
	}
	pool := x509.NewCertPool()
	if known != nil {
		pool = known.Clone()
	}
	for _, der := range certificates {
		if len(der) > maxCertificateBytes {
			continue
		}
		if cert, err := x509.ParseCertificate(der); err == nil && cert.IsCA {
			pool.AddCert(cert)
		}
	}
	return pool
}

func verifyCertificate(ek crypto.PublicKey, der []byte, trust Trust, at time.Time) (*Maker, error) {
	if trust.Roots == nil {
		return nil, errors.New("no roots are trusted") // nil would mean those of the system
	}
	if len(der) > maxCertificateBytes {
		return nil, fmt.Errorf("certificate of %d bytes", len(der))
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	key, err := certifiedKey(cert)
	if err != nil {
		return nil, err
	}
	if !equal(key, ek) {
		return nil, errors.New("certificate is for another key")
	}
	if cert.IsCA || !forEndorsement(cert) {
		return nil, errors.New("certificate is not for an endorsement key")
	}
	// The subject of an EK certificate is in a critical subjectAltName of a
	// kind that crypto/x509 leaves to us; maker reads it.
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, subjectAltName.Equal)
	_, err = cert.Verify(x509.VerifyOptions{
		Roots: trust.Roots, Intermediates: trust.Intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, err
	}
	maker, err := makerOf(cert)
	if err != nil {
		return nil, err
	}
	if maker.Virtual && !trust.Virtual {
		return maker, ErrVirtual
	}
	return maker, nil
}

var (
	subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	rsaesOAEP      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	ekCertificate  = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	manufacturerID = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	modelID        = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	versionID      = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
)

// certifiedKey returns the key of a certificate, also of an old one that
// names RSA-OAEP, which crypto/x509 does not know.
func certifiedKey(cert *x509.Certificate) (crypto.PublicKey, error) {
	if cert.PublicKey != nil {
		return cert.PublicKey, nil
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &info); err != nil || len(rest) > 0 {
		return nil, errors.New("malformed public key")
	}
	if !info.Algorithm.Algorithm.Equal(rsaesOAEP) {
		return nil, errors.New("certificate is for a key of an unknown kind")
	}
	return x509.ParsePKCS1PublicKey(info.Key.RightAlign())
}

func equal(a, b crypto.PublicKey) bool {
	switch a := a.(type) {
	case *rsa.PublicKey:
		return a.Equal(b)
	case *ecdsa.PublicKey:
		return a.Equal(b)
	}
	return false
}

// forEndorsement says whether the certificate may be used for an endorsement
// key. Older ones say nothing about it.
func forEndorsement(cert *x509.Certificate) bool {
	if len(cert.ExtKeyUsage) == 0 && len(cert.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.ContainsFunc(cert.UnknownExtKeyUsage, ekCertificate.Equal) ||
		slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny)
}

func makerOf(cert *x509.Certificate) (*Maker, error) {
	m := &Maker{SerialNumber: hex.EncodeToString(cert.SerialNumber.Bytes()), Issuer: cert.Issuer.String()}
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(subjectAltName) {
			continue
		}
		names, err := directoryNames(ext.Value)
		if err != nil {
			return nil, err
		}
		for _, attribute := range names {
			value, _ := attribute.Value.(string)
			switch {
			case attribute.Type.Equal(manufacturerID):
				m.Manufacturer = vendor(value)
			case attribute.Type.Equal(modelID):
				m.Model = value
			case attribute.Type.Equal(versionID):
				m.Version = value
			}
		}
	}
	m.Virtual = IsVirtual(m.Manufacturer)
	return m, nil
}

// directoryNames returns all attributes of the directory names in a
// subjectAltName (RFC 5280, 4.2.1.6).
func directoryNames(value []byte) ([]pkix.AttributeTypeAndValue, error) {
	var general []asn1.RawValue
	if rest, err := asn1.Unmarshal(value, &general); err != nil || len(rest) > 0 {
		return nil, errors.New("malformed subjectAltName")
	}
	var all []pkix.AttributeTypeAndValue
	for _, g := range general {
		if g.Class != asn1.ClassContextSpecific || g.Tag != 4 {
			continue
		}
		var name pkix.RDNSequence
		if rest, err := asn1.Unmarshal(g.Bytes, &name); err != nil || len(rest) > 0 {
			return nil, errors.New("malformed subjectAltName")
		}
		for _, set := range name {
			all = append(all, set...)
		}
	}
	return all, nil
}

// vendor turns "id:494E5443" into "INTC" (TCG TPM Vendor ID Registry).
func vendor(stated string) string {
	digits, ok := strings.CutPrefix(stated, "id:")
	raw, err := hex.DecodeString(digits)
	if !ok || err != nil || len(raw) != 4 {
		return stated
	}
	text := strings.TrimRight(string(raw), " \x00")
	for _, r := range text {
		if r < ' ' || r > '~' {
			return stated
		}
	}
	return text
}

// IsVirtual says whether a manufacturer, by its registered name, makes TPMs
// that are programs: clouds and hypervisors, and swtpm as "IBM", which also
// signs certificates as "id:00001014".
func IsVirtual(manufacturer string) bool {
	return slices.Contains([]string{"MSFT", "GOOG", "VMW", "AMZN", "XEN", "QEMU", "IBM", "id:00001014", "SWTP"}, manufacturer)
}
