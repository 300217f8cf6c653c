package chip

import (
	"crypto"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"pfoertner/internal/attest"
)

// Key is a key in the TPM. A signing key (NewKey) is a crypto.Signer, safe for
// many goroutines; an attestation key (NewAK) signs only what the TPM states.
type Key struct {
	chip   *Chip
	blob   blob
	public *attest.Key
}

// NewAK makes an attestation key: restricted, so that its signatures are over
// nothing but statements of this TPM.
func (c *Chip) NewAK() (*Key, error) {
	return c.newKey("making attestation key", attest.AttestationKey())
}

// NewKey makes a key for TLS or a VPN.
func (c *Chip) NewKey() (*Key, error) { return c.newKey("making key", attest.SigningKey()) }

func (c *Chip) newKey(what string, template attest.Template) (*Key, error) {
	var b *blob
	err := c.do(what, func(tpm transport.TPM) (err error) {
		c.makeRoom(tpm, nil)
		b, err = create(tpm, template)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.open(b)
}

// LoadKey returns the key that Stored kept, of either kind, and loads it to see
// that it belongs to this TPM. The error wraps ErrForeign if not, and
// ErrUnavailable when that cannot be said now.
func (c *Chip) LoadKey(stored []byte) (*Key, error) {
	k, err := c.ParseKey(stored)
	if err != nil {
		return nil, err
	}
	if err := k.Load(); err != nil {
		return nil, err
	}
	return k, nil
}

// ParseKey is LoadKey without asking the TPM: whether the key belongs to it
// shows when it is used.
func (c *Chip) ParseKey(stored []byte) (*Key, error) {
	b, err := parseBlob(stored)
	if err != nil {
		return nil, err
	}
	return c.open(b)
}

// Load loads the key to see that it belongs to this TPM, and returns what
// LoadKey does.
func (k *Key) Load() error {
	return k.chip.do("loading key", func(tpm transport.TPM) error {
		_, err := k.chip.load(tpm, k)
		return err
	})
}

func (c *Chip) open(b *blob) (*Key, error) {
	public, err := attest.ParseSigningKey(b.area())
	if err != nil {
		public, err = attest.ParseAttestationKey(b.area())
	}
	if err != nil {
		return nil, fmt.Errorf("key of the TPM: %w", err)
	}
	return &Key{chip: c, blob: *b, public: public}, nil
}

// Stored is the key for LoadKey: useless without this TPM.
func (k *Key) Stored() ([]byte, error) { return k.blob.der() }

// PEM is the key for programs that use OpenSSL with a TPM provider ("TSS2
// PRIVATE KEY").
func (k *Key) PEM() ([]byte, error) { return k.blob.pem() }

// Area is the public area (TPMT_PUBLIC).
func (k *Key) Area() []byte { return k.blob.area() }

// Public implements crypto.Signer: an *ecdsa.PublicKey on P-256.
func (k *Key) Public() crypto.PublicKey { return k.public.Public }

// Sign implements crypto.Signer (ASN.1 ECDSA). The digest is SHA-256, SHA-384
// or SHA-512.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash, ok := map[crypto.Hash]tpm2.TPMAlgID{
		crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384, crypto.SHA512: tpm2.TPMAlgSHA512,
	}[opts.HashFunc()]
	if !ok || len(digest) != opts.HashFunc().Size() {
		return nil, fmt.Errorf("signing in the TPM: digest of %d bytes by %v", len(digest), opts.HashFunc())
	}
	var rsp *tpm2.SignResponse
	err := k.chip.do("signing in the TPM", func(tpm transport.TPM) error {
		handles, err := k.chip.load(tpm, k)
		if err != nil {
			return err
		}
		rsp, err = tpm2.Sign{
			KeyHandle:  handles[0],
			Digest:     tpm2.TPM2BDigest{Buffer: digest},
			InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: hash})},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
		}.Execute(tpm)
		return err
	})
	if err != nil {
		return nil, err
	}
	sig, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("signing in the TPM: %w", err)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer),
	})
}
