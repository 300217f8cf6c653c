package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// Claim is what a notebook claims of its TPM in Hello: all keys are of the
// kinds that the protocol asks for, nothing is proven yet.
type Claim struct {
	// EK is the endorsement key, RSA-2048 or ECDSA P-256: by it the inventory
	// knows the machine.
	EK crypto.PublicKey
	// AK signs what the TPM states.
	AK *Key
	// TLS is the key of the certificate request.
	TLS *Key
	// Certificates are what the TPM has of its manufacturer: unread, of any
	// number and content.
	Certificates [][]byte
}

// ParseClaim reads the TPM material of a Hello whose certificate request is
// for the key csr (ParseRequest). The error is ErrKey when a key is of another
// kind than the protocol asks for, or when the request is for another key than
// the TPM's.
func ParseClaim(id *agentv1.TpmIdentity, csr *ecdsa.PublicKey) (*Claim, error) {
	ek, err := parseEndorsementKey(id.GetEkPublic())
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	ak, err := ParseAttestationKey(id.GetAkPublic())
	if err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	tls, err := ParseSigningKey(id.GetTlsKeyPublic())
	if err != nil {
		return nil, fmt.Errorf("TLS key: %w", err)
	}
	if csr == nil || !tls.Public.Equal(csr) {
		return nil, fmt.Errorf("TLS key: %w: the certificate request is for another", ErrKey)
	}
	return &Claim{EK: ek, AK: ak, TLS: tls, Certificates: id.GetEkCertificates()}, nil
}

// EndorsementHash is how the inventory lists an endorsement key: SHA-256 of
// its SubjectPublicKeyInfo, RSA as rsaEncryption whatever its certificate
// says.
func (c *Claim) EndorsementHash() ([]byte, error) { return SPKI(c.EK) }

// Fingerprint is the endorsement key for two persons to compare.
func (c *Claim) Fingerprint() (string, error) { return Fingerprint(c.EK) }

// ParseEndorsementKey reads an EK's public area as Hello carries it. The error
// is ErrKey for a key of no accepted template.
func ParseEndorsementKey(area []byte) (crypto.PublicKey, error) { return parseEndorsementKey(area) }

// encapsulation is the endorsement key as what secrets are wrapped for.
func encapsulation(ek crypto.PublicKey) (tpm2.LabeledEncapsulationKey, error) {
	aes := tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
	area := &tpm2.TPMTPublic{NameAlg: tpm2.TPMAlgSHA256}
	switch ek := ek.(type) {
	case *rsa.PublicKey:
		area.Type = tpm2.TPMAlgRSA
		area.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: aes, KeyBits: 2048})
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: ek.N.Bytes()})
	case *ecdsa.PublicKey:
		uncompressed, err := ek.Bytes()
		if err != nil {
			return nil, fmt.Errorf("endorsement key: %w", err)
		}
		area.Type = tpm2.TPMAlgECC
		area.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aes, CurveID: tpm2.TPMECCNistP256})
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: bytes.Clone(uncompressed[1:33])},
			Y: tpm2.TPM2BECCParameter{Buffer: bytes.Clone(uncompressed[33:])},
		})
	default:
		return nil, fmt.Errorf("%w: endorsement key of type %T", ErrKey, ek)
	}
	return tpm2.ImportEncapsulationKey(area)
}
