package enrolment

import (
	"crypto/ecdsa"
	"crypto/rand"
	"fmt"
	"time"

	"pfoertner/internal/attest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// applicant is what a notebook says of itself in Hello, well-formed, and what
// it proves in the end.
type applicant struct {
	hello *agentv1.Hello
	// key is the one that a certificate is wanted for.
	key *ecdsa.PublicKey
	// tpm is the claim about the TPM; nil for a software key.
	tpm *attest.Claim
	// ekSHA256 is how the inventory lists the endorsement key, fingerprint how
	// people compare it; empty for a software key.
	ekSHA256    []byte
	fingerprint string

	// asked is when it was challenged.
	asked time.Time
	// proven is what the TPM has proven; nil for a software key.
	proven *attest.Attested
}

// readHello reads what a stranger claims. It looks at nothing that is ours, so
// its refusal tells nothing about us.
func readHello(hello *agentv1.Hello) (*applicant, error) {
	key, err := attest.ParseRequest(hello.GetCsr())
	if err != nil {
		return nil, &refusal{reason: "csr", detail: err.Error()}
	}
	a := &applicant{hello: hello, key: key}
	if hello.GetTpm() == nil {
		return a, nil
	}
	if a.tpm, err = attest.ParseClaim(hello.GetTpm(), key); err != nil {
		return nil, &refusal{reason: "tpm_keys", detail: err.Error()}
	}
	if a.ekSHA256, err = a.tpm.EndorsementHash(); err != nil {
		return nil, err
	}
	a.fingerprint, err = a.tpm.Fingerprint()
	return a, err
}

// ask makes the challenge for the claim, and what judges the answer to it, over
// one connection (exporter).
func (a *applicant) ask(exporter []byte) (*agentv1.Challenge, func(*agentv1.Proof) error, error) {
	transcript, err := attest.Transcript(a.hello)
	if err != nil {
		return nil, nil, err
	}
	if a.tpm == nil {
		nonce := make([]byte, attest.NonceBytes)
		rand.Read(nonce) // never returns an error
		return &agentv1.Challenge{Nonce: nonce}, func(p *agentv1.Proof) error {
			return attest.Verify(a.key, attest.EnrolDigest(nonce, exporter, transcript), p.GetSignature())
		}, nil
	}
	challenge, expectation, err := a.tpm.NewChallenge()
	if err != nil {
		return nil, nil, fmt.Errorf("making challenge: %w", err)
	}
	return challenge, func(p *agentv1.Proof) (err error) {
		a.proven, err = expectation.Verify(p, exporter, transcript)
		return err
	}, nil
}
