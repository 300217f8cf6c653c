package chip

import (
	"fmt"

	"pfoertner/internal/attest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// Hello is the TPM material of an enrolment's first message, for a certificate
// request by tls.
func Hello(ek *Endorsement, ak, tls *Key) *agentv1.TpmIdentity {
	return &agentv1.TpmIdentity{
		EkPublic: ek.Area, EkCertificates: ek.Certificates,
		AkPublic: ak.Area(), TlsKeyPublic: tls.Area(),
		Manufacturer: ek.Manufacturer, FirmwareVersion: ek.Firmware,
	}
}

// Answer answers the challenge of an enrolment. exporter is the channel
// binding of the connection, transcript the Hello (attest.Transcript).
func (c *Chip) Answer(ek *Endorsement, ak, tls *Key, ch *agentv1.Challenge, exporter, transcript []byte) (*agentv1.Proof, error) {
	for _, nonce := range [][]byte{ch.GetNonce(), ch.GetQuoteNonce()} {
		if len(nonce) != attest.NonceBytes {
			return nil, fmt.Errorf("challenge with a nonce of %d bytes, %d are needed", len(nonce), attest.NonceBytes)
		}
	}
	secret, err := c.Activate(ak, ek, ch.GetCredentialBlob(), ch.GetEncryptedSecret())
	if err != nil {
		return nil, err
	}
	signature, err := attest.Sign(tls, attest.EnrolDigest(ch.GetNonce(), exporter, transcript))
	if err != nil {
		return nil, err
	}
	certify, certifySignature, err := c.Certify(ak, tls, attest.Qualify(attest.PurposeCertify, ch.GetNonce(), exporter))
	if err != nil {
		return nil, err
	}
	quote, err := c.Quote(ak, ch.GetPcrs(), attest.Qualify(attest.PurposeQuote, ch.GetQuoteNonce(), exporter))
	if err != nil {
		return nil, err
	}
	return &agentv1.Proof{
		Signature: signature, Activation: attest.Activation(secret, transcript, exporter),
		Certify: certify, CertifySignature: certifySignature,
		Quote: quote.Message, QuoteSignature: quote.Signature, PcrValues: quote.Values, EventLog: quote.EventLog,
	}, nil
}
