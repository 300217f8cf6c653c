package identity_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"pfoertner/agent/identity"
	"pfoertner/internal/attest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// book is what a collector knows of one notebook, for its renewals.
type book struct {
	*desk
	endorsement []byte
	known       []byte // attestation key
	exporter    []byte
}

func newBook(t *testing.T, n *hardware, d *desk) *book {
	ek, _ := n.endorsement(t)
	return &book{desk: d, endorsement: ek, known: d.last(t).GetTpm().GetAkPublic(), exporter: bytes.Repeat([]byte{7}, 32)}
}

// renew is one renewal up to the collector's answer, which the caller may lose.
// The attestation key that is known certifies, also its own successor's.
func (b *book) renew(t *testing.T, s *identity.State, id *identity.Identity) (*identity.Renewal, *agentv1.RenewalRequest, *agentv1.Issued) {
	t.Helper()
	r, err := s.Renew(id)
	if err != nil {
		t.Fatal(err)
	}
	request := r.Request()
	key, err := attest.ParseRequest(request.GetCsr())
	if err != nil {
		t.Fatal(err)
	}
	challenge := &agentv1.RenewalChallenge{Nonce: make([]byte, attest.NonceBytes)}
	rand.Read(challenge.Nonce)
	var secret []byte
	if area := request.GetAkPublic(); len(area) > 0 {
		secret = b.conceal(t, area, challenge)
	}
	proof, err := r.Prove(challenge, b.exporter)
	if err != nil {
		t.Fatal(err)
	}
	b.judge(t, request, key, challenge.Nonce, secret, proof)
	return r, request, b.Issued(key, deviceID)
}

// conceal makes a secret for the endorsement key and a new attestation key.
func (b *book) conceal(t *testing.T, area []byte, challenge *agentv1.RenewalChallenge) []byte {
	t.Helper()
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.endorsement)
	if err != nil {
		t.Fatal(err)
	}
	ek, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		t.Fatal(err)
	}
	secret := bytes.Repeat([]byte{9}, 32)
	challenge.CredentialBlob, challenge.EncryptedSecret, err = tpm2.CreateCredential(rand.Reader, ek, attest.Name(area), secret)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func (b *book) judge(t *testing.T, request *agentv1.RenewalRequest, key *ecdsa.PublicKey, nonce, secret []byte, proof *agentv1.RenewalProof) {
	t.Helper()
	ak, err := attest.ParseAttestationKey(b.known)
	if err != nil {
		t.Fatal(err)
	}
	tls, err := attest.ParseSigningKey(request.GetTlsKeyPublic())
	if err != nil || !tls.Public.Equal(key) {
		t.Fatalf("TLS key: %v", err)
	}
	if err := attest.Verify(key, attest.RenewDigest(nonce, b.exporter, request.GetCsr()), proof.GetSignature()); err != nil {
		t.Errorf("signature: %v", err)
	}
	err = attest.VerifyCertify(ak, tls, attest.Qualify(attest.PurposeCertify, nonce, b.exporter), proof.GetCertify(), proof.GetCertifySignature())
	if err != nil {
		t.Errorf("certification: %v", err)
	}
	var want []byte
	if secret != nil {
		want = attest.Activation(secret, request.GetCsr(), b.exporter)
	}
	if !bytes.Equal(proof.GetActivation(), want) {
		t.Error("activation is another one")
	}
}

func complete(t *testing.T, r *identity.Renewal, m *agentv1.Issued) *identity.Identity {
	t.Helper()
	id, err := r.Complete(m, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestRenewalReplacesKeysInTheTPMByTheirAge(t *testing.T) {
	for name, test := range map[string]struct {
		key, attestation time.Duration
		newKey, newAK    bool
	}{
		"young":                 {0, 0, false, false},
		"almost a month":        {29 * 24 * time.Hour, 364 * 24 * time.Hour, false, false},
		"a month":               {31 * 24 * time.Hour, 31 * 24 * time.Hour, true, false},
		"a year":                {0, 366 * 24 * time.Hour, false, true},
		"both":                  {31 * 24 * time.Hour, 366 * 24 * time.Hour, true, true},
		"made when clock wrong": {-48 * time.Hour, -48 * time.Hour, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newHardware(t)
			d := newDesk(t, n)
			before := enrolled(t, n, d)
			b := newBook(t, n, d)
			known := b.known
			age(t, n.state, "key_since", time.Now().Add(-test.key))
			age(t, n.state, "attestation_key_since", time.Now().Add(-test.attestation))
			r, request, answer := b.renew(t, n.state, mustLoad(t, n.state))
			if fingerprint(t, mustLoad(t, n.state)) != fingerprint(t, before) {
				t.Error("the key has changed before there is a certificate")
			}
			after := complete(t, r, answer)
			if area := request.GetAkPublic(); len(area) > 0 {
				b.known = area
			}
			if got := fingerprint(t, after) != fingerprint(t, before); got != test.newKey {
				t.Errorf("another key: %v, want %v", got, test.newKey)
			}
			if got := len(request.GetAkPublic()) > 0; got != test.newAK || bytes.Equal(b.known, known) == test.newAK {
				t.Errorf("another attestation key: %v, want %v", got, test.newAK)
			}
			stored := mustLoad(t, n.state)
			if fingerprint(t, stored) != fingerprint(t, after) || !stored.Chain[0].Equal(after.Chain[0]) {
				t.Error("something else is stored")
			}
			// What was replaced is young now.
			if _, request, _ := b.renew(t, n.state, stored); len(request.GetAkPublic()) > 0 {
				t.Error("the next renewal replaces the attestation key again")
			}
		})
	}
}

// The collector may have taken the new attestation key although its answer got
// lost: then it knows no other.
func TestRotationWhoseAnswerGotLostIsFinishedWithTheSameKeys(t *testing.T) {
	n := newHardware(t)
	d := newDesk(t, n)
	enrolled(t, n, d)
	b := newBook(t, n, d)
	age(t, n.state, "attestation_key_since", time.Now().AddDate(-2, 0, 0))
	_, lost, _ := b.renew(t, n.state, mustLoad(t, n.state))
	t.Run("by the next renewal", func(t *testing.T) {
		_, again, _ := b.renew(t, n.state, mustLoad(t, n.state))
		if !bytes.Equal(lost.GetAkPublic(), again.GetAkPublic()) {
			t.Error("a third attestation key")
		}
	})
	t.Run("by enrolling again", func(t *testing.T) {
		d.expect(func(d *desk) { d.known = lost.GetAkPublic() })
		enrolled(t, n, d)
		if !bytes.Equal(d.last(t).GetTpm().GetAkPublic(), lost.GetAkPublic()) {
			t.Error("by the old attestation key")
		}
		id := mustLoad(t, n.state)
		if r, err := n.state.Renew(id); err != nil || len(r.Request().GetAkPublic()) > 0 {
			t.Errorf("the rotation is not over: %v", err)
		}
	})
}

func TestRenewalWithoutATPMIsPutOff(t *testing.T) {
	n := newHardware(t)
	d := newDesk(t, n)
	id := enrolled(t, n, d)
	n.Off()
	if _, err := n.state.Renew(id); err == nil {
		t.Error("renewed without a TPM")
	}
	n.On(t)
	r, _, answer := newBook(t, n, d).renew(t, n.state, mustLoad(t, n.state))
	complete(t, r, answer)
}
