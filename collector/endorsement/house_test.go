package endorsement

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"
)

var (
	born  = time.Date(2024, 3, 1, 0, 0, 0, 0, time.UTC)
	now   = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	later = time.Date(2044, 3, 1, 0, 0, 0, 0, time.UTC)
)

// house is an authority made for a test.
type house struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// authority makes an authority below parent; nil: a root.
func authority(t testing.TB, name string, parent *house, change ...func(*x509.Certificate)) *house {
	t.Helper()
	key := newKey(t, elliptic.P256())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name},
		NotBefore: born, NotAfter: later,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	for _, c := range change {
		c(template)
	}
	if parent == nil {
		parent = &house{cert: template, key: key}
	}
	return &house{cert: sign(t, template, parent, key.Public()), key: key}
}

func sign(t testing.TB, template *x509.Certificate, parent *house, key crypto.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key, parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// tpm is the names of a TPM as certificates carry them.
type tpm struct{ manufacturer, model, version string }

var slb9672 = tpm{"id:49465800", "SLB9672", "id:000F0016"}

// san is the critical subject alternative name of an endorsement certificate.
func (n tpm) san(t testing.TB) pkix.Extension {
	t.Helper()
	name, err := asn1.Marshal(n.rdn())
	if err != nil {
		t.Fatal(err)
	}
	value, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oidSubjectAltName, Critical: true, Value: value}
}

func (n tpm) rdn() pkix.RDNSequence {
	var seq pkix.RDNSequence
	for _, a := range []pkix.AttributeTypeAndValue{
		{Type: oidTPMManufacturer, Value: n.manufacturer}, {Type: oidTPMModel, Value: n.model}, {Type: oidTPMVersion, Value: n.version},
	} {
		if a.Value != "" {
			seq = append(seq, pkix.RelativeDistinguishedNameSET{a})
		}
	}
	return seq
}

// endorse issues an endorsement certificate as a manufacturer would.
func (h *house) endorse(t testing.TB, key crypto.PublicKey, n tpm, change ...func(*x509.Certificate)) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(9), NotBefore: born, NotAfter: later,
		KeyUsage: x509.KeyUsageKeyAgreement, BasicConstraintsValid: true,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKCertificate},
		ExtraExtensions:    []pkix.Extension{n.san(t)},
	}
	for _, c := range change {
		c(template)
	}
	return sign(t, template, h, key).Raw
}

func shippedBundle(t testing.TB) *Bundle {
	t.Helper()
	b, err := Shipped()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// reviewedAs is the shipped bundle with further authorities, whose roots count
// as if the review listed them for a manufacturer.
func reviewedAs(t testing.TB, manufacturer string, houses ...*house) *Bundle {
	t.Helper()
	b := shippedBundle(t)
	var certs []*x509.Certificate
	for _, h := range houses {
		certs = append(certs, h.cert)
	}
	b, _, err := b.extend(certs, func(*x509.Certificate) (Authority, error) { return Authority{ManufacturerID: manufacturer}, nil })
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func upload(houses ...*house) []byte {
	var text []byte
	for _, h := range houses {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.cert.Raw})...)
	}
	return text
}

// flip is a certificate with one bit of its signature turned.
func flip(der []byte) []byte {
	der = slices.Clone(der)
	der[len(der)-1] ^= 1
	return der
}
