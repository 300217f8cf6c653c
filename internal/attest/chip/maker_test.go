//go:build linux

package chip_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"
)

// maker is a manufacturer of TPMs: an authority below its root.
type maker struct {
	authority *x509.Certificate
	key       *ecdsa.PrivateKey
}

var produced = time.Date(2024, 5, 1, 0, 0, 0, 0, time.UTC)

func newMaker(t testing.TB, name string) *maker {
	t.Helper()
	rootKey, key := generate(t), generate(t)
	template := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: produced, NotAfter: produced.AddDate(30, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
	}
	rootTemplate := template(name+" Root", 1)
	root := certify(t, rootTemplate, rootTemplate, rootKey.Public(), rootKey)
	return &maker{authority: certify(t, template(name+" EK CA", 2), root, key.Public(), rootKey), key: key}
}

func generate(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certify(t testing.TB, template, parent *x509.Certificate, key crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// certificate is an endorsement certificate as the TCG profile wants it: the
// subject is in a critical subjectAltName.
func (m *maker) certificate(t testing.TB, ek crypto.PublicKey, vendor string) []byte {
	t.Helper()
	return certify(t, m.template(t, vendor), m.authority, ek, m.key).Raw
}

func (m *maker) template(t testing.TB, vendor string) *x509.Certificate {
	t.Helper()
	name := marshal(t, pkix.RDNSequence{
		{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 1}, Value: vendor}},
		{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 2}, Value: "SLB9670"}},
		{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 3}, Value: "id:0755"}},
	})
	san := marshal(t, []asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	usage := marshal(t, []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}})
	return &x509.Certificate{
		SerialNumber: big.NewInt(0x1234), NotBefore: produced, NotAfter: produced.AddDate(20, 0, 0),
		KeyUsage: x509.KeyUsageKeyEncipherment, BasicConstraintsValid: true,
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san},
			{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: usage},
		},
	}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
