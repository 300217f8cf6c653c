package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"regexp"
	"testing"

	"google.golang.org/protobuf/proto"

	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	csr, err := NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func TestDigestIsThatOfTheProtocol(t *testing.T) {
	nonce, exporter, subject := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), []byte("hello")
	inner := sha256.Sum256(subject)
	for purpose, got := range map[string][]byte{
		"enrol-v1": EnrolDigest(nonce, exporter, subject),
		"renew-v1": RenewDigest(nonce, exporter, subject),
	} {
		whole := append([]byte(purpose), 0)
		whole = append(append(append(whole, nonce...), exporter...), inner[:]...)
		if want := sha256.Sum256(whole); !bytes.Equal(got, want[:]) {
			t.Errorf("%s: %x, want %x", purpose, got, want)
		}
	}
}

func TestProofHoldsForItsOwnPurposeNonceConnectionAndSubjectOnly(t *testing.T) {
	key := newKey(t)
	nonce, exporter, subject := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), []byte("hello")
	other := bytes.Repeat([]byte{3}, 32)
	sig, err := Sign(key, EnrolDigest(nonce, exporter, subject))
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(key.Public(), EnrolDigest(nonce, exporter, subject), sig); err != nil {
		t.Fatalf("own proof: %v", err)
	}
	for name, tc := range map[string]struct {
		key    crypto.PublicKey
		digest []byte
		sig    []byte
	}{
		"another nonce":         {key.Public(), EnrolDigest(other, exporter, subject), sig},
		"another connection":    {key.Public(), EnrolDigest(nonce, other, subject), sig},
		"another hello":         {key.Public(), EnrolDigest(nonce, exporter, []byte("hallo")), sig},
		"another purpose":       {key.Public(), RenewDigest(nonce, exporter, subject), sig},
		"another key":           {newKey(t).Public(), EnrolDigest(nonce, exporter, subject), sig},
		"no signature":          {key.Public(), EnrolDigest(nonce, exporter, subject), nil},
		"a signature cut off":   {key.Public(), EnrolDigest(nonce, exporter, subject), sig[:len(sig)-1]},
		"a digest that is none": {key.Public(), nil, sig},
	} {
		if err := Verify(tc.key, tc.digest, tc.sig); !errors.Is(err, ErrProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOnlyP256Keys(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-384": p384, "RSA": rsaKey, "Ed25519": edKey} {
		if _, err := ParseRequest(request(t, key)); err == nil {
			t.Errorf("request for %s is taken", name)
		}
		if err := Verify(key.Public(), make([]byte, 32), nil); err == nil {
			t.Errorf("proof by %s is taken", name)
		}
	}
	if err := Verify(nil, make([]byte, 32), nil); err == nil {
		t.Error("proof by no key is taken")
	}
}

func TestForgedRequestIsRefused(t *testing.T) {
	key := newKey(t)
	csr := request(t, key)
	pub, err := ParseRequest(csr)
	if err != nil || !pub.Equal(key.Public()) {
		t.Fatalf("%v, %v", pub, err)
	}
	// The key of somebody else, in a request that somebody else signed.
	other := newKey(t)
	parsed, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	otherSPKI, err := x509.MarshalPKIXPublicKey(other.Public())
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Replace(csr, parsed.RawSubjectPublicKeyInfo, otherSPKI, 1)
	if _, err := ParseRequest(forged); err == nil {
		t.Error("a key that did not sign the request is taken")
	}
	for name, der := range map[string][]byte{
		"nothing": nil, "nonsense": []byte("csr"), "cut off": csr[:len(csr)-1], "followed by more": append(bytes.Clone(csr), 0),
		"far too long": make([]byte, maxRequestBytes+1),
	} {
		if _, err := ParseRequest(der); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestFingerprintIsForPeople(t *testing.T) {
	key := newKey(t)
	a, err := Fingerprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^([0-9A-HJKMNP-TV-Z]{4}-){5}[0-9A-HJKMNP-TV-Z]{4}$`).MatchString(a) {
		t.Errorf("fingerprint %q", a)
	}
	if b, _ := Fingerprint(key.Public()); a != b {
		t.Errorf("%s, then %s", a, b)
	}
	if b, _ := Fingerprint(newKey(t).Public()); a == b {
		t.Error("two keys, one fingerprint")
	}
}

// A collector of this version and an agent of the next see the same transcript.
func TestTranscriptKeepsWhatANewerAgentSays(t *testing.T) {
	hello := &agentv1.Hello{Token: "t", Csr: []byte("c"), Machine: &agentv1.Machine{Vendor: "v", Serial: "s"}}
	sent, err := Transcript(hello)
	if err != nil {
		t.Fatal(err)
	}
	newer := append(sent, 0xa2, 0x06, 0x01, 'x') // field 100
	arrived := &agentv1.Hello{}
	if err := proto.Unmarshal(newer, arrived); err != nil {
		t.Fatal(err)
	}
	got, err := Transcript(arrived)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, newer) {
		t.Errorf("%x, want %x", got, newer)
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add(request(f, newKey(f)))
	f.Add([]byte{0x30, 0x03, 0x02, 0x01, 0x00})
	f.Fuzz(func(t *testing.T, der []byte) {
		key, err := ParseRequest(der)
		if err == nil && key.Curve != elliptic.P256() {
			t.Errorf("key on %s", key.Curve.Params().Name)
		}
	})
}
