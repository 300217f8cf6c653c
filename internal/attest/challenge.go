package attest

import (
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"pfoertner/internal/attest/bootlog"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// ErrActivation is the error for a proof without the secret of the challenge:
// the attestation key is not in the TPM that has the endorsement key, or the
// proof is for another hello or connection.
var ErrActivation = errors.New("the TPM did not open the secret of the challenge")

// Expectation is what the collector keeps of a challenge. It is used once.
type Expectation struct {
	claim             *Claim
	secret            []byte
	nonce, quoteNonce []byte
}

// NewChallenge makes a challenge that only the TPM of this claim can answer:
// it must have both the endorsement key, which the secret is encrypted for,
// and the attestation key, by whose name it is bound (TPM2_MakeCredential,
// Part 1, 24).
func (c *Claim) NewChallenge() (*agentv1.Challenge, *Expectation, error) {
	e := &Expectation{claim: c, secret: random(), nonce: random(), quoteNonce: random()}
	ek, err := encapsulation(c.EK)
	if err != nil {
		return nil, nil, err
	}
	blob, wrapped, err := tpm2.CreateCredential(rand.Reader, ek, c.AK.Name, e.secret)
	if err != nil {
		return nil, nil, fmt.Errorf("making credential: %w", err)
	}
	return &agentv1.Challenge{
		Nonce: e.nonce, CredentialBlob: blob, EncryptedSecret: wrapped,
		QuoteNonce: e.quoteNonce, Pcrs: QuotedPCRs(),
	}, e, nil
}

// random makes a nonce or secret.
func random() []byte {
	b := make([]byte, NonceBytes)
	rand.Read(b) // never returns an error
	return b
}

// Attested is what a TPM has proven.
type Attested struct {
	// Clock tells cloned TPMs apart.
	Clock Clock
	// PCRs are the quoted values, by number; nil when the notebook sent none
	// and its event log does not lead to them.
	PCRs map[uint32][]byte
	// Boot is what the event log says and the quoted PCRs confirm. Without a
	// usable log all of it is unknown.
	Boot *bootlog.Facts
	// BootError is why facts of Boot are missing; it wraps bootlog.ErrLog.
	BootError error
}

// Verify judges the proof of a claim: activation, signature and certification
// of the TLS key, quote, event log. transcript is the Hello (Transcript), exporter
// the channel binding of the connection.
//
// The error is ErrActivation, ErrProof, ErrStatement, ErrReplay, ErrOtherKey
// or ErrPCRs. An event log that does not fit is no such error: many machines
// have one. It leaves the facts unknown.
func (e *Expectation) Verify(p *agentv1.Proof, exporter, transcript []byte) (*Attested, error) {
	if !hmac.Equal(p.GetActivation(), Activation(e.secret, transcript, exporter)) {
		return nil, ErrActivation
	}
	if err := Verify(e.claim.TLS.Public, EnrolDigest(e.nonce, exporter, transcript), p.GetSignature()); err != nil {
		return nil, err
	}
	err := VerifyCertify(e.claim.AK, e.claim.TLS, Qualify(PurposeCertify, e.nonce, exporter), p.GetCertify(), p.GetCertifySignature())
	if err != nil {
		return nil, fmt.Errorf("certifying the TLS key: %w", err)
	}
	q := &Quote{Message: p.GetQuote(), Signature: p.GetQuoteSignature(), Values: p.GetPcrValues(), EventLog: p.GetEventLog()}
	return q.Verify(e.claim.AK, Qualify(PurposeQuote, e.quoteNonce, exporter))
}

// Quote is a quote of QuotedPCRs as a notebook sends it.
type Quote struct {
	// Message and Signature are TPMS_ATTEST and TPMT_SIGNATURE.
	Message, Signature []byte
	// Values of the PCRs, in their order; nil: as in the event log.
	Values [][]byte
	// EventLog is what firmware and boot loaders say they measured; empty when
	// the machine has none.
	EventLog []byte
}

// Verify judges a quote for a question (Qualify). The error is ErrStatement,
// ErrReplay or ErrPCRs; what is wrong with the event log is in BootError.
func (q *Quote) Verify(ak *Key, qualifying []byte) (*Attested, error) {
	pcrs := QuotedPCRs()
	quoted, err := VerifyQuote(ak, pcrs, qualifying, q.Message, q.Signature)
	if err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	a := &Attested{Clock: quoted.Clock, Boot: &bootlog.Facts{}}
	log, logErr := bootlog.Parse(q.EventLog)
	values := q.Values
	if values == nil {
		values = log.Replay(pcrs)
	}
	switch err := quoted.Values(values); {
	case err != nil && q.Values == nil:
		a.BootError = errors.Join(logErr, fmt.Errorf("%w: it does not lead to the quoted PCRs", bootlog.ErrLog))
		return a, nil
	case err != nil:
		return nil, fmt.Errorf("quote: %w", err)
	}
	a.PCRs = make(map[uint32][]byte, len(pcrs))
	for i, pcr := range pcrs {
		a.PCRs[pcr] = values[i]
	}
	if logErr != nil {
		a.BootError = logErr
		return a, nil
	}
	a.Boot, a.BootError = log.Facts(a.PCRs)
	return a, nil
}
