package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"

	"pfoertner/internal/attest"
)

// The kinds of keys, as the identity file names them.
const (
	KindSoftware = "software"
	KindTPM      = "tpm"
)

// Keys makes device keys, and keeps them in the identity file: TPM or Software.
type Keys interface {
	// Kind names the protection. A file with a key of another kind is refused,
	// so that protection is never lowered unnoticed.
	Kind() string
	// Generate makes a new key.
	Generate() (crypto.Signer, error)
	// Store returns what the identity file keeps of a key.
	Store(key crypto.Signer) ([]byte, error)
	// Open returns the key that Store kept.
	Open(stored []byte) (crypto.Signer, error)
}

// Software keeps ECDSA P-256 keys as PKCS#8. Whoever reads the file is the
// device: the inventory marks such devices, and every renewal makes a new key.
type Software struct{}

// Kind implements Keys.
func (Software) Kind() string { return KindSoftware }

// Generate implements Keys.
func (Software) Generate() (crypto.Signer, error) { return attest.NewKey() }

// Store implements Keys.
func (Software) Store(key crypto.Signer) ([]byte, error) { return x509.MarshalPKCS8PrivateKey(key) }

// Open implements Keys.
func (Software) Open(stored []byte) (crypto.Signer, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(stored)
	if err != nil {
		return nil, fmt.Errorf("parsing key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("key is not ECDSA P-256")
	}
	return key, nil
}
