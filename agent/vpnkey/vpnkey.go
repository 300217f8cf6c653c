// Package vpnkey is this notebook's VPN client certificate, for a second key in
// its TPM: how it is asked for and renewed, and where VPN programs find it.
//
//	session ─ wanted ─▶ Keeper.Due ─▶ Begin ═ request ═▶ collector
//	collector ═ challenge ═▶ Prove ═ proof ═▶ collector ═ certificate ═▶ Complete ─▶ key.pem, certificate.pem
//
// Rules. The key cannot leave the TPM: key.pem is a blob that no other TPM loads,
// so that a copy of the directory is worth nothing. There is no software key for
// the VPN, whatever the device key is. Key and certificate are put in place by
// way of one file that holds both: after a crash they belong together again when
// the agent starts. The collector binds the certificate's fingerprint to this
// device; what it issues for another device or key is not kept.
package vpnkey

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// keyLife is how long a key is certified again before another is made.
const keyLife = 365 * 24 * time.Hour

// TPM makes keys and loads them again (identity.State).
type TPM interface {
	NewVPNKey() (*chip.Key, error)
	// LoadVPNKey's error wraps chip.ErrForeign for a key of another TPM.
	LoadVPNKey(stored []byte) (*chip.Key, error)
}

// Identity is who the notebook is on a stream (identity.Identity).
type Identity interface {
	// CertifyVPN lets the attestation key state that the TPM holds a key.
	CertifyVPN(key *chip.Key, nonce, exporter []byte) (message, signature []byte, err error)
}

// Keeper keeps key and certificate. It is not for several goroutines.
type Keeper struct {
	tpm   TPM
	files files
	now   func() time.Time
}

// New makes a keeper for a directory, which is made at the first certificate.
func New(dir string, tpm TPM) *Keeper {
	return &Keeper{tpm: tpm, files: files{dir}, now: time.Now}
}

// Due is when a certificate has to be asked for, for the device with this id:
// at once (the zero time) when there is none, when it is another's or not the
// one that the collector names, or when its key is not in this TPM; otherwise
// the wanted time before its end, but not before half its life is over. It also
// puts in place what a crash has left. The error is the file system's, or wraps
// chip.ErrUnavailable.
func (k *Keeper) Due(deviceID string, w *agentv1.VpnKeyWanted) (time.Time, error) {
	held, err := k.held(deviceID)
	if err != nil || held == nil {
		return time.Time{}, err
	}
	leaf := held.chain[0]
	if sum := sha256.Sum256(leaf.Raw); !bytes.Equal(sum[:], w.GetCertificateSha256()) {
		return time.Time{}, nil
	}
	half := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
	at := leaf.NotAfter.Add(-w.GetRenewBefore().AsDuration())
	if at.Before(half) {
		return half, nil
	}
	return at, nil
}

// held is a certificate whose key is in this TPM.
type held struct {
	key   *chip.Key
	chain []*x509.Certificate
	made  time.Time // when the key was
}

// held returns what there is for this device and TPM; nil: nothing of use.
func (k *Keeper) held(deviceID string) (*held, error) {
	stored, err := k.files.read()
	if err != nil || stored == nil {
		return nil, err
	}
	key, err := k.tpm.LoadVPNKey(stored.key)
	if errors.Is(err, chip.ErrUnavailable) {
		return nil, err
	}
	if err != nil {
		return nil, nil // another TPM's, or this one's before it was cleared
	}
	chain, err := parseChain(stored.chain, key.Public(), deviceID)
	if err != nil || !k.now().Before(chain[0].NotAfter) {
		return nil, nil
	}
	return &held{key: key, chain: chain, made: stored.made}, nil
}

// Attempt is one certificate being asked for.
type Attempt struct {
	keeper   *Keeper
	deviceID string
	key      *chip.Key
	csr      []byte
}

// Begin asks for a certificate: for the key that there is, or for a new one when
// there is none, or when it is a year old.
func (k *Keeper) Begin(deviceID string) (*Attempt, error) {
	a := &Attempt{keeper: k, deviceID: deviceID}
	old, err := k.held(deviceID)
	if err != nil {
		return nil, err
	}
	if old != nil {
		if age := k.now().Sub(old.made); age >= 0 && age < keyLife {
			a.key = old.key
		}
	}
	if a.key == nil {
		if a.key, err = k.tpm.NewVPNKey(); err != nil {
			return nil, err
		}
	}
	if a.csr, err = attest.NewRequest(a.key); err != nil {
		return nil, err
	}
	return a, nil
}

// Request is the first message.
func (a *Attempt) Request() *agentv1.VpnKeyRequest {
	return &agentv1.VpnKeyRequest{Csr: a.csr, KeyPublic: a.key.Area()}
}

// Prove answers the collector's challenge on a stream with this channel binding.
func (a *Attempt) Prove(id Identity, c *agentv1.VpnKeyChallenge, exporter []byte) (*agentv1.VpnKeyProof, error) {
	if len(c.GetNonce()) != attest.NonceBytes {
		return nil, fmt.Errorf("challenge for the VPN key with a nonce of %d bytes, %d are needed", len(c.GetNonce()), attest.NonceBytes)
	}
	message, signature, err := id.CertifyVPN(a.key, c.GetNonce(), exporter)
	if err != nil {
		return nil, err
	}
	own, err := attest.Sign(a.key, attest.VPNDigest(c.GetNonce(), exporter, a.csr))
	if err != nil {
		return nil, err
	}
	return &agentv1.VpnKeyProof{Certify: message, CertifySignature: signature, Signature: own}, nil
}

// RefusedError is a refusal of the collector, with its reason.
type RefusedError struct{ Reason string }

// Error implements error.
func (e *RefusedError) Error() string { return "the collector issues no VPN certificate: " + e.Reason }

// Complete puts the certificate in place, and returns its SHA-256. The error is
// a RefusedError when there is none.
func (a *Attempt) Complete(m *agentv1.VpnCertificate) ([]byte, error) {
	if len(m.GetChain()) == 0 {
		return nil, &RefusedError{m.GetRefusal()}
	}
	chain, err := parseChain(m.GetChain(), a.key.Public(), a.deviceID)
	if err != nil {
		return nil, fmt.Errorf("VPN certificate: %w", err)
	}
	text, err := a.key.PEM()
	if err != nil {
		return nil, err
	}
	if err := a.keeper.files.write(text, chain); err != nil {
		return nil, fmt.Errorf("storing VPN certificate: %w", err)
	}
	sum := sha256.Sum256(chain[0].Raw)
	return sum[:], nil
}

// maxChain is a certificate and the CAs that may stand over it.
const maxChain = 4

// parseChain reads a chain (leaf first, DER) and checks that its leaf is a VPN
// client's, for this key and this device.
func parseChain(ders [][]byte, key crypto.PublicKey, deviceID string) (chain []*x509.Certificate, err error) {
	if len(ders) == 0 || len(ders) > maxChain {
		return nil, fmt.Errorf("a chain of %d certificates", len(ders))
	}
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	role, name, err := mtls.Identity(chain[0])
	if err != nil {
		return nil, err
	}
	if role != mtls.RoleVPN || name != deviceID {
		return nil, fmt.Errorf("it is of %s %s, not of this notebook's VPN client", role, name)
	}
	if public, ok := key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(chain[0].PublicKey) {
		return nil, errors.New("it is for another key")
	}
	for i, c := range chain[1:] {
		if !bytes.Equal(c.RawSubject, chain[i].RawIssuer) {
			return nil, errors.New("its chain is broken")
		}
	}
	return chain, nil
}
