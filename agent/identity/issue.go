package identity

import (
	"errors"
	"fmt"
	"time"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// issued makes an identity of what the collector sent for these keys. It returns
// an error for a certificate that is not for them, or that names no device.
func issued(keys *Identity, m *agentv1.Issued) (*Identity, error) {
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
	device, err := deviceOf(chain[0], keys.Key)
	if err != nil {
		return nil, fmt.Errorf("issued certificate: %w", err)
	}
	if device != m.GetDeviceId() {
		return nil, fmt.Errorf("issued certificate names device %s, the collector says %s", device, m.GetDeviceId())
	}
	id := keys.bare()
	id.Chain, id.Servers, id.DeviceID, id.AssetNumber = chain, servers, device, m.GetAssetNumber()
	if t := m.GetRenewAfter(); t.IsValid() {
		id.RenewAfter = t.AsTime()
	}
	return id, nil
}

// ErrReplaced is the error of Renew when somebody has enrolled this notebook
// anew in the meantime.
var ErrReplaced = errors.New("the identity was replaced")

// Renewal is one exchange of the device certificate for a new one, over a stream
// that the old one opened.
type Renewal struct {
	state *State
	old   *Identity
	// keys are those of the new certificate.
	keys *Identity
	csr  []byte
}

// Renew begins a renewal of id. A software key is replaced by a new one, always;
// a key in the TPM after 30 days, its attestation key after a year. It writes id
// once more first: a disk that takes nothing must be noticed before the
// collector has replaced the key, not after. It returns ErrReplaced when id is
// not what is stored any more, and wraps chip.ErrUnavailable when the TPM does
// not answer.
func (s *State) Renew(id *Identity) (*Renewal, error) {
	if err := s.stillIs(id); err != nil {
		return nil, err
	}
	if err := s.Save(id); err != nil {
		return nil, err
	}
	keys, err := s.renewedKeys(id, time.Now())
	if err != nil {
		return nil, err
	}
	csr, err := attest.NewRequest(keys.Key)
	if err != nil {
		return nil, err
	}
	return &Renewal{state: s, old: id, keys: keys, csr: csr}, nil
}

// renewedKeys are the keys for the next certificate of id. New ones in the TPM
// are stored before they are used: when the answer of the collector gets lost,
// it knows the new attestation key and no other.
func (s *State) renewedKeys(id *Identity, now time.Time) (*Identity, error) {
	keys := id.bare()
	if !id.InTPM() {
		return keys, s.renewKey(keys, now)
	}
	if earlier := s.unfinished(id); earlier != nil {
		return earlier, nil
	}
	tls, attestation := aged(id.keySince, now, keyLife), aged(id.akSince, now, attestationLife)
	if !tls && !attestation {
		return keys, nil
	}
	if tls {
		if err := s.renewKey(keys, now); err != nil {
			return nil, err
		}
	}
	if attestation {
		if err := s.renewAttestationKey(keys, now); err != nil {
			return nil, err
		}
	}
	return keys, s.next().Save(keys)
}

// stillIs returns ErrReplaced when another identity than id is stored.
func (s *State) stillIs(id *Identity) error {
	stored, err := s.read()
	if err != nil {
		return err
	}
	if !stored.Enrolled() || !stored.Chain[0].Equal(id.Chain[0]) {
		return ErrReplaced
	}
	return nil
}

// Request is the first message.
func (r *Renewal) Request() *agentv1.RenewalRequest {
	m := &agentv1.RenewalRequest{Csr: r.csr}
	if key, ok := r.keys.Key.(*chip.Key); ok {
		m.TlsKeyPublic = key.Area()
	}
	if r.newAttestationKey() {
		m.AkPublic = r.keys.ak.Area()
	}
	return m
}

func (r *Renewal) newAttestationKey() bool {
	return r.keys.InTPM() && !sameKey(r.keys.ak, r.old.ak)
}

// Prove answers the challenge on the stream whose channel binding is exporter.
// It is the attestation key of before that certifies, also when there is a new
// one: only its clock tells the collector that this is the TPM of before.
func (r *Renewal) Prove(challenge *agentv1.RenewalChallenge, exporter []byte) (*agentv1.RenewalProof, error) {
	nonce := challenge.GetNonce()
	if err := checkNonce(nonce); err != nil {
		return nil, err
	}
	sig, err := attest.Sign(r.keys.Key, attest.RenewDigest(nonce, exporter, r.csr))
	if err != nil {
		return nil, err
	}
	proof := &agentv1.RenewalProof{Signature: sig}
	key, ok := r.keys.Key.(*chip.Key)
	if !ok {
		return proof, nil
	}
	proof.Certify, proof.CertifySignature, err = r.keys.chip.Certify(r.old.ak, key, attest.Qualify(attest.PurposeCertify, nonce, exporter))
	if err != nil || !r.newAttestationKey() {
		return proof, err
	}
	secret, err := r.activate(challenge)
	if err != nil {
		return nil, err
	}
	proof.Activation = attest.Activation(secret, r.csr, exporter)
	return proof, nil
}

// activate shows that the new attestation key is in the TPM that the collector
// knows.
func (r *Renewal) activate(challenge *agentv1.RenewalChallenge) ([]byte, error) {
	ek, err := r.keys.chip.Endorsement()
	if err != nil {
		return nil, err
	}
	return r.keys.chip.Activate(r.keys.ak, ek, challenge.GetCredentialBlob(), challenge.GetEncryptedSecret())
}

// Complete stores the new identity in place of the old one. It returns an
// error, and keeps what is stored, for a certificate of another device, one that
// has expired already, when it cannot be stored, and ErrReplaced when the old
// one is not what is stored any more.
func (r *Renewal) Complete(m *agentv1.Issued, now time.Time) (*Identity, error) {
	id, err := issued(r.keys, m)
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
	r.state.forgetNext()
	return id, nil
}

func checkNonce(nonce []byte) error {
	if len(nonce) != attest.NonceBytes {
		return fmt.Errorf("challenge with a nonce of %d bytes, %d are needed", len(nonce), attest.NonceBytes)
	}
	return nil
}
