package signed

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"pfoertner/internal/mtls"
)

var today = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

const table = "# reference values\nissued: 2026-11-21\n"

// authority is a server CA.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{key: newECDSA(t, elliptic.P256())}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "server CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: today.AddDate(-1, 0, 0), NotAfter: today.AddDate(9, 0, 0), KeyUsage: x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	a.cert = makeCertificate(t, template, template, a.key.Public(), a.key)
	return a
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// issue makes a certificate of a role for a key, valid for a year around today.
func (a *authority) issue(t testing.TB, role mtls.Role, key crypto.Signer) tls.Certificate {
	t.Helper()
	uri, err := url.Parse("urn:pfoertner:" + string(role) + ":it")
	if err != nil {
		t.Fatal(err)
	}
	cert := makeCertificate(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "it"}, URIs: []*url.URL{uri},
		NotBefore: today.AddDate(0, -6, 0), NotAfter: today.AddDate(0, 6, 0), ExtKeyUsage: role.Usage(),
	}, a.cert, key.Public(), a.key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw, a.cert.Raw}, PrivateKey: key}
}

func makeCertificate(t testing.TB, template, parent *x509.Certificate, key crypto.PublicKey, by crypto.Signer) *x509.Certificate {
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

func newECDSA(t testing.TB, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newEd25519(t testing.TB) crypto.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, kind, content string, signer tls.Certificate) []byte {
	t.Helper()
	file, err := Sign(kind, []byte(content), signer)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestASignedFileOpens(t *testing.T) {
	ca := newAuthority(t)
	for name, key := range map[string]crypto.Signer{"ECDSA P-256": newECDSA(t, elliptic.P256()), "Ed25519": newEd25519(t)} {
		t.Run(name, func(t *testing.T) {
			file := sign(t, References, table, ca.issue(t, mtls.RoleReferenceSigner, key))
			if !strings.HasPrefix(string(file), table+"-----BEGIN PFOERTNER SIGNATURE-----\nKind: references\n") {
				t.Errorf("not readable as it stands:\n%s", file)
			}
			content, signer, err := Open(References, file, ca.pool(), today)
			if err != nil || string(content) != table || signer != "it" {
				t.Errorf("content %q, signer %q, %v", content, signer, err)
			}
			if kind, err := KindOf(file); kind != References || err != nil {
				t.Errorf("kind %q, %v", kind, err)
			}
		})
	}
}

func TestALineEndIsAddedToContentWithoutOne(t *testing.T) {
	ca := newAuthority(t)
	file := sign(t, References, "issued: 2026-11-21", ca.issue(t, mtls.RoleReferenceSigner, newEd25519(t)))
	if content, _, err := Open(References, file, ca.pool(), today); err != nil || string(content) != "issued: 2026-11-21\n" {
		t.Errorf("%q, %v", content, err)
	}
}

// Every way to pass off something else as a signed file, and what is said of it.
func TestAttacks(t *testing.T) {
	ca, foreign := newAuthority(t), newAuthority(t)
	key := newECDSA(t, elliptic.P256())
	signer := ca.issue(t, mtls.RoleReferenceSigner, key)
	good := sign(t, References, table, signer)
	other := sign(t, References, "# other\n", signer)
	signature := len(table)
	for name, tc := range map[string]struct {
		file []byte
		open string         // as what; empty: references
		pool *x509.CertPool // nil: the right one
		at   time.Time      // zero: today
		want string
	}{
		"a catalogue as reference values":  {file: sign(t, VPNCatalogue, table, signer), want: `signed for "vpn-catalogue"`},
		"reference values as a catalogue":  {file: good, open: VPNCatalogue, want: `signed for "references"`},
		"the kind rewritten":               {file: replace(good, "Kind: references", "Kind: vpn-catalogue"), open: VPNCatalogue, want: "changed after it was signed"},
		"an unknown kind":                  {file: replace(good, "Kind: references", "Kind: policy"), open: "policy", want: "no kind of signed file"},
		"no kind":                          {file: replace(good, "Kind: references\n\n", ""), want: "no kind of signed file"},
		"a changed byte":                   {file: replace(good, "2026", "2027"), want: "changed after it was signed"},
		"another file's signature":         {file: append([]byte(table), other[len("# other\n"):]...), want: "changed after it was signed"},
		"text before the content":          {file: append([]byte("x"), good...), want: "changed after it was signed"},
		"text between content and block":   {file: insert(good, signature, "more: true\n"), want: "changed after it was signed"},
		"text after the certificates":      {file: append(bytes.Clone(good), "more: true\n"...), want: "something was added"},
		"an empty line at the end":         {file: append(bytes.Clone(good), '\n'), want: "something was added"},
		"text between the blocks":          {file: replace(good, "-----END PFOERTNER SIGNATURE-----\n", "-----END PFOERTNER SIGNATURE-----\nmore: true\n"), want: "something was added"},
		"a second header":                  {file: replace(good, "Kind: references\n", "Kind: references\nNote: x\n"), want: "something was added"},
		"two signatures":                   {file: insert(good, signature, string(other[len("# other\n"):])), want: "only the signer's certificates"},
		"a line of base64 wrapped":         {file: replace(good, "-----END PFOERTNER", "\n-----END PFOERTNER"), want: "not written as it should be"},
		"line ends made CRLF":              {file: replace(good, "\n", "\r\n"), want: "carriage returns"},
		"cut off within the signature":     {file: good[:signature+60], want: "cut off"},
		"cut off within the certificates":  {file: good[:len(good)-40], want: "cut off"},
		"cut off by its last byte":         {file: good[:len(good)-1], want: "cut off"},
		"without certificates":             {file: good[:bytes.Index(good, []byte("-----BEGIN CERTIFICATE"))], want: "no reference-signer certificate"},
		"five certificates":                {file: append(bytes.Clone(good), bytes.Repeat(encode(ca.cert.Raw), 3)...), want: "at most 4"},
		"no signature at all":              {file: []byte(table), want: "carries no signature"},
		"empty":                            {want: "carries no signature"},
		"no content":                       {file: append([]byte("\n"), good[signature:]...), want: "no content"},
		"too long":                         {file: bytes.Repeat([]byte("#"), MaxFile+1), want: "at most"},
		"not UTF-8":                        {file: replace(good, "reference values", "\xff"), want: "not UTF-8"},
		"a collector's certificate":        {file: forge(t, ca.issue(t, mtls.RoleCollector, key)), want: "role collector stands where"},
		"a lease signer's certificate":     {file: forge(t, ca.issue(t, mtls.RoleLeaseSigner, key)), want: "role lease-signer stands where"},
		"an operator of the same CA":       {file: forge(t, ca.issue(t, mtls.RoleOperator, key)), want: "role operator stands where"},
		"the CA itself":                    {file: forge(t, tls.Certificate{Certificate: [][]byte{ca.cert.Raw}, PrivateKey: ca.key}), want: "0 URI names"},
		"a foreign CA":                     {file: sign(t, References, table, foreign.issue(t, mtls.RoleReferenceSigner, key)), want: "another authority"},
		"a foreign CA, ours in the chain":  {file: sign(t, References, table, withChain(foreign.issue(t, mtls.RoleReferenceSigner, key), ca.cert.Raw)), want: "another authority"},
		"another key of the role":          {file: forge(t, tls.Certificate{Certificate: signer.Certificate, PrivateKey: newECDSA(t, elliptic.P256())}), want: "changed after it was signed"},
		"an Ed25519 signature, ECDSA cert": {file: forge(t, tls.Certificate{Certificate: signer.Certificate, PrivateKey: newEd25519(t)}), want: "changed after it was signed"},
		"a key of another curve":           {file: forge(t, ca.issue(t, mtls.RoleReferenceSigner, newECDSA(t, elliptic.P384()))), want: "not of the curve P-256"},
		"nobody is trusted":                {file: good, pool: x509.NewCertPool(), want: "another authority"},
		"after the signer's end":           {file: good, at: today.AddDate(0, 7, 0), want: "expired"},
		"before the signer's beginning":    {file: good, at: today.AddDate(0, -7, 0), want: "not yet valid"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.open == "" {
				tc.open = References
			}
			if tc.pool == nil {
				tc.pool = ca.pool()
			}
			if tc.at.IsZero() {
				tc.at = today
			}
			content, name, err := Open(tc.open, tc.file, tc.pool, tc.at)
			if err == nil || !strings.Contains(err.Error(), tc.want) || content != nil || name != "" {
				t.Errorf("content %q, signer %q, error %v; want %q", content, name, err, tc.want)
			}
		})
	}
	if _, _, err := Open(References, good, nil, today); err == nil {
		t.Error("without roots the system's were asked")
	}
}

func TestSignRefusesWhatNobodyWouldOpen(t *testing.T) {
	ca := newAuthority(t)
	key := newECDSA(t, elliptic.P256())
	signer := ca.issue(t, mtls.RoleReferenceSigner, key)
	for name, tc := range map[string]struct {
		kind, content string
		signer        tls.Certificate
		want          string
	}{
		"unknown kind":          {"policy", table, signer, "no kind of signed file"},
		"nothing":               {References, " \n", signer, "no content"},
		"carriage returns":      {References, "a: 1\r\n", signer, "carriage returns"},
		"not UTF-8":             {References, "\xfe", signer, "not UTF-8"},
		"too long":              {References, strings.Repeat("#", MaxContent), signer, "at most"},
		"signed already":        {References, string(sign(t, References, table, signer)), signer, "signed already"},
		"a signature only":      {References, "-----BEGIN X\n", signer, "signed already"},
		"no certificate":        {References, table, tls.Certificate{PrivateKey: key}, "0 certificates"},
		"no key":                {References, table, tls.Certificate{Certificate: signer.Certificate}, "cannot sign"},
		"another role":          {References, table, ca.issue(t, mtls.RoleOperator, key), "signs no files"},
		"a key of another":      {References, table, tls.Certificate{Certificate: signer.Certificate, PrivateKey: newEd25519(t)}, "do not belong together"},
		"a key of another kind": {References, table, ca.issue(t, mtls.RoleReferenceSigner, newECDSA(t, elliptic.P384())), "P-256"},
	} {
		t.Run(name, func(t *testing.T) {
			file, err := Sign(tc.kind, []byte(tc.content), tc.signer)
			if err == nil || !strings.Contains(err.Error(), tc.want) || file != nil {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// forge signs like Sign, with whatever certificate.
func forge(t testing.TB, signer tls.Certificate) []byte {
	t.Helper()
	digest, options := signedMessage(References, []byte(table)), crypto.SignerOpts(crypto.Hash(0))
	key := signer.PrivateKey.(crypto.Signer)
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		h := crypto.SHA256.New()
		h.Write(digest)
		digest, options = h.Sum(nil), crypto.SHA256
	}
	signature, err := key.Sign(rand.Reader, digest, options)
	if err != nil {
		t.Fatal(err)
	}
	return write(References, []byte(table), signature, signer.Certificate)
}

func withChain(c tls.Certificate, more ...[]byte) tls.Certificate {
	c.Certificate = append(c.Certificate[:1:1], more...)
	return c
}

func encode(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certificateType, Bytes: der})
}

func replace(file []byte, old, new string) []byte {
	return bytes.ReplaceAll(file, []byte(old), []byte(new))
}

func insert(file []byte, at int, text string) []byte {
	return append(append(bytes.Clone(file[:at]), text...), file[at:]...)
}

// Whatever the bytes: what opens is, byte for byte, what Sign wrote.
func FuzzOpen(f *testing.F) {
	ca := newAuthority(f)
	good := sign(f, References, table, ca.issue(f, mtls.RoleReferenceSigner, newEd25519(f)))
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(replace(good, "\n", "\r\n"))
	f.Add([]byte("\n-----BEGIN PFOERTNER SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		content, _, err := Open(References, file, ca.pool(), today)
		if err == nil && !bytes.Equal(file, good) {
			t.Fatalf("a file that nobody signed opens with %q", content)
		}
	})
}
