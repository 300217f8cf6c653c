package endorsement

import (
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestGenuineCertificateEndorsesItsKey(t *testing.T) {
	root := authority(t, "Root", nil)
	issuing := authority(t, "Manufacturing CA 1", root)
	b := reviewedAs(t, "IFX", root, issuing)
	ek := newKey(t, elliptic.P256()).Public()

	der := issuing.endorse(t, ek, slb9672)
	e, err := b.Verify([][]byte{der}, ek, now)
	if err != nil {
		t.Fatal(err)
	}
	want := Endorsement{
		ManufacturerID: "IFX", Manufacturer: "Infineon", Model: "SLB9672", Version: "id:000F0016",
		Issuer: "Manufacturing CA 1", Root: "Root",
		RootSHA256: fingerprint(root.cert.Raw), CertificateSHA256: fingerprint(der), NotAfter: later,
	}
	if e != want {
		t.Errorf("endorsement is\n%+v, not\n%+v", e, want)
	}
}

func TestNoErrorIsNotBare(t *testing.T) {
	if Bare(nil) || Bare(errors.New("anything")) {
		t.Error("what is not an error of Verify counts as one")
	}
}

func TestOneOfSeveralCertificatesIsForTheKey(t *testing.T) {
	// A Nuvoton chip: one certificate for RSA 2048, one for P-384.
	root := authority(t, "Root", nil)
	b := reviewedAs(t, "NTC", root)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384 := newKey(t, elliptic.P384())
	names := tpm{"id:4E544300", "NPCT75x", "id:00070002"}
	certificates := [][]byte{
		{0xFF, 0xFF, 0xFF, 0xFF},
		root.endorse(t, rsaKey.Public(), names, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }),
		root.endorse(t, p384.Public(), names),
	}
	for _, ek := range []crypto.PublicKey{rsaKey.Public(), p384.Public()} {
		if e, err := b.Verify(certificates, ek, now); err != nil || e.ManufacturerID != "NTC" {
			t.Errorf("%T: %+v, %v", ek, e, err)
		}
	}
}

// Makers of notebooks leave certificates of more than one authority in a TPM.
func TestForgedCertificateBesideAGenuineOneDoesNoHarm(t *testing.T) {
	root, forger := authority(t, "Root", nil), authority(t, "Root", nil)
	b := reviewedAs(t, "IFX", root)
	ek := newKey(t, elliptic.P256()).Public()
	e, err := b.Verify([][]byte{forger.endorse(t, ek, slb9672), {1}, root.endorse(t, ek, slb9672), forger.cert.Raw}, ek, now)
	if err != nil || e.RootSHA256 != fingerprint(root.cert.Raw) {
		t.Errorf("%+v, %v", e, err)
	}
}

// Whom the system trusts has no say.
func TestRootsOfTheSystemEndorseNobody(t *testing.T) {
	stranger := authority(t, "Root", nil)
	system := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(system, upload(stranger), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", system)
	ek := newKey(t, elliptic.P256()).Public()
	if _, err := shippedBundle(t).Verify([][]byte{stranger.endorse(t, ek, slb9672)}, ek, now); !errors.Is(err, ErrUnknownIssuer) {
		t.Errorf("got %v", err)
	}
}

func TestCertificatesThatEndorseNobody(t *testing.T) {
	root := authority(t, "Root", nil)
	issuing := authority(t, "Manufacturing CA 1", root)
	intel := authority(t, "Intel Root", nil)
	brief := authority(t, "Manufacturing CA 2", root, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) })
	b := reviewedAs(t, "IFX", root, issuing, brief)
	b, _, err := b.extend([]*x509.Certificate{intel.cert}, func(*x509.Certificate) (Authority, error) { return Authority{ManufacturerID: "INTC"}, nil })
	if err != nil {
		t.Fatal(err)
	}
	ek := newKey(t, elliptic.P256()).Public()
	stranger := authority(t, "Root of a stranger", nil)
	namesake := authority(t, "Manufacturing CA 1", stranger, func(c *x509.Certificate) { c.SubjectKeyId = issuing.cert.SubjectKeyId })
	narrow := authority(t, "Narrow", root, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	below := authority(t, "Below narrow", narrow)
	unmarked := authority(t, "Unmarked", root, func(c *x509.Certificate) { c.IsCA = false })

	genuine := issuing.endorse(t, ek, slb9672)
	for _, c := range []struct {
		name         string
		certificates [][]byte
		at           time.Time
		want         error
	}{
		{"none", nil, now, ErrNone},
		{"no certificate", [][]byte{[]byte("hello")}, now, ErrMalformed},
		{"cut off", [][]byte{genuine[:len(genuine)-5]}, now, ErrMalformed},
		{"too many indices", make([][]byte, maxIndices+1), now, ErrMalformed},
		{"too many certificates", [][]byte{slices.Repeat(genuine, 17), slices.Repeat(genuine, 17)}, now, ErrMalformed},
		{"more authorities than any TPM carries", [][]byte{genuine, slices.Repeat(issuing.cert.Raw, maxWork)}, now, ErrMalformed},
		{"of another key", [][]byte{issuing.endorse(t, newKey(t, elliptic.P256()).Public(), slb9672)}, now, ErrOtherKey},
		{"of an authority nobody knows", [][]byte{stranger.endorse(t, ek, slb9672)}, now, ErrUnknownIssuer},
		{"of an authority with a known name and key identifier", [][]byte{namesake.endorse(t, ek, slb9672)}, now, ErrForged},
		{"with a turned bit", [][]byte{flip(genuine)}, now, ErrForged},
		{"below an authority that may have none below it", [][]byte{below.endorse(t, ek, slb9672), below.cert.Raw, narrow.cert.Raw}, now, ErrUnknownIssuer},
		{"signed by what is no authority", [][]byte{unmarked.endorse(t, ek, slb9672), unmarked.cert.Raw}, now, ErrUnknownIssuer},
		{"expired", [][]byte{genuine}, later.Add(time.Second), ErrExpired},
		{"expired before its authorities", [][]byte{issuing.endorse(t, ek, slb9672, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) })}, now, ErrExpired},
		{"not valid yet", [][]byte{genuine}, born.Add(-time.Second), ErrExpired},
		{"expired and forged", [][]byte{flip(genuine)}, later.Add(time.Second), ErrForged},
		{"expired, beside one that is forged", [][]byte{flip(genuine), genuine}, later.Add(time.Second), ErrForged},
		{"expired, and of a root of another manufacturer", [][]byte{intel.endorse(t, ek, slb9672)}, later.Add(time.Second), ErrContradiction},
		{"of an expired authority", [][]byte{brief.endorse(t, ek, slb9672)}, now, ErrExpired},
		{"of a root of another manufacturer", [][]byte{intel.endorse(t, ek, slb9672)}, now, ErrContradiction},
		{"of a manufacturer nobody knows", [][]byte{issuing.endorse(t, ek, tpm{"id:58595A00", "X1", "id:1"})}, now, ErrContradiction},
		{"of an authority", [][]byte{issuing.endorse(t, ek, slb9672, func(c *x509.Certificate) { c.IsCA = true })}, now, ErrOtherKey},
		{"for attestation keys", [][]byte{issuing.endorse(t, ek, slb9672, func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}}
		})}, now, ErrMalformed},
		{"without usage", [][]byte{issuing.endorse(t, ek, slb9672, func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil })}, now, ErrMalformed},
		{"for signing", [][]byte{issuing.endorse(t, ek, slb9672, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })}, now, ErrMalformed},
		{"without a TPM's name", [][]byte{issuing.endorse(t, ek, tpm{"", "SLB9672", "id:1"})}, now, ErrMalformed},
		{"with a critical extension that is not understood", [][]byte{issuing.endorse(t, ek, slb9672, func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
		})}, now, ErrMalformed},
		{"with a name that is no name", [][]byte{issuing.endorse(t, ek, slb9672, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: oidSubjectAltName, Value: []byte{0x30, 0x04, 0xA4, 0x02, 0x31, 0x05}}}
		})}, now, ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := b.Verify(c.certificates, ek, c.at)
			if !errors.Is(err, c.want) || e != (Endorsement{}) {
				t.Errorf("got %+v, %v; want %v", e, err, c.want)
			}
			if want := c.want == ErrNone || c.want == ErrExpired; Bare(err) != want {
				t.Errorf("as if bare: %v, for %v", !want, err)
			}
		})
	}
}

func TestAuthoritiesThatTheTPMCarriesMustChainToOurs(t *testing.T) {
	// An Intel chip: its certificate is issued by an authority of the chip's
	// own, which stands in the TPM beside it.
	root := authority(t, "On-die root", nil)
	platform := authority(t, "On-die platform CA", root)
	chip := authority(t, "On-die CA of one chip", platform)
	b := reviewedAs(t, "INTC", root)
	ek := newKey(t, elliptic.P256()).Public()
	names := tpm{"id:494E5443", "Tiger Lake", "id:1"}
	der := chip.endorse(t, ek, names)
	chain := slices.Concat(chip.cert.Raw, platform.cert.Raw, []byte{0, 0, 0})

	if _, err := b.Verify([][]byte{der, chain}, ek, now); err != nil {
		t.Errorf("whole chain: %v", err)
	}
	var unknown *UnknownIssuerError
	if _, err := b.Verify([][]byte{der, chip.cert.Raw}, ek, now); !errors.As(err, &unknown) || unknown.Issuer != "CN=On-die platform CA" {
		t.Errorf("chain with a gap: %v", err)
	}
	if _, err := b.Verify([][]byte{der, flip(chip.cert.Raw), platform.cert.Raw}, ek, now); !errors.Is(err, ErrForged) {
		t.Errorf("chain with a turned bit: %v", err)
	}
	stranger := authority(t, "On-die root", nil)
	if _, err := b.Verify([][]byte{stranger.endorse(t, ek, names), stranger.cert.Raw}, ek, now); err == nil {
		t.Error("a root of the device's own is believed")
	}
	weak := authority(t, "For attestation keys", root, func(c *x509.Certificate) {
		c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}}
	})
	if _, err := b.Verify([][]byte{weak.endorse(t, ek, names), weak.cert.Raw}, ek, now); err == nil {
		t.Error("an authority for attestation keys is believed")
	}
}

func TestWeakEndorsementKeysAreRefused(t *testing.T) {
	root := authority(t, "Root", nil)
	b := reviewedAs(t, "IFX", root)
	weak := newKey(t, elliptic.P224()).Public()
	if _, err := b.Verify([][]byte{root.endorse(t, weak, slb9672)}, weak, now); !errors.Is(err, ErrWeak) {
		t.Errorf("P-224: %v", err)
	}
	if _, err := b.Verify([][]byte{{}}, "a string", now); !errors.Is(err, ErrMalformed) {
		t.Errorf("no key: %v", err)
	}
}

func TestMissingIntermediateIsNamedForTheOperator(t *testing.T) {
	root := authority(t, "Root", nil)
	missing := authority(t, "Manufacturing CA \x1b[31m99", root)
	ek := newKey(t, elliptic.P256()).Public()
	der := missing.endorse(t, ek, slb9672, func(c *x509.Certificate) {
		c.IssuingCertificateURL = []string{"https://pki.example/99.crt?" + strings.Repeat("x", 500)}
	})
	_, err := reviewedAs(t, "IFX", root).Verify([][]byte{der}, ek, now)
	var unknown *UnknownIssuerError
	if !errors.As(err, &unknown) {
		t.Fatalf("got %v", err)
	}
	if unknown.Issuer != "CN=Manufacturing CA [31m99" || !strings.HasPrefix(unknown.URL, "https://pki.example/99.crt") || len(unknown.URL) > maxText || len(unknown.KeyID) != 40 {
		t.Errorf("%+v", unknown)
	}
}

func TestVirtualTPMIsRefusedUnlessItsRootIsAllowed(t *testing.T) {
	ca, rsaDER, p384DER := read(t, "ca.pem"), read(t, "ek-rsa2048.der"), read(t, "ek-p384.der")
	allowed, added, err := shippedBundle(t).AllowVirtual(ca)
	if err != nil || len(added) != 2 {
		t.Fatalf("%d added: %v", len(added), err)
	}
	host := authority(t, "Hypervisor", nil)
	ours := reviewedAs(t, "IFX", host)
	both, _, err := ours.AllowVirtual(ca)
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range [][]byte{rsaDER, p384DER} {
		c := parsed(t, der)
		if _, err := shippedBundle(t).Verify([][]byte{der}, c.key, now.Add(24*time.Hour)); !errors.Is(err, ErrVirtual) {
			t.Errorf("not allowed: %v", err)
		}
		e, err := allowed.Verify([][]byte{rsaDER, p384DER}, c.key, now.Add(24*time.Hour))
		if err != nil || !e.Virtual || e.Manufacturer != "swtpm" || e.Model != "swtpm" || e.Issuer != "swtpm-localca" || e.Root != "swtpm-localca-rootca" {
			t.Errorf("allowed: %+v, %v", e, err)
		}
	}
	ek := newKey(t, elliptic.P256()).Public()
	if _, err := both.Verify([][]byte{host.endorse(t, ek, tpm{"id:564D5700", "VMware TPM2", "id:00020065"})}, ek, now); !errors.Is(err, ErrVirtual) {
		t.Errorf("virtual below a manufacturer's root: %v", err)
	}
}

func TestRootOfVirtualTPMsCannotMakeHardware(t *testing.T) {
	host := authority(t, "Hypervisor", nil)
	b, _, err := shippedBundle(t).AllowVirtual(upload(host))
	if err != nil {
		t.Fatal(err)
	}
	ek := newKey(t, elliptic.P256()).Public()
	e, err := b.Verify([][]byte{host.endorse(t, ek, slb9672)}, ek, now)
	if err != nil || !e.Virtual {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestNamesOfVirtualTPMs(t *testing.T) {
	b := shippedBundle(t)
	for _, c := range []struct {
		id, model string
		want      bool
	}{
		{"id:00001014", "swtpm", true},      // swtpm_localca
		{"IBM", "SW  TPM", true},            // libtpms' own properties
		{"IBM", "", true},                   //
		{"VMW", "VMware TPM2", true},        // vSphere
		{"VMW", "", true},                   //
		{"GOOG", "vTPM", true},              // Google Compute Engine
		{"AMZN", "NitroTPMv1.0", true},      // AWS
		{"MSFT", "Virtual TPM", true},       //
		{"QEMU", "QEMU TPM", true},          //
		{"GOOG", "TitanC", false},           // a chip
		{"MSFT", "Pluton", false},           //
		{"IFX", "SLB9672", false},           //
		{"STM", "ST33HTPHAHD4", false},      //
		{"NTC", "NPCT75x", false},           //
		{"INTC", "CannonLake", false},       //
		{"AMD", "AMD-fTPM", false},          //
		{"", "", false},                     // nothing said
		{"IFX", "not a virtual TPM", false}, // only from the beginning
	} {
		if got := b.LooksVirtual(c.id, c.model); got != c.want {
			t.Errorf("%s %q: %v", c.id, c.model, got)
		}
	}
}

// BenchmarkVerify is one endorsement with a chain as AMD, Infineon and
// STMicroelectronics have it; BenchmarkVerify/bare is what cannot be saved of
// it: reading the certificate, and one signature.
func BenchmarkVerify(b *testing.B) {
	root := authority(b, "Root", nil)
	issuing := authority(b, "Manufacturing CA", root)
	bundle := reviewedAs(b, "IFX", root, issuing)
	ek := newKey(b, elliptic.P256()).Public()
	der := issuing.endorse(b, ek, slb9672)
	b.Run("bundle", func(b *testing.B) {
		for b.Loop() {
			if _, err := bundle.Verify([][]byte{der}, ek, now); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				b.Fatal(err)
			}
			if err := cert.CheckSignatureFrom(issuing.cert); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func parsed(t testing.TB, der []byte) *certificate {
	t.Helper()
	certs, err := split(der)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parse(certs[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/swtpm/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
