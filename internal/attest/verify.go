package attest

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// Why a TPM's statement is refused.
var (
	// ErrStatement is the error for a statement that is malformed, not made by
	// a TPM, of another kind, or not signed by the attestation key.
	ErrStatement = errors.New("statement of the TPM does not verify")
	// ErrReplay is the error for a genuine statement that answers another
	// question: another nonce, connection or purpose.
	ErrReplay = errors.New("statement of the TPM answers another question")
	// ErrOtherKey is the error for a certification of another key.
	ErrOtherKey = errors.New("statement of the TPM certifies another key")
	// ErrPCRs is the error for a quote of other PCRs, or of other values.
	ErrPCRs = errors.New("quote is of other PCRs or values")
)

const (
	generated   = 0xff544347 // TPM_GENERATED_VALUE
	typeCertify = 0x8017     // TPM_ST_ATTEST_CERTIFY
	typeQuote   = 0x8018     // TPM_ST_ATTEST_QUOTE
	ecdsaSHA256 = 0x0018000b // TPM_ALG_ECDSA, TPM_ALG_SHA256
	algSHA256   = 0x000b
	maxMessage  = 1 << 10
)

// Clock is the TPM's time in a statement. For keys like ours a TPM adds a
// constant to ResetCount, RestartCount and Firmware, another one for each key
// (Part 1, 36.7): compare them only between statements of one key, and only
// modulo their size.
type Clock struct {
	// Milliseconds that the TPM was powered since it was cleared.
	Milliseconds uint64
	// ResetCount counts cold starts, RestartCount resumes since the last one.
	ResetCount, RestartCount uint32
	// Safe means that no greater Milliseconds were ever stated.
	Safe bool
	// Firmware is the version of the TPM's firmware.
	Firmware uint64
}

// Follows says whether c can be later than, or the same as, an earlier
// statement of the same key by one and the same TPM. If not, there are two
// TPMs with one state.
func (c Clock) Follows(earlier Clock) bool {
	switch resets := int32(c.ResetCount - earlier.ResetCount); {
	case resets != 0:
		return resets > 0
	case int32(c.RestartCount-earlier.RestartCount) < 0:
		return false
	default:
		return c.Milliseconds >= earlier.Milliseconds
	}
}

// Quoted is what a quote says.
type Quoted struct {
	Clock Clock
	// PCRs of the SHA-256 bank, ascending.
	PCRs []uint32
	// Digest is SHA-256 over their values.
	Digest []byte
}

// VerifyQuote checks that the TPM of ak quotes exactly these PCRs (ascending)
// of the SHA-256 bank for this question. The error is ErrStatement, ErrReplay or
// ErrPCRs.
func VerifyQuote(ak *Key, pcrs []uint32, qualifying, message, signature []byte) (*Quoted, error) {
	s, err := openStatement(ak, typeQuote, qualifying, message, signature)
	if err != nil {
		return nil, err
	}
	banks, bank := s.attested.u32(), s.attested.u16()
	selected := slices.Clone(s.attested.take(int(s.attested.u8())))
	digest := s.attested.sized()
	if !s.attested.done() || len(digest) != sha256.Size {
		return nil, fmt.Errorf("%w: malformed quote", ErrStatement)
	}
	for _, pcr := range pcrs {
		if int(pcr/8) >= len(selected) || selected[pcr/8]&(1<<(pcr%8)) == 0 {
			return nil, fmt.Errorf("%w: PCR %d is missing", ErrPCRs, pcr)
		}
		selected[pcr/8] &^= 1 << (pcr % 8)
	}
	if banks != 1 || bank != algSHA256 || slices.ContainsFunc(selected, func(b byte) bool { return b != 0 }) {
		return nil, fmt.Errorf("%w: it quotes others too", ErrPCRs)
	}
	return &Quoted{Clock: s.clock, PCRs: pcrs, Digest: digest}, nil
}

// Values checks that these are the values of the quoted PCRs, in their order.
// The error is ErrPCRs.
func (q *Quoted) Values(values [][]byte) error {
	if len(values) != len(q.PCRs) {
		return fmt.Errorf("%w: %d values of %d", ErrPCRs, len(values), len(q.PCRs))
	}
	h := sha256.New()
	for _, v := range values {
		if len(v) != sha256.Size {
			return fmt.Errorf("%w: value of %d bytes", ErrPCRs, len(v))
		}
		h.Write(v)
	}
	if subtle.ConstantTimeCompare(h.Sum(nil), q.Digest) != 1 {
		return fmt.Errorf("%w: the values are not the quoted ones", ErrPCRs)
	}
	return nil
}

// statement is a TPMS_ATTEST (Part 2, 10.12.12) whose signature verifies.
type statement struct {
	clock    Clock
	attested reader
}

func openStatement(ak *Key, kind uint16, qualifying, message, signature []byte) (*statement, error) {
	if len(message) > maxMessage || len(signature) > maxMessage {
		return nil, fmt.Errorf("%w: too long", ErrStatement)
	}
	if err := verifySignature(ak.Public, message, signature); err != nil {
		return nil, err
	}
	r := reader{rest: message}
	if magic, got := r.u32(), r.u16(); magic != generated || got != kind {
		return nil, fmt.Errorf("%w: magic %08x, type %04x", ErrStatement, magic, got)
	}
	r.sized() // the qualified name of the AK, which signed
	asked := r.sized()
	clock := Clock{Milliseconds: r.u64(), ResetCount: r.u32(), RestartCount: r.u32(), Safe: r.u8() == 1, Firmware: r.u64()}
	if r.short {
		return nil, fmt.Errorf("%w: cut off", ErrStatement)
	}
	if subtle.ConstantTimeCompare(asked, qualifying) != 1 {
		return nil, ErrReplay
	}
	return &statement{clock: clock, attested: r}, nil
}

// verifySignature checks a TPMT_SIGNATURE by ECDSA with SHA-256.
func verifySignature(key *ecdsa.PublicKey, message, signature []byte) error {
	r := reader{rest: signature}
	scheme, rs, ss := r.u32(), r.sized(), r.sized()
	if !r.done() || scheme != ecdsaSHA256 || len(rs) > 32 || len(ss) > 32 {
		return fmt.Errorf("%w: malformed signature", ErrStatement)
	}
	digest := sha256.Sum256(message)
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(rs), new(big.Int).SetBytes(ss)) {
		return fmt.Errorf("%w: signature is not by the attestation key", ErrStatement)
	}
	return nil
}
