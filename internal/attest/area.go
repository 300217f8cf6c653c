package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// The keys of the protocol, as their public areas begin (TPMT_PUBLIC, TPM 2.0
// Library Part 2, 12.2.4): all that is not the key itself. A key is accepted
// only if its area begins exactly so, and the notebook makes its keys from the
// same bytes.
const (
	typeRSA    = "\x00\x01"
	typeECC    = "\x00\x23"
	nameSHA256 = "\x00\x0b"
	null       = "\x00\x10"
	aes128CFB  = "\x00\x06\x00\x80\x00\x43"
	p256       = "\x00\x03"
	rsa2048    = "\x08\x00\x00\x00\x00\x00" // exponent 0 means 65537

	// PolicySecret(endorsement), and the same or by an NV index: TCG EK
	// Credential Profile 2.5, B.6.2 PolicyA and PolicyB.
	policyA = "\x00\x20\x83\x71\x97\x67\x44\x84\xb3\xf8\x1a\x90\xcc\x8d\x46\xa5\xd7\x24\xfd\x52\xd7\x6e\x06\x52\x0b\x64\xf2\xa1\xda\x1b\x33\x14\x69\xaa"
	policyB = "\x00\x20\xca\x3d\x0a\x99\xa2\xb9\x39\x06\xf7\xa3\x34\x24\x14\xef\xcf\xb3\xa3\x85\xd4\x4c\xd1\xfd\x45\x90\x89\xd1\x9b\x50\x71\xc0\xb7\xa0"

	// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, sign; the
	// attestation key is restricted as well: it signs only what the TPM made.
	akArea  = typeECC + nameSHA256 + "\x00\x05\x04\x72" + "\x00\x00" + null + "\x00\x18" + nameSHA256 + p256 + null
	keyArea = typeECC + nameSHA256 + "\x00\x04\x04\x72" + "\x00\x00" + null + null + p256 + null
	// The storage key that tpm2-tools and OpenSSL providers take as the owner's
	// too (draft-bottomley-tpm2-keys), so that they can load our keys.
	storageArea = typeECC + nameSHA256 + "\x00\x03\x04\x72" + "\x00\x00" + aes128CFB + null + p256 + null

	// TCG EK Credential Profile 2.5, templates L-1, L-2, H-1 and H-2.
	ekRSA     = typeRSA + nameSHA256 + "\x00\x03\x00\xb2" + policyA + aes128CFB + null + rsa2048
	ekECC     = typeECC + nameSHA256 + "\x00\x03\x00\xb2" + policyA + aes128CFB + null + p256 + null
	ekHighRSA = typeRSA + nameSHA256 + "\x00\x03\x00\xf2" + policyB + aes128CFB + null + rsa2048
	ekHighECC = typeECC + nameSHA256 + "\x00\x03\x00\xf2" + policyB + aes128CFB + null + p256 + null
)

// Template is what a TPM makes a key from: a public area without the key.
type Template struct {
	// Area is a whole TPMT_PUBLIC.
	Area []byte
	// Certificate is the NV index where the manufacturer's certificate for
	// this key lies; zero for keys that have none.
	Certificate uint32
	// Policy says that using the key takes TPM2_PolicySecret by the endorsement
	// hierarchy; otherwise its empty authorization value.
	Policy bool
}

// AttestationKey is the template of the AK.
func AttestationKey() Template { return Template{Area: []byte(akArea + "\x00\x00\x00\x00")} }

// SigningKey is the template of TLS and VPN keys.
func SigningKey() Template { return Template{Area: []byte(keyArea + "\x00\x00\x00\x00")} }

// StorageKey is the template of the primary key that encrypts the others.
func StorageKey() Template { return Template{Area: []byte(storageArea + "\x00\x00\x00\x00")} }

// EndorsementKeys are the templates of EKs that are accepted, the ones that
// are looked for first in front. The first is also the one for a TPM without
// any certificate.
func EndorsementKeys() []Template {
	zeros := func(n int) string { return strings.Repeat("\x00", n) }
	return []Template{
		{Area: []byte(ekRSA + "\x01\x00" + zeros(256)), Certificate: 0x01C00002, Policy: true},
		{Area: []byte(ekECC + "\x00\x20" + zeros(32) + "\x00\x20" + zeros(32)), Certificate: 0x01C0000A, Policy: true},
		{Area: []byte(ekHighRSA + "\x00\x00"), Certificate: 0x01C00012},
		{Area: []byte(ekHighECC + "\x00\x00\x00\x00"), Certificate: 0x01C00014},
	}
}

// ErrKey is the error for a key that is not what the protocol asks for: of
// another kind, restricted or not, or able to leave its TPM.
var ErrKey = errors.New("key is not of the kind that is asked for")

// maxArea is far above the area of any key of the protocol.
const maxArea = 1 << 10

// Key is the public half of a P-256 key in a TPM.
type Key struct {
	Public *ecdsa.PublicKey
	// Name is the TPM's own name of the key: it covers the key and all its
	// attributes (Part 1, 16).
	Name []byte
}

// ParseAttestationKey reads the public area of an AK. The error is ErrKey for
// any other key.
func ParseAttestationKey(area []byte) (*Key, error) { return parseKey(area, akArea) }

// ParseSigningKey reads the public area of a TLS or VPN key. The error is
// ErrKey for any other key.
func ParseSigningKey(area []byte) (*Key, error) { return parseKey(area, keyArea) }

func parseKey(area []byte, begin string) (*Key, error) {
	unique, err := uniqueOf(area, begin)
	if err != nil {
		return nil, err
	}
	pub, err := point(unique)
	if err != nil {
		return nil, err
	}
	return &Key{Public: pub, Name: Name(area)}, nil
}

// Name is the name of an object with this public area: the algorithm SHA-256,
// then the hash (Part 1, 16).
func Name(area []byte) []byte {
	sum := sha256.Sum256(area)
	return append([]byte(nameSHA256), sum[:]...)
}

func uniqueOf(area []byte, begin string) ([]byte, error) {
	if len(area) > maxArea {
		return nil, fmt.Errorf("%w: public area of %d bytes", ErrKey, len(area))
	}
	unique, ok := strings.CutPrefix(string(area), begin)
	if !ok {
		return nil, fmt.Errorf("%w: public area begins %x, it must begin %x", ErrKey, area[:min(len(area), len(begin))], begin)
	}
	return []byte(unique), nil
}

// point reads a TPMS_ECC_POINT on P-256. Some TPMs leave leading zeros out.
func point(unique []byte) (*ecdsa.PublicKey, error) {
	r := reader{rest: unique}
	x, y := r.sized(), r.sized()
	if !r.done() || len(x) > 32 || len(y) > 32 {
		return nil, fmt.Errorf("%w: malformed point", ErrKey)
	}
	uncompressed := make([]byte, 65)
	uncompressed[0] = 4
	copy(uncompressed[33-len(x):33], x)
	copy(uncompressed[65-len(y):], y)
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), uncompressed)
	if err != nil {
		return nil, fmt.Errorf("%w: point is not on P-256", ErrKey)
	}
	return pub, nil
}

// parseEndorsementKey reads the public area of an EK.
func parseEndorsementKey(area []byte) (crypto.PublicKey, error) {
	for _, begin := range []string{ekECC, ekHighECC} {
		if unique, err := uniqueOf(area, begin); err == nil {
			return point(unique)
		}
	}
	for _, begin := range []string{ekRSA, ekHighRSA} {
		if unique, err := uniqueOf(area, begin); err == nil {
			return modulus(unique)
		}
	}
	return nil, fmt.Errorf("%w: endorsement key of no template that is accepted", ErrKey)
}

func modulus(unique []byte) (*rsa.PublicKey, error) {
	r := reader{rest: unique}
	n := r.sized()
	if !r.done() || len(n) != 256 || n[0]&0x80 == 0 || n[255]&1 == 0 {
		return nil, fmt.Errorf("%w: modulus is not one of RSA-2048", ErrKey)
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}, nil
}

// SameTemplate says whether a public area is one that a TPM makes from this
// template.
func SameTemplate(t Template, area []byte) bool {
	for _, begin := range []string{akArea, keyArea, storageArea, ekRSA, ekECC, ekHighRSA, ekHighECC} {
		if strings.HasPrefix(string(t.Area), begin) {
			return strings.HasPrefix(string(area), begin)
		}
	}
	return false
}
