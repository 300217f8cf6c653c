package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

// tpm signs whatever it is told to, which no TPM does: so the checks of what is
// signed are tried alone.
type tpm struct {
	t   testing.TB
	key *ecdsa.PrivateKey
}

func (s tpm) ak() *Key { return &Key{Public: &s.key.PublicKey} }

func (s tpm) sign(message []byte) []byte {
	s.t.Helper()
	sum := sha256.Sum256(message)
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		s.t.Fatal(err)
	}
	sig := append([]byte("\x00\x18\x00\x0b\x00\x20"), r.FillBytes(make([]byte, 32))...)
	return append(append(sig, 0, 32), v.FillBytes(make([]byte, 32))...)
}

// message is a TPMS_ATTEST up to what it attests.
func message(magic uint32, kind uint16, asked []byte, attested ...byte) []byte {
	m := binary.BigEndian.AppendUint32(nil, magic)
	m = binary.BigEndian.AppendUint16(m, kind)
	m = append(m, 0, 2, 'q', 'n')
	m = binary.BigEndian.AppendUint16(m, uint16(len(asked)))
	m = append(m, asked...)
	m = append(m, make([]byte, 8+4+4)...)
	m = append(m, 1)
	m = append(m, make([]byte, 8)...)
	return append(m, attested...)
}

func quoteOf(bank uint16, selected ...byte) []byte {
	q := binary.BigEndian.AppendUint32(nil, 1)
	q = binary.BigEndian.AppendUint16(q, bank)
	q = append(q, byte(len(selected)))
	q = append(q, selected...)
	return append(append(q, 0, 32), make([]byte, 32)...)
}

func TestWhatIsSignedIsThatOfTheProtocol(t *testing.T) {
	nonce, exporter, said := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), sha256.Sum256([]byte("hello"))
	for purpose, name := range map[Purpose]string{PurposeCertify: "certify-v1", PurposeVPN: "vpn-certify-v1", PurposeQuote: "quote-v1"} {
		want := sha256.Sum256(slices.Concat([]byte(name), []byte{0}, nonce, exporter))
		if got := Qualify(purpose, nonce, exporter); !bytes.Equal(got, want[:]) {
			t.Errorf("%s: %x, want %x", name, got, want)
		}
	}
	mac := hmac.New(sha256.New, []byte("secret"))
	mac.Write(slices.Concat([]byte("enrol-v1"), said[:], exporter))
	if got, want := Activation([]byte("secret"), []byte("hello"), exporter), mac.Sum(nil); !bytes.Equal(got, want) {
		t.Errorf("activation %x, want %x", got, want)
	}
}

func TestQuotesAreOfTheseAndNoOtherPCRs(t *testing.T) {
	s := tpm{t, newKey(t)}
	asked := []byte("asked")
	ours := quoteOf(algSHA256, 0x95, 0x78, 0)
	for name, tc := range map[string]struct {
		message []byte
		want    error
	}{
		"ours":                   {message(generated, typeQuote, asked, ours...), nil},
		"longer selection":       {message(generated, typeQuote, asked, quoteOf(algSHA256, 0x95, 0x78, 0, 0)...), nil},
		"one fewer":              {message(generated, typeQuote, asked, quoteOf(algSHA256, 0x15, 0x78, 0)...), ErrPCRs},
		"one more":               {message(generated, typeQuote, asked, quoteOf(algSHA256, 0x95, 0x78, 1)...), ErrPCRs},
		"another":                {message(generated, typeQuote, asked, quoteOf(algSHA256, 0x95, 0xb8, 0)...), ErrPCRs},
		"short selection":        {message(generated, typeQuote, asked, quoteOf(algSHA256, 0x95)...), ErrPCRs},
		"no selection":           {message(generated, typeQuote, asked, quoteOf(algSHA256)...), ErrPCRs},
		"SHA-1":                  {message(generated, typeQuote, asked, quoteOf(4, 0x95, 0x78, 0)...), ErrPCRs},
		"two banks":              {message(generated, typeQuote, asked, append([]byte{0, 0, 0, 2}, ours[4:]...)...), ErrPCRs},
		"not made by a TPM":      {message(0xff544348, typeQuote, asked, ours...), ErrStatement},
		"of another kind":        {message(generated, typeCertify, asked, ours...), ErrStatement},
		"another question":       {message(generated, typeQuote, []byte("askee"), ours...), ErrReplay},
		"no question":            {message(generated, typeQuote, nil, ours...), ErrReplay},
		"followed by more":       {message(generated, typeQuote, asked, append(bytes.Clone(ours), 0)...), ErrStatement},
		"cut off":                {message(generated, typeQuote, asked, ours[:len(ours)-1]...), ErrStatement},
		"cut off at the clock":   {message(generated, typeQuote, asked)[:20], ErrStatement},
		"nothing":                {nil, ErrStatement},
		"far too long":           {make([]byte, maxMessage+1), ErrStatement},
		"a digest of other size": {message(generated, typeQuote, asked, append(ours[:len(ours)-34:len(ours)-34], 0, 1, 7)...), ErrStatement},
	} {
		_, err := VerifyQuote(s.ak(), QuotedPCRs(), asked, tc.message, s.sign(tc.message))
		if tc.want == nil && err != nil || !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
}

func TestCertificationsAreOfThisKey(t *testing.T) {
	s := tpm{t, newKey(t)}
	asked, key := []byte("asked"), &Key{Name: []byte("name")}
	for name, tc := range map[string]struct {
		message []byte
		want    error
	}{
		"ours":              {message(generated, typeCertify, asked, []byte("\x00\x04name\x00\x02qn")...), nil},
		"another key":       {message(generated, typeCertify, asked, []byte("\x00\x04eman\x00\x02qn")...), ErrOtherKey},
		"no key":            {message(generated, typeCertify, asked, 0, 0, 0, 0), ErrOtherKey},
		"not made by a TPM": {message(0, typeCertify, asked, []byte("\x00\x04name\x00\x02qn")...), ErrStatement},
		"a quote":           {message(generated, typeQuote, asked, []byte("\x00\x04name\x00\x02qn")...), ErrStatement},
		"cut off":           {message(generated, typeCertify, asked, []byte("\x00\x04name\x00\x02q")...), ErrStatement},
		"followed by more":  {message(generated, typeCertify, asked, []byte("\x00\x04name\x00\x02qn ")...), ErrStatement},
		"another question":  {message(generated, typeCertify, nil, []byte("\x00\x04name\x00\x02qn")...), ErrReplay},
	} {
		err := VerifyCertify(s.ak(), key, asked, tc.message, s.sign(tc.message))
		if tc.want == nil && err != nil || !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
}

func TestSignaturesOfStatements(t *testing.T) {
	s := tpm{t, newKey(t)}
	m := []byte("message")
	good := s.sign(m)
	if err := verifySignature(s.ak().Public, m, good); err != nil {
		t.Fatal(err)
	}
	rsa := bytes.Clone(good)
	rsa[1] = 0x14
	sha1 := bytes.Clone(good)
	sha1[3] = 4
	for name, sig := range map[string][]byte{
		"none": nil, "cut off": good[:len(good)-1], "followed by more": append(bytes.Clone(good), 0), "by RSA": rsa, "with SHA-1": sha1,
		"zero":     append([]byte("\x00\x18\x00\x0b"), 0, 0, 0, 0),
		"too long": append([]byte("\x00\x18\x00\x0b\x00\x21"), make([]byte, 33+2)...),
	} {
		if err := verifySignature(s.ak().Public, m, sig); !errors.Is(err, ErrStatement) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
