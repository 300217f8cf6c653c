package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// Renewal is a request for a new certificate by a notebook whose TPM is known.
type Renewal struct {
	// TLS is the key of the certificate request.
	TLS *Key
	// AttestationKey is the public area of a new attestation key; empty: that of
	// before stays.
	AttestationKey []byte

	ak            *Key
	csr           []byte
	nonce, secret []byte
}

// ParseRenewal reads the TPM material of a request for a new certificate for the
// key csr (ParseRequest). The error is ErrKey for keys of another kind, or when
// the certificate request is for another key than the TPM's.
func ParseRenewal(r *agentv1.RenewalRequest, csr *ecdsa.PublicKey) (*Renewal, error) {
	tls, err := ParseSigningKey(r.GetTlsKeyPublic())
	if err != nil {
		return nil, fmt.Errorf("TLS key: %w", err)
	}
	if csr == nil || !tls.Public.Equal(csr) {
		return nil, fmt.Errorf("TLS key: %w: the certificate request is for another", ErrKey)
	}
	parsed := &Renewal{TLS: tls, csr: bytes.Clone(r.GetCsr())}
	if area := r.GetAkPublic(); len(area) > 0 {
		if parsed.ak, err = ParseAttestationKey(area); err != nil {
			return nil, fmt.Errorf("attestation key: %w", err)
		}
		parsed.AttestationKey = bytes.Clone(area)
	}
	return parsed, nil
}

// NewChallenge makes a challenge. A new attestation key has to be in the TPM
// with this endorsement key (ParseEndorsementKey).
func (r *Renewal) NewChallenge(ek crypto.PublicKey) (*agentv1.RenewalChallenge, error) {
	r.nonce = random()
	challenge := &agentv1.RenewalChallenge{Nonce: r.nonce}
	if r.ak == nil {
		return challenge, nil
	}
	r.secret = random()
	key, err := encapsulation(ek)
	if err != nil {
		return nil, err
	}
	challenge.CredentialBlob, challenge.EncryptedSecret, err = tpm2.CreateCredential(rand.Reader, key, r.ak.Name, r.secret)
	if err != nil {
		return nil, fmt.Errorf("making credential: %w", err)
	}
	return challenge, nil
}

// Verify judges the proof on a connection (exporter): the TLS key's signature
// and, for a new attestation key, that the TPM has opened the secret. That the
// attestation key of before certifies the TLS key is for the caller to verify,
// with VerifyCertified. The error is ErrProof or ErrActivation.
func (r *Renewal) Verify(p *agentv1.RenewalProof, exporter []byte) error {
	if err := Verify(r.TLS.Public, RenewDigest(r.nonce, exporter, r.csr), p.GetSignature()); err != nil {
		return err
	}
	if r.ak != nil && !hmac.Equal(p.GetActivation(), Activation(r.secret, r.csr, exporter)) {
		return ErrActivation
	}
	return nil
}

// Nonce is that of the challenge.
func (r *Renewal) Nonce() []byte { return r.nonce }
