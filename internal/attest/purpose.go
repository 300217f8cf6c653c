package attest

import (
	"crypto/hmac"
	"crypto/sha256"
)

// A Purpose is what a TPM signs for. It is part of what is signed, so that an
// answer to one question is none to another.
type Purpose string

const (
	// PurposeCertify certifies a TLS key, at enrolment and renewal.
	PurposeCertify Purpose = "certify-v1"
	// PurposeVPN certifies a key for the VPN.
	PurposeVPN Purpose = "vpn-certify-v1"
	// PurposeQuote quotes the PCRs.
	PurposeQuote Purpose = "quote-v1"
)

// Qualify is what a TPM puts into a signed statement (TPM2B_DATA
// qualifyingData): SHA-256(purpose ‖ 0 ‖ nonce ‖ exporter). Some TPMs take 34
// bytes at most, so it is hashed. Nonce and exporter are of fixed lengths.
func Qualify(purpose Purpose, nonce, exporter []byte) []byte {
	h := sha256.New()
	h.Write([]byte(purpose))
	h.Write([]byte{0})
	h.Write(nonce)
	h.Write(exporter)
	return h.Sum(nil)
}

// Activation proves that a TPM has opened the secret of a challenge, for this
// hello on this connection: HMAC-SHA-256(secret, "enrol-v1" ‖
// SHA-256(transcript) ‖ exporter).
func Activation(secret, transcript, exporter []byte) []byte {
	said := sha256.Sum256(transcript)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(purposeEnrol))
	mac.Write(said[:])
	mac.Write(exporter)
	return mac.Sum(nil)
}

// QuotedPCRs are what a quote covers, in the SHA-256 bank: firmware (0), its
// drivers (2), boot loaders (4), Secure Boot (7), and what boot loaders and
// operating systems measure (11 to 14).
func QuotedPCRs() []uint32 { return []uint32{0, 2, 4, 7, 11, 12, 13, 14} }
