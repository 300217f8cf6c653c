package attest

import (
	"bytes"
	"crypto/elliptic"
	"encoding/json"
	"os"
	"testing"

	"google.golang.org/protobuf/proto"

	"pfoertner/internal/attest/bootlog"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// recorded is an enrolment that was recorded with a real TPM program (package
// chip, TestRecordTranscripts).
type recorded struct {
	Hello, Challenge, Proof []byte
	Exporter, Secret        []byte

	hello     *agentv1.Hello
	challenge *agentv1.Challenge
	proof     *agentv1.Proof
}

func load(t testing.TB, name string) *recorded {
	t.Helper()
	raw, err := os.ReadFile("testdata/enrolment-" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorded{hello: &agentv1.Hello{}, challenge: &agentv1.Challenge{}, proof: &agentv1.Proof{}}
	if err := json.Unmarshal(raw, r); err != nil {
		t.Fatal(err)
	}
	for m, b := range map[proto.Message][]byte{r.hello: r.Hello, r.challenge: r.Challenge, r.proof: r.Proof} {
		if err := proto.Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// verify judges an enrolment, all but who made the TPM.
func (r *recorded) verify() (*Attested, error) {
	csr, err := ParseRequest(r.hello.GetCsr())
	if err != nil {
		return nil, err
	}
	claim, err := ParseClaim(r.hello.GetTpm(), csr)
	if err != nil {
		return nil, err
	}
	if _, err := claim.EndorsementHash(); err != nil {
		return nil, err
	}
	_, e, err := claim.NewChallenge()
	if err != nil {
		return nil, err
	}
	// The recorded answer is to the recorded challenge.
	e.secret, e.nonce, e.quoteNonce = r.Secret, r.challenge.GetNonce(), r.challenge.GetQuoteNonce()
	transcript, err := Transcript(r.hello)
	if err != nil {
		return nil, err
	}
	return e.Verify(r.proof, r.Exporter, transcript)
}

func TestRecordedEnrolmentsVerify(t *testing.T) {
	for _, name := range []string{"rsa", "ecc"} {
		got, err := load(t, name).verify()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got.BootError != nil || got.Boot.SecureBoot != bootlog.Yes {
			t.Errorf("%s: boot %+v, %v", name, got.Boot, got.BootError)
		}
	}
}

func TestKeysBeginAsTheTemplatesSay(t *testing.T) {
	for _, template := range append(EndorsementKeys(), AttestationKey(), SigningKey(), StorageKey()) {
		if !SameTemplate(template, template.Area) {
			t.Errorf("%x is not of its own template", template.Area)
		}
	}
	if SameTemplate(AttestationKey(), SigningKey().Area) || SameTemplate(Template{Area: []byte("x")}, []byte("x")) {
		t.Error("different templates count as the same")
	}
}

func TestMalformedAreas(t *testing.T) {
	good := load(t, "rsa").hello.GetTpm()
	ak := good.GetAkPublic()
	for name, area := range map[string][]byte{
		"nothing": nil, "cut off": ak[:len(ak)-1], "followed by more": append(bytes.Clone(ak), 0), "too long": make([]byte, maxArea+1),
		"no point":          []byte(akArea + "\x00\x00\x00\x00"),
		"not on the curve":  append(bytes.Clone(ak[:len(ak)-1]), ak[len(ak)-1]^1),
		"a long coordinate": append([]byte(akArea+"\x00\x21"), make([]byte, 0x21+2)...),
	} {
		if _, err := ParseAttestationKey(area); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	ek := good.GetEkPublic()
	even := bytes.Clone(ek)
	even[len(even)-1] &^= 1
	for name, area := range map[string][]byte{
		"nothing": nil, "cut off": ek[:len(ek)-1], "even": even, "short modulus": []byte(ekRSA + "\x00\x01\x03"),
		"leading zero": append([]byte(ekRSA+"\x01\x00\x00"), ek[len(ek)-255:]...),
	} {
		if _, err := ParseEndorsementKey(area); err == nil {
			t.Errorf("endorsement key %s: taken", name)
		}
	}
}

// Some TPMs leave leading zeros of coordinates out.
func TestCoordinatesWithoutLeadingZeros(t *testing.T) {
	for {
		key := newKey(t)
		raw, err := key.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if raw[1] != 0 {
			continue
		}
		area := append([]byte(akArea+"\x00\x1f"), raw[2:33]...)
		area = append(append(area, 0, 32), raw[33:]...)
		got, err := ParseAttestationKey(area)
		if err != nil || !got.Public.Equal(&key.PublicKey) || got.Public.Curve != elliptic.P256() {
			t.Errorf("%v, %v", got, err)
		}
		return
	}
}

func TestClockFollows(t *testing.T) {
	base := Clock{Milliseconds: 100, ResetCount: 7, RestartCount: 2}
	for name, tc := range map[string]struct {
		later Clock
		want  bool
	}{
		"the same":           {base, true},
		"later":              {Clock{Milliseconds: 101, ResetCount: 7, RestartCount: 2}, true},
		"earlier":            {Clock{Milliseconds: 99, ResetCount: 7, RestartCount: 2}, false},
		"after a resume":     {Clock{Milliseconds: 101, ResetCount: 7, RestartCount: 3}, true},
		"before a resume":    {Clock{Milliseconds: 101, ResetCount: 7, RestartCount: 1}, false},
		"after a reset":      {Clock{Milliseconds: 5, ResetCount: 8}, true},
		"before a reset":     {Clock{Milliseconds: 500, ResetCount: 6, RestartCount: 9}, false},
		"far beyond a reset": {Clock{ResetCount: 7 + 1<<31}, false},
	} {
		if got := tc.later.Follows(base); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if over := (Clock{ResetCount: 1}); !over.Follows(Clock{ResetCount: 1<<32 - 1}) {
		t.Error("a count that went around does not follow")
	}
}

func FuzzParseClaim(f *testing.F) {
	for _, name := range []string{"rsa", "ecc"} {
		tpm := load(f, name).hello.GetTpm()
		f.Add(tpm.GetEkPublic(), tpm.GetAkPublic(), tpm.GetTlsKeyPublic())
	}
	f.Fuzz(func(t *testing.T, ek, ak, tls []byte) {
		key, err := ParseSigningKey(tls)
		if err != nil {
			return
		}
		claim, err := ParseClaim(&agentv1.TpmIdentity{EkPublic: ek, AkPublic: ak, TlsKeyPublic: tls}, key.Public)
		if err != nil {
			return
		}
		if _, _, err := claim.NewChallenge(); err != nil {
			t.Errorf("a claim that cannot be challenged: %v", err)
		}
	})
}

// The signature hides what is behind it from a fuzzer: here every message is
// properly signed.
func FuzzStatement(f *testing.F) {
	r := load(f, "ecc")
	f.Add(r.proof.GetCertify(), []byte("asked"))
	f.Add(r.proof.GetQuote(), []byte{})
	key := newKey(f)
	f.Fuzz(func(t *testing.T, message, asked []byte) {
		s := tpm{t, key}
		sig := s.sign(message)
		if q, err := VerifyQuote(s.ak(), QuotedPCRs(), asked, message, sig); err == nil && len(q.Digest) != 32 {
			t.Error("quote without a digest")
		}
		if err := VerifyCertify(s.ak(), &Key{Name: []byte("name")}, asked, message, sig); err == nil && !bytes.Contains(message, []byte("name")) {
			t.Error("certified what is not there")
		}
		_ = verifySignature(s.ak().Public, message, asked)
	})
}
