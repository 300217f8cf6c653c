package endorsement

import (
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"testing"
)

func TestPaddingOfTheNVIndexIsPassedOver(t *testing.T) {
	der := read(t, "ek-rsa2048.der")
	for _, padding := range [][]byte{nil, {0}, {0xFF, 0xFF, 0xFF}, make([]byte, 1000)} {
		if certs, err := split(append(der[:len(der):len(der)], padding...)); err != nil || len(certs) != 1 {
			t.Errorf("%d bytes of padding: %d certificates, %v", len(padding), len(certs), err)
		}
	}
	if _, err := split(append(der[:len(der):len(der)], make([]byte, maxIndexBytes)...)); !errors.Is(err, ErrMalformed) {
		t.Errorf("no bound: %v", err)
	}
}

// oaep rewrites a certificate's RSA key as one for OAEP only, as old Infineon
// chips have it, and signs it again.
func oaep(t *testing.T, der []byte, issuer *house) []byte {
	t.Helper()
	var outer struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		t.Fatal(err)
	}
	var fields []asn1.RawValue
	tbs := asn1.RawValue{Class: asn1.ClassUniversal, Tag: asn1.TagSequence, IsCompound: true}
	for rest := outer.TBS.Bytes; len(rest) > 0; {
		var f asn1.RawValue
		if rest, err = asn1.Unmarshal(rest, &f); err != nil {
			t.Fatal(err)
		}
		fields = append(fields, f)
	}
	for _, f := range fields {
		if string(f.FullBytes) == string(cert.RawSubjectPublicKeyInfo) {
			key := x509.MarshalPKCS1PublicKey(cert.PublicKey.(*rsa.PublicKey))
			f.FullBytes, err = asn1.Marshal(struct {
				Algorithm pkix.AlgorithmIdentifier
				Key       asn1.BitString
			}{
				pkix.AlgorithmIdentifier{Algorithm: oidRSAOAEP, Parameters: asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true}},
				asn1.BitString{Bytes: key, BitLength: len(key) * 8},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		tbs.Bytes = append(tbs.Bytes, f.FullBytes...)
	}
	signed, err := asn1.Marshal(tbs)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(signed)
	signature, err := issuer.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	outer.TBS = asn1.RawValue{FullBytes: signed}
	outer.Signature = asn1.BitString{Bytes: signature, BitLength: len(signature) * 8}
	out, err := asn1.Marshal(outer)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestKeyForOAEPOnlyIsRead(t *testing.T) {
	root := authority(t, "Root", nil)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der := oaep(t, root.endorse(t, key.Public(), slb9672), root)
	if cert, err := x509.ParseCertificate(der); err != nil || cert.PublicKey != nil {
		t.Fatalf("crypto/x509 reads such keys by now (%v): rsaKey may go", err)
	}
	if _, err := reviewedAs(t, "IFX", root).Verify([][]byte{der}, key.Public(), now); err != nil {
		t.Error(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reviewedAs(t, "IFX", root).Verify([][]byte{der}, other.Public(), now); !errors.Is(err, ErrOtherKey) {
		t.Errorf("another key: %v", err)
	}
}

func TestNamesInTheSubjectAreRead(t *testing.T) {
	host := authority(t, "vCenter", nil)
	b, _, err := shippedBundle(t).AllowVirtual(upload(host))
	if err != nil {
		t.Fatal(err)
	}
	ek := newKey(t, elliptic.P256()).Public()
	der := host.endorse(t, ek, slb9672, func(c *x509.Certificate) {
		c.ExtraExtensions = nil
		for _, set := range (tpm{"id:564D5700", "VMware TPM2", "id:00020065"}).rdn() {
			c.Subject.ExtraNames = append(c.Subject.ExtraNames, set...)
		}
	})
	e, err := b.Verify([][]byte{der}, ek, now)
	if err != nil || e.ManufacturerID != "VMW" || e.Manufacturer != "VMware" || e.Model != "VMware TPM2" || e.Version != "id:00020065" {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestManufacturerIdentifiers(t *testing.T) {
	for in, want := range map[string]string{
		"id:49465800":   "IFX",
		"id:53544D20":   "STM",
		"id:4e544300":   "NTC",
		"id:494E5443":   "INTC",
		"id:414D4400":   "AMD",
		"id:00001014":   "id:00001014",
		"id:00000000":   "id:00000000",
		"id:4946":       "id:4946",
		"id:4946580000": "id:4946580000",
		"id:49005800":   "id:49005800",
		"IFX":           "IFX",
		"49465800":      "49465800",
		"id:zz":         "id:zz",
		"":              "",
	} {
		if got := manufacturerID(in); got != want {
			t.Errorf("%q is read as %q, not %q", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(read(f, "ek-rsa2048.der"))
	f.Add(read(f, "ek-p384.der"))
	f.Add(authority(f, "Root", nil).endorse(f, newKey(f, elliptic.P256()).Public(), slb9672))
	f.Add([]byte{0x30, 0x80})
	f.Add(read(f, "ek-rsa2048.der")[:400])
	b := shippedBundle(f)
	f.Fuzz(func(t *testing.T, nv []byte) {
		certs, err := split(nv)
		if err == nil && len(certs) == 0 {
			t.Error("neither certificates nor an error")
		}
		for _, cert := range certs {
			c, err := parse(cert)
			if err != nil {
				continue
			}
			if c.key == nil || c.manufacturer == "" || len(c.manufacturer) > maxText {
				t.Errorf("accepted: %+v", c)
			}
			// Nothing that the fuzzer made is signed by anybody.
			if e, err := b.Verify([][]byte{nv}, c.key, now); err == nil {
				t.Errorf("endorsed: %+v", e)
			}
		}
	})
}

func FuzzDirectoryNames(f *testing.F) {
	f.Add(slb9672.san(f).Value)
	f.Add([]byte{0x30, 0x00})
	f.Fuzz(func(t *testing.T, san []byte) {
		names, err := directoryNames(san)
		if err != nil && names != nil {
			t.Error("names beside an error")
		}
		for _, n := range names {
			if len(attribute(n, oidTPMModel)) > maxText {
				t.Error("no bound")
			}
		}
	})
}

func FuzzRSAKey(f *testing.F) {
	cert, err := x509.ParseCertificate(read(f, "ek-rsa2048.der"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(cert.RawSubjectPublicKeyInfo)
	f.Fuzz(func(t *testing.T, spki []byte) {
		if key, err := rsaKey(spki); err == nil && key.N.Sign() <= 0 {
			t.Errorf("modulus %v", key.N)
		}
	})
}
