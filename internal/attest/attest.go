// Package attest is how a notebook proves that a key is its own, and how the
// collector verifies that proof. A software key (attest.go) shows possession
// of the key, not in which machine the key is. A TPM shows that too: claim.go
// is what it claims, challenge.go what the collector asks, verify.go how the
// answer is judged. The notebook's side of it is the package chip, the event log
// the package bootlog; who made the TPM is found out by collector/endorsement.
//
// Rules. Keys are ECDSA P-256. Every signature is over a purpose, a nonce that
// the collector chose, the channel binding of the TLS connection, and what is
// signed for: none of them can be replayed, relayed or used for something
// else. Judging takes no clock, no file and no network: they are arguments.
// What a stranger sends is read by code of this package that cannot panic.
package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
)

const (
	purposeEnrol  = "enrol-v1"
	purposeRenew  = "renew-v1"
	purposeVPN    = "vpn-v1"
	purposeTunnel = "tunnel-v1"
)

// NonceBytes is the length of the nonce in a challenge.
const NonceBytes = 32

// NewKey makes a software key.
func NewKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// EnrolDigest is what the device's key signs to enrol (agent.v1 Challenge):
// hello is the Hello message as Transcript gives it, exporter the channel
// binding (internal/mtls.Exporter).
func EnrolDigest(nonce, exporter, hello []byte) []byte {
	return digest(purposeEnrol, nonce, exporter, hello)
}

// RenewDigest is what the new key signs to replace the old one (agent.v1
// RenewalProof).
func RenewDigest(nonce, exporter, csr []byte) []byte {
	return digest(purposeRenew, nonce, exporter, csr)
}

// VPNDigest is what a VPN key signs to get its certificate (agent.v1
// VpnKeyProof).
func VPNDigest(nonce, exporter, csr []byte) []byte {
	return digest(purposeVPN, nonce, exporter, csr)
}

// TunnelDigest is what the device's key signs to prove that a VPN session is
// its own (agent.v1 TunnelProof).
func TunnelDigest(nonce, exporter, statement []byte) []byte {
	return digest(purposeTunnel, nonce, exporter, statement)
}

// digest is SHA-256(purpose ‖ 0 ‖ nonce ‖ exporter ‖ SHA-256(subject)). Nonce
// and exporter have fixed lengths, so the parts cannot slide into each other;
// the collector makes both.
func digest(purpose string, nonce, exporter, subject []byte) []byte {
	inner := sha256.Sum256(subject)
	h := sha256.New()
	h.Write([]byte(purpose))
	h.Write([]byte{0})
	h.Write(nonce)
	h.Write(exporter)
	h.Write(inner[:])
	return h.Sum(nil)
}

// Transcript is the bytes of a message that both ends sign and verify. Fields
// that a newer agent knows and this build does not are kept; they have higher
// numbers, so their place is the same on both sides.
func Transcript(m proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("marshalling transcript: %w", err)
	}
	return b, nil
}

// Sign signs a digest (ASN.1 ECDSA).
func Sign(key crypto.Signer, digest []byte) ([]byte, error) {
	sig, err := key.Sign(rand.Reader, digest, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing proof: %w", err)
	}
	return sig, nil
}

// ErrProof is the error of Verify: the signature is not by this key over this
// digest.
var ErrProof = errors.New("proof does not verify")

// Verify checks a signature made by Sign. It returns ErrProof when it is not
// valid, and another error for a key that is not ECDSA P-256.
func Verify(key crypto.PublicKey, digest, signature []byte) error {
	pub, err := acceptable(key)
	if err != nil {
		return err
	}
	if len(digest) != sha256.Size || !ecdsa.VerifyASN1(pub, digest, signature) {
		return ErrProof
	}
	return nil
}

// NewRequest makes the PKCS#10 request (DER) for a key. It names nobody: who
// the device is, the collector decides.
func NewRequest(key crypto.Signer) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making certificate request: %w", err)
	}
	return csr, nil
}

// maxRequestBytes is far above any request for a P-256 key.
const maxRequestBytes = 4 << 10

// ParseRequest returns the key of a PKCS#10 request (DER) whose own signature
// verifies. Everything else in it is ignored. It returns an error for a
// request that is malformed, forged, too long, or whose key is not ECDSA P-256.
func ParseRequest(der []byte) (*ecdsa.PublicKey, error) {
	if len(der) > maxRequestBytes {
		return nil, fmt.Errorf("certificate request of %d bytes: at most %d are taken", len(der), maxRequestBytes)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("parsing certificate request: %w", err)
	}
	pub, err := acceptable(csr.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return pub, nil
}

func acceptable(key crypto.PublicKey) (*ecdsa.PublicKey, error) {
	pub, ok := key.(*ecdsa.PublicKey)
	if !ok || pub == nil || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("key of type %T: ECDSA P-256 is needed", key)
	}
	return pub, nil
}

// SPKI is the SHA-256 of a public key as certificates carry it
// (SubjectPublicKeyInfo, RFC 5280, 4.1): by it the collector knows a device's
// current key.
func SPKI(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("marshalling public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}

// Fingerprint is a public key for people to compare, on screen or on the
// telephone: 24 characters without look-alikes in groups of four (120 bits).
func Fingerprint(key crypto.PublicKey) (string, error) {
	sum, err := SPKI(key)
	if err != nil {
		return "", err
	}
	// Crockford's alphabet: no I, L, O, U.
	text := base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding).EncodeToString(sum)
	groups := make([]string, 6)
	for i := range groups {
		groups[i] = text[4*i : 4*i+4]
	}
	return strings.Join(groups, "-"), nil
}
