package identity

import (
	"crypto"
	"errors"
	"fmt"
	"time"

	"pfoertner/internal/attest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// issued makes an identity of what the collector sent. It returns an error for
// a certificate that is not for this key, or that names no device.
func issued(key crypto.Signer, m *agentv1.Issued) (*Identity, error) {
	chain, err := certificates(m.GetChain())
	if err != nil {
		return nil, fmt.Errorf("issued chain: %w", err)
	}
	if len(chain) == 0 {
		return nil, errors.New("issued without a certificate")
	}
	servers, err := certificates(m.GetTrustBundle())
	if err != nil {
		return nil, fmt.Errorf("issued trust bundle: %w", err)
	}
	device, err := deviceOf(chain[0], key)
	if err != nil {
		return nil, fmt.Errorf("issued certificate: %w", err)
	}
	if device != m.GetDeviceId() {
		return nil, fmt.Errorf("issued certificate names device %s, the collector says %s", device, m.GetDeviceId())
	}
	id := &Identity{Key: key, Chain: chain, Servers: servers, DeviceID: device, AssetNumber: m.GetAssetNumber()}
	if t := m.GetRenewAfter(); t.IsValid() {
		id.RenewAfter = t.AsTime()
	}
	return id, nil
}

// ErrReplaced is the error of Renew when somebody has enrolled this notebook
// anew in the meantime.
var ErrReplaced = errors.New("the identity was replaced")

// Renewal is one exchange of the device key for a fresh one, over a stream
// that the old one opened.
type Renewal struct {
	state *State
	old   *Identity
	key   crypto.Signer
	csr   []byte
}

// Renew begins a renewal of id with a new key. It writes id once more first: a
// disk that takes nothing must be noticed before the collector has replaced the
// key, not after. It returns ErrReplaced when id is not what is stored any more.
func (s *State) Renew(id *Identity) (*Renewal, error) {
	if err := s.stillIs(id); err != nil {
		return nil, err
	}
	if err := s.Save(id); err != nil {
		return nil, err
	}
	key, err := s.keys.Generate()
	if err != nil {
		return nil, fmt.Errorf("making key: %w", err)
	}
	csr, err := attest.NewRequest(key)
	if err != nil {
		return nil, err
	}
	return &Renewal{state: s, old: id, key: key, csr: csr}, nil
}

// stillIs returns ErrReplaced when another identity than id is stored.
func (s *State) stillIs(id *Identity) error {
	stored, err := s.Load()
	if err != nil {
		return err
	}
	if !stored.Enrolled() || !stored.Chain[0].Equal(id.Chain[0]) {
		return ErrReplaced
	}
	return nil
}

// Request is the first message.
func (r *Renewal) Request() *agentv1.RenewalRequest { return &agentv1.RenewalRequest{Csr: r.csr} }

// Prove answers the challenge on the stream whose channel binding is exporter.
func (r *Renewal) Prove(challenge *agentv1.RenewalChallenge, exporter []byte) (*agentv1.RenewalProof, error) {
	if err := checkNonce(challenge.GetNonce()); err != nil {
		return nil, err
	}
	sig, err := attest.Sign(r.key, attest.RenewDigest(challenge.GetNonce(), exporter, r.csr))
	if err != nil {
		return nil, err
	}
	return &agentv1.RenewalProof{Signature: sig}, nil
}

// Complete stores the new identity in place of the old one. It returns an
// error, and keeps what is stored, for a certificate of another device, one that
// has expired already, when it cannot be stored, and ErrReplaced when the old
// one is not what is stored any more.
func (r *Renewal) Complete(m *agentv1.Issued, now time.Time) (*Identity, error) {
	id, err := issued(r.key, m)
	if err != nil {
		return nil, err
	}
	if id.DeviceID != r.old.DeviceID {
		return nil, fmt.Errorf("renewal names device %s, this is %s", id.DeviceID, r.old.DeviceID)
	}
	if len(id.Servers) == 0 {
		id.Servers = r.old.Servers
	}
	if _, err := id.Certificate(now); err != nil {
		return nil, fmt.Errorf("renewed: %w", err)
	}
	if err := r.state.stillIs(r.old); err != nil {
		return nil, err
	}
	if err := r.state.Save(id); err != nil {
		return nil, err
	}
	return id, nil
}

func checkNonce(nonce []byte) error {
	if len(nonce) != attest.NonceBytes {
		return fmt.Errorf("challenge with a nonce of %d bytes, %d are needed", len(nonce), attest.NonceBytes)
	}
	return nil
}
