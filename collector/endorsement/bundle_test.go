package endorsement

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestShippedBundleIsWhatTheReviewSays(t *testing.T) {
	b := shippedBundle(t)
	counts := map[string]int{}
	for _, c := range b.review.Certificates {
		counts[c.Status]++
	}
	if len(b.Authorities()) != counts[statusTrusted] || counts[statusTrusted] != 23 || counts[statusFingerprint] != 15 || counts[statusRefused] != 2 {
		t.Errorf("%d authorities, %v", len(b.Authorities()), counts)
	}
	for _, a := range b.Authorities() {
		if a.Virtual || a.ManufacturerID == "" {
			t.Errorf("%s: %+v", a.Certificate.Subject, a)
		}
		if a.Root && !signedItself(t, a.Certificate) {
			t.Errorf("%s did not sign itself", a.Certificate.Subject)
		}
	}
}

// signedItself also knows SHA-1, which crypto/x509 does not verify any more.
func signedItself(t *testing.T, cert *x509.Certificate) bool {
	if cert.SignatureAlgorithm != x509.SHA1WithRSA {
		return cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil
	}
	digest := sha1.Sum(cert.RawTBSCertificate)
	return rsa.VerifyPKCS1v15(cert.PublicKey.(*rsa.PublicKey), crypto.SHA1, digest[:], cert.Signature) == nil
}

func TestEveryManufacturerOfTheDocumentIsInTheBundle(t *testing.T) {
	text, err := os.ReadFile("../../docs/endorsement.md")
	if err != nil {
		t.Fatal(err)
	}
	b := shippedBundle(t)
	type row struct{ trusted, fingerprints, refused int }
	rows := map[string]row{}
	for _, c := range b.review.Certificates {
		r := rows[c.Manufacturer]
		switch c.Status {
		case statusTrusted:
			r.trusted++
		case statusFingerprint:
			r.fingerprints++
		case statusRefused:
			r.refused++
		}
		rows[c.Manufacturer] = r
	}
	for id, r := range rows {
		want := strings.Join([]string{"", b.review.name(id), id, strconv.Itoa(r.trusted), strconv.Itoa(r.fingerprints), strconv.Itoa(r.refused)}, " | ")
		if !bytes.Contains(text, []byte(strings.TrimSpace(want))) {
			t.Errorf("docs/endorsement.md has no row %q", want)
		}
	}
	if !bytes.Contains(text, []byte(b.review.Reviewed.Format("2006-01-02"))) {
		t.Error("docs/endorsement.md has another date of review")
	}
}

func TestUploadedIntermediatesAreTakenInAnyOrder(t *testing.T) {
	root := authority(t, "Root", nil)
	policy := authority(t, "Policy CA", root)
	issuing := authority(t, "Manufacturing CA", policy)
	b := reviewedAs(t, "IFX", root)
	before := len(b.Authorities())

	for name, text := range map[string][]byte{
		"PEM":              upload(policy, issuing),
		"PEM, issuer last": upload(issuing, policy),
		"DER":              slices.Concat(issuing.cert.Raw, policy.cert.Raw),
	} {
		next, added, err := b.Add(text)
		if err != nil || len(added) != 2 || added[1].ManufacturerID != "IFX" || added[0].Root {
			t.Errorf("%s: %+v, %v", name, added, err)
			continue
		}
		if len(b.Authorities()) != before {
			t.Errorf("%s: the bundle itself changed", name)
		}
		if _, again, err := next.Add(text); err != nil || len(again) != 0 {
			t.Errorf("%s: a second time: %v, %v", name, again, err)
		}
		ek := newKey(t, elliptic.P256()).Public()
		der := [][]byte{issuing.endorse(t, ek, slb9672)}
		if _, err := b.Verify(der, ek, now); !errors.Is(err, ErrUnknownIssuer) {
			t.Errorf("%s: before: %v", name, err)
		}
		if _, err := next.Verify(der, ek, now); err != nil {
			t.Errorf("%s: after: %v", name, err)
		}
	}
}

func TestBundlesMadeFromOneDoNotShare(t *testing.T) {
	root := authority(t, "Root", nil)
	b := reviewedAs(t, "IFX", root)
	for range 3 {
		next, _, err := b.Add(upload(authority(t, "Manufacturing CA", root)))
		if err != nil {
			t.Fatal(err)
		}
		b = next
	}
	ek := newKey(t, elliptic.P256()).Public()
	one, other := authority(t, "Manufacturing CA", root), authority(t, "Manufacturing CA", root)
	first, _, err := b.Add(upload(one))
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := b.Add(upload(other))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		bundle       *Bundle
		knows, alien *house
	}{{first, one, other}, {second, other, one}} {
		if _, err := c.bundle.Verify([][]byte{c.knows.endorse(t, ek, slb9672)}, ek, now); err != nil {
			t.Errorf("its own: %v", err)
		}
		if _, err := c.bundle.Verify([][]byte{c.alien.endorse(t, ek, slb9672)}, ek, now); !errors.Is(err, ErrUnknownIssuer) {
			t.Errorf("the other's: %v", err)
		}
	}
}

func TestUploadsThatAreRefused(t *testing.T) {
	root := authority(t, "Root", nil)
	stranger := authority(t, "Stranger", nil)
	narrow := authority(t, "Narrow", root, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	b := reviewedAs(t, "IFX", root)
	namesake := authority(t, "Root", nil)
	good := authority(t, "Manufacturing CA", root)
	damaged := bytes.Replace(upload(good), []byte("MII"), []byte("!!!"), 1)
	for _, c := range []struct {
		name string
		text []byte
		want error
		says string
	}{
		{"nothing", nil, ErrMalformed, "0 certificates"},
		{"no certificate", []byte("hello"), ErrMalformed, ""},
		{"a private key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}), ErrMalformed, "PRIVATE KEY"},
		{"a damaged block before a good one", append(damaged, upload(good)...), ErrMalformed, "damaged"},
		{"a cut file", upload(good)[:200], ErrMalformed, "damaged"},
		{"too much", make([]byte, maxUploadBytes+1), ErrMalformed, "at most"},
		{"a root that is not reviewed", upload(stranger), ErrAuthority, "does not list"},
		{"an intermediate of a stranger", upload(authority(t, "X", stranger)), ErrAuthority, "unknown issuer"},
		{"an intermediate of a root's namesake", upload(authority(t, "X", namesake)), ErrAuthority, "unknown issuer"},
		{"one good, one not", upload(good, authority(t, "X", stranger)), ErrAuthority, "unknown issuer"},
		{"one with a turned bit", upload(&house{cert: mustParse(t, flip(good.cert.Raw))}), ErrForged, "not signed by"},
		{"a circle", circle(t), ErrAuthority, "unknown issuer"},
		{"below one that may have none below it", upload(narrow, authority(t, "X", narrow)), ErrAuthority, "may have no"},
		{"no authority", upload(authority(t, "X", root, func(c *x509.Certificate) { c.IsCA = false })), ErrAuthority, "not marked"},
		{"one that must not sign", upload(authority(t, "X", root, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })), ErrAuthority, "must not sign"},
		{"one for attestation keys", upload(authority(t, "X", root, func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}}
		})), ErrAuthority, "for other certificates"},
	} {
		t.Run(c.name, func(t *testing.T) {
			next, added, err := b.Add(c.text)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || next != nil || added != nil {
				t.Errorf("got %v, %v", added, err)
			}
		})
	}
}

func mustParse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// circle is two authorities that issued each other.
func circle(t *testing.T) []byte {
	a := authority(t, "A", nil)
	b := authority(t, "B", a)
	crossed := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(8), Subject: pkix.Name{CommonName: "A"}, NotBefore: born, NotAfter: later,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, b, a.key.Public())
	return upload(b, &house{cert: crossed})
}

// listed is the shipped bundle with a review that also lists one certificate.
func listed(t *testing.T, h *house, change func(*reviewed)) *Bundle {
	b := shippedBundle(t)
	c := reviewed{
		SHA256: fingerprint(h.cert.Raw), Subject: h.cert.Subject.CommonName, Manufacturer: "QCOM",
		Kind: kindRoot, Status: statusFingerprint, Key: "P-256", From: day{born}, Until: day{later}, Sources: []string{"tpmtb"},
	}
	change(&c)
	if err := b.review.check(c); err != nil {
		t.Fatal(err)
	}
	b.review.Certificates = append(b.review.Certificates, c)
	return b
}

func TestUploadedRootsMustBeListed(t *testing.T) {
	root := authority(t, "Root", nil)
	issuing := authority(t, "Manufacturing CA", root)
	ek := newKey(t, elliptic.P256()).Public()

	b, added, err := listed(t, root, func(*reviewed) {}).Add(upload(issuing, root))
	if err != nil || len(added) != 2 || !added[0].Root || added[0].ManufacturerID != "QCOM" || added[1].ManufacturerID != "QCOM" {
		t.Fatalf("%+v, %v", added, err)
	}
	e, err := b.Verify([][]byte{issuing.endorse(t, ek, tpm{"id:51434F4D", "SPU", "id:1"})}, ek, now)
	if err != nil || e.Manufacturer != "Qualcomm" {
		t.Errorf("%+v, %v", e, err)
	}
	for name, change := range map[string]func(*reviewed){
		"refused by the review: too old":       func(c *reviewed) { c.Status, c.Reason = statusRefused, "too old" },
		"the review lists it as no root":       func(c *reviewed) { c.Kind = kindIntermediate },
		"a root that the review does not list": func(c *reviewed) { c.SHA256 = strings.Repeat("0", 64) },
	} {
		if _, _, err := listed(t, root, change).Add(upload(root)); !errors.Is(err, ErrAuthority) || !strings.HasSuffix(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIntermediatesThatTheReviewRefusesAreNotTaken(t *testing.T) {
	root := authority(t, "Root", nil)
	bad := authority(t, "Manufacturing CA", root)
	b := reviewedAs(t, "IFX", root)
	b.review.Certificates = append(b.review.Certificates, reviewed{SHA256: fingerprint(bad.cert.Raw), Status: statusRefused, Reason: "its key was lost"})
	if _, _, err := b.Add(upload(bad)); !errors.Is(err, ErrAuthority) || !strings.HasSuffix(err.Error(), "its key was lost") {
		t.Errorf("added: %v", err)
	}
	ek := newKey(t, elliptic.P256()).Public()
	if _, err := b.Verify([][]byte{bad.endorse(t, ek, slb9672), bad.cert.Raw}, ek, now); !errors.Is(err, ErrUnknownIssuer) {
		t.Errorf("carried: %v", err)
	}
}

func TestRootsOfVirtualTPMsThatAreRefused(t *testing.T) {
	b := shippedBundle(t)
	manufacturer := &house{cert: b.Authorities()[0].Certificate}
	forged := authority(t, "Root", nil)
	forged.cert = sign(t, forged.cert, &house{cert: forged.cert, key: forged.key}, newKey(t, elliptic.P256()).Public())
	for name, text := range map[string][]byte{
		"it makes chips, not virtual TPMs": upload(manufacturer),
		"not signed by itself":             upload(forged),
		"unknown issuer":                   upload(authority(t, "X", authority(t, "Y", nil))),
	} {
		if next, _, err := b.AllowVirtual(text); !errors.Is(err, ErrAuthority) || !strings.Contains(err.Error(), name) || next != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := b.AllowVirtual([]byte("hello")); !errors.Is(err, ErrMalformed) {
		t.Errorf("no certificate: %v", err)
	}
}

// rsaHouse makes an authority whose key may sign with SHA-1.
func rsaHouse(t *testing.T, name string, bits int, parent *house, algorithm x509.SignatureAlgorithm) *house {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}, NotBefore: born, NotAfter: later,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SignatureAlgorithm: algorithm,
	}
	if parent == nil {
		parent = &house{cert: template, key: key}
	}
	return &house{cert: sign(t, template, parent, key.Public()), key: key}
}

func TestBrokenDigestsAndShortKeysAreRefused(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	// Old Nuvoton roots signed themselves with SHA-1. That is not weighed;
	// what they sign is.
	root := rsaHouse(t, "Old root", 2048, nil, x509.SHA1WithRSA)
	b := reviewedAs(t, "NTC", root)
	ek := newKey(t, elliptic.P256()).Public()
	npct := tpm{"id:4E544300", "NPCT65x", "id:1"}
	if _, err := b.Verify([][]byte{root.endorse(t, ek, npct)}, ek, now); err != nil {
		t.Errorf("SHA-256: %v", err)
	}
	sha1Signed := root.endorse(t, ek, npct, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA })
	if _, err := b.Verify([][]byte{sha1Signed}, ek, now); !errors.Is(err, ErrWeak) {
		t.Errorf("SHA-1: %v", err)
	}
	if _, _, err := b.Add(upload(rsaHouse(t, "CA", 2048, root, x509.SHA1WithRSA))); !errors.Is(err, ErrWeak) {
		t.Errorf("authority signed with SHA-1: %v", err)
	}
	if _, _, err := b.Add(upload(rsaHouse(t, "CA", 1024, root, x509.SHA256WithRSA))); !errors.Is(err, ErrWeak) {
		t.Errorf("authority with RSA 1024: %v", err)
	}
}

func TestReviewsThatAreRefused(t *testing.T) {
	good, err := shipped.ReadFile("review.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseReview(good); err != nil {
		t.Fatal(err)
	}
	first := "sha256: b73f14dea3bdaa0be87440de3fc718c771f2cbf8b7b2231c6ea228d3b20860ef"
	for _, c := range []struct{ from, to string }{
		{"reviewed: ", "checked: "},
		{"reviewed: 2026-11-21", "reviewed: yesterday"},
		{first, "sha256: B73F"},
		{first, "sha256: c2cb57bf723c174f166c5aa1dc64160981054bee18c70eb1debfc1518afa92d2"},
		{"manufacturer: AMD", "manufacturer: XYZ"},
		{"manufacturer: AMD", "manufacturer: VMW"},
		{"kind: root", "kind: leaf"},
		{"    status: trusted", "    status: maybe"},
		{"    status: trusted", "    status: refused"},
		{"until: 2039-10-23", "until: 2009-10-23"},
		{"sources: [debian]", "sources: []"},
		{"sources: [debian]", "sources: [somewhere]"},
	} {
		text := strings.Replace(string(good), c.from, c.to, 1)
		if text == string(good) {
			t.Fatalf("%q is not in the review any more", c.from)
		}
		if _, err := parseReview([]byte(text)); err == nil {
			t.Errorf("%q for %q is accepted", c.to, c.from)
		}
	}
}

func TestReviewAndCertificatesMustMatch(t *testing.T) {
	b := shippedBundle(t)
	var certs []*x509.Certificate
	for _, a := range b.Authorities() {
		certs = append(certs, a.Certificate)
	}
	if err := b.review.matches(certs); err != nil {
		t.Fatal(err)
	}
	if err := b.review.matches(certs[1:]); err == nil {
		t.Error("a missing certificate is not noticed")
	}
	if err := b.review.matches(append(slices.Clone(certs), authority(t, "X", nil).cert)); err == nil {
		t.Error("a certificate too many is not noticed")
	}
	for _, change := range []func(*reviewed){
		func(c *reviewed) { c.Subject = "X" },
		func(c *reviewed) { c.Kind = kindIntermediate },
		func(c *reviewed) { c.Key = "RSA 4096" },
		func(c *reviewed) { c.From = day{born} },
		func(c *reviewed) { c.Until = day{later} },
		func(c *reviewed) { c.Status = statusFingerprint },
		func(c *reviewed) { c.SHA1SelfSignature = true },
	} {
		other := *b.review
		other.Certificates = slices.Clone(b.review.Certificates)
		change(&other.Certificates[0])
		if err := other.matches(certs); err == nil {
			t.Errorf("not noticed: %+v", other.Certificates[0])
		}
	}
}

func FuzzAdd(f *testing.F) {
	f.Add(read(f, "ca.pem"))
	f.Add(authority(f, "Root", nil).cert.Raw)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n"))
	b := shippedBundle(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		// Nothing that the fuzzer made is listed or signed by a manufacturer.
		if _, added, err := b.Add(text); err == nil && len(added) > 0 {
			t.Errorf("taken: %+v", added)
		}
		if _, added, err := b.AllowVirtual(text); err == nil {
			for _, a := range added {
				if !a.Virtual {
					t.Errorf("taken as hardware: %+v", a)
				}
			}
		}
	})
}

func FuzzReview(f *testing.F) {
	good, err := shipped.ReadFile("review.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("reviewed: 2026-11-21\ncertificates: []"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseReview(text)
		if err == nil && len(r.Certificates) == 0 {
			t.Error("an empty review is accepted")
		}
	})
}

func TestIssuersAreFoundInWhateverEncoding(t *testing.T) {
	// STMicroelectronics' ECC root calls itself by PrintableStrings; some of
	// its intermediates call it by UTF8Strings.
	root := authority(t, "STM  TPM Root", nil)
	utf8, err := asn1.Marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte("STM TPM root ")}}}})
	if err != nil {
		t.Fatal(err)
	}
	renamed := *root.cert
	renamed.RawSubject = utf8
	issuing := authority(t, "Intermediate", &house{cert: &renamed, key: root.key})
	if bytes.Equal(issuing.cert.RawIssuer, root.cert.RawSubject) {
		t.Fatal("the names have the same bytes: nothing is tried")
	}
	b, added, err := reviewedAs(t, "STM", root).Add(upload(issuing))
	if err != nil || len(added) != 1 {
		t.Fatalf("%v, %v", added, err)
	}
	ek := newKey(t, elliptic.P256()).Public()
	if _, err := b.Verify([][]byte{issuing.endorse(t, ek, tpm{"id:53544D20", "ST33HTPHAHD4", "id:1"})}, ek, now); err != nil {
		t.Error(err)
	}
}
