package identity

import (
	"crypto"
	"errors"
	"fmt"
	"strings"
	"time"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// ErrSoftwareKey is the error where only a key in a TPM would do.
var ErrSoftwareKey = errors.New("the device key is not in a TPM")

// TPM keeps device keys in this machine's TPM: the identity file has blobs that
// no other TPM loads. With every device key goes an attestation key, which
// states what the TPM holds and how the machine was started.
type TPM struct {
	Chip *chip.Chip
}

// Kind implements Keys.
func (TPM) Kind() string { return KindTPM }

// Generate implements Keys.
func (t TPM) Generate() (crypto.Signer, error) {
	key, err := t.Chip.NewKey()
	if err != nil {
		return nil, unusable(err)
	}
	return key, nil
}

// Store implements Keys.
func (TPM) Store(key crypto.Signer) ([]byte, error) {
	k, ok := key.(*chip.Key)
	if !ok {
		return nil, fmt.Errorf("key of type %T is not in the TPM", key)
	}
	return k.Stored()
}

// Open implements Keys. It does not ask the TPM: a file can be read where there
// is none.
func (t TPM) Open(stored []byte) (crypto.Signer, error) {
	key, err := t.Chip.ParseKey(stored)
	if err != nil {
		return nil, err
	}
	if _, err := attest.ParseSigningKey(key.Area()); err != nil {
		return nil, err
	}
	return key, nil
}

// attestation returns the attestation key that is stored.
func (t TPM) attestation(stored []byte) (*chip.Key, error) {
	key, err := t.Chip.ParseKey(stored)
	if err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	if _, err := attest.ParseAttestationKey(key.Area()); err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	return key, nil
}

// resident returns nil when the TPM of this machine has the keys of id, and when
// they are software keys; otherwise an error that wraps chip.ErrForeign and
// ErrNotEnrolled, or chip.ErrUnavailable.
func (id *Identity) resident() error {
	if id.ak == nil {
		return nil
	}
	key, ok := id.Key.(*chip.Key)
	if !ok {
		return fmt.Errorf("key of type %T is not in the TPM", id.Key)
	}
	err := key.Load()
	if err == nil {
		err = id.ak.Load()
	}
	if errors.Is(err, chip.ErrForeign) {
		return fmt.Errorf("%w: %w", ErrNotEnrolled, err)
	}
	return unusable(err)
}

// unusable turns what a TPM says into one of the two things that it means to
// an identity: chip.ErrForeign, or chip.ErrUnavailable for everything that may
// pass.
func unusable(err error) error {
	if err == nil || errors.Is(err, chip.ErrForeign) || errors.Is(err, chip.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", chip.ErrUnavailable, err)
}

// Chip is the TPM that holds the keys; nil for software keys.
func (s *State) Chip() *chip.Chip {
	if t, ok := s.keys.(TPM); ok {
		return t.Chip
	}
	return nil
}

// NewVPNKey makes a key for the VPN in the TPM. The error is ErrSoftwareKey when
// there is none, and wraps chip.ErrUnavailable when it does not answer.
func (s *State) NewVPNKey() (*chip.Key, error) {
	if s.Chip() == nil {
		return nil, ErrSoftwareKey
	}
	key, err := s.Chip().NewKey()
	return key, unusable(err)
}

// LoadVPNKey returns the key that chip.Key.Stored kept. The error wraps
// chip.ErrForeign for a key of another TPM, and chip.ErrUnavailable when that
// cannot be said now.
func (s *State) LoadVPNKey(stored []byte) (*chip.Key, error) {
	t, ok := s.keys.(TPM)
	if !ok {
		return nil, ErrSoftwareKey
	}
	if _, err := t.Open(stored); err != nil {
		return nil, fmt.Errorf("VPN key: %w", err)
	}
	key, err := t.Chip.LoadKey(stored)
	return key, unusable(err)
}

// Quote is what the TPM states of how this machine was started, for a nonce of
// the collector and the channel binding of the stream. When the TPM does not
// quote now, the message says why. The only error is ErrSoftwareKey.
func (id *Identity) Quote(nonce, exporter []byte) (*agentv1.Quote, error) {
	if id.ak == nil {
		return nil, ErrSoftwareKey
	}
	if err := checkNonce(nonce); err != nil {
		return &agentv1.Quote{Nonce: nonce, Failure: failure(err)}, nil
	}
	q, err := id.chip.Quote(id.ak, attest.QuotedPCRs(), attest.Qualify(attest.PurposeQuote, nonce, exporter))
	if err != nil {
		return &agentv1.Quote{Nonce: nonce, Failure: failure(err)}, nil
	}
	return &agentv1.Quote{
		Nonce: nonce, Message: q.Message, Signature: q.Signature, PcrValues: q.Values, EventLog: sendable(q.EventLog),
	}, nil
}

// sendable leaves out an event log that is longer than a message takes: a quote
// without one is worth more than none.
func sendable(log []byte) []byte {
	if len(log) > posture.MaxEventLogBytes {
		return nil
	}
	return log
}

// maxFailure is far below what a message may carry in a text.
const maxFailure = 200

func failure(err error) string {
	text := strings.ToValidUTF8(err.Error(), "")
	return strings.ToValidUTF8(text[:min(len(text), maxFailure)], "")
}

// CertifyVPN lets the attestation key state that this TPM holds a key for the
// VPN (agent.v1 VpnKeyProof). The error is ErrSoftwareKey when the device key is
// not in a TPM.
func (id *Identity) CertifyVPN(key *chip.Key, nonce, exporter []byte) (message, signature []byte, err error) {
	if id.ak == nil {
		return nil, nil, ErrSoftwareKey
	}
	if err := checkNonce(nonce); err != nil {
		return nil, nil, err
	}
	message, signature, err = id.chip.Certify(id.ak, key, attest.Qualify(attest.PurposeVPN, nonce, exporter))
	return message, signature, unusable(err)
}

// When keys in the TPM are replaced, at the renewal that comes next.
const (
	keyLife         = 30 * 24 * time.Hour
	attestationLife = 365 * 24 * time.Hour
)

// aged says whether a key is to be replaced. One from the future is: the clock
// was wrong then, or is now.
func aged(since, now time.Time, life time.Duration) bool {
	age := now.Sub(since)
	return age < 0 || age >= life
}
