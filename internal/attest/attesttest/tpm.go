// Package attesttest makes statements of a TPM for tests that need neither a
// TPM nor its time: what swtpm would say, from keys in memory. What real ones
// say, the tests of package chip try.
package attesttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"slices"
	"testing"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/bootlog/bootlogtest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// Key is a key of a TPM.
type Key struct {
	*ecdsa.PrivateKey
	// Area is its public area (TPMT_PUBLIC).
	Area []byte
}

// TPM is a TPM in a machine. A copy of it is a clone.
type TPM struct {
	EK, AK Key
	Clock  attest.Clock
	// Boot is what the machine has started.
	Boot *bootlogtest.Builder
}

// New is a TPM in a machine that was just switched on, with Secure Boot.
func New(t testing.TB) *TPM {
	t.Helper()
	return &TPM{
		EK: newKey(t, attest.EndorsementKeys()[3]), AK: NewAK(t),
		Clock: attest.Clock{Milliseconds: 1000, ResetCount: 7, Safe: true, Firmware: 42},
		Boot:  bootlogtest.SecureBoot(),
	}
}

// NewAK makes an attestation key.
func NewAK(t testing.TB) Key { return newKey(t, attest.AttestationKey()) }

// NewKey makes a TLS or VPN key.
func NewKey(t testing.TB) Key { return newKey(t, attest.SigningKey()) }

// newKey makes a key of a template that ends with an empty point.
func newKey(t testing.TB, template attest.Template) Key {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	area := slices.Clone(template.Area[:len(template.Area)-4])
	return Key{key, append(sized(area, point[1:33]), sized(nil, point[33:])...)}
}

func sized(b, data []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
}

// Quote quotes the PCRs for a nonce and a connection.
func (p *TPM) Quote(t testing.TB, nonce, exporter []byte) *agentv1.Quote {
	t.Helper()
	var values [][]byte
	selected := make([]byte, 3)
	for _, pcr := range attest.QuotedPCRs() {
		values = append(values, p.Boot.PCR(pcr))
		selected[pcr/8] |= 1 << (pcr % 8)
	}
	digest := sha256.Sum256(slices.Concat(values...))
	quoted := binary.BigEndian.AppendUint32(nil, 1)
	quoted = binary.BigEndian.AppendUint16(quoted, 0x000b)
	quoted = append(append(quoted, 3), selected...)
	message, signature := p.state(t, 0x8018, attest.Qualify(attest.PurposeQuote, nonce, exporter), sized(quoted, digest[:]))
	return &agentv1.Quote{Nonce: nonce, Message: message, Signature: signature, PcrValues: values, EventLog: p.Boot.Log()}
}

// Certify certifies a key for a question (attest.Qualify).
func (p *TPM) Certify(t testing.TB, key Key, qualifying []byte) (message, signature []byte) {
	t.Helper()
	return p.state(t, 0x8017, qualifying, sized(sized(nil, attest.Name(key.Area)), nil))
}

// state signs a statement of a kind (TPMS_ATTEST, Part 2, 10.12.12), a
// millisecond after the one before.
func (p *TPM) state(t testing.TB, kind uint16, qualifying, attested []byte) (message, signature []byte) {
	t.Helper()
	p.Clock.Milliseconds++
	be := binary.BigEndian
	message = be.AppendUint16(be.AppendUint32(nil, 0xff544347), kind)
	message = sized(sized(message, nil), qualifying)
	message = be.AppendUint64(message, p.Clock.Milliseconds)
	message = be.AppendUint32(be.AppendUint32(message, p.Clock.ResetCount), p.Clock.RestartCount)
	safe := byte(0)
	if p.Clock.Safe {
		safe = 1
	}
	message = append(be.AppendUint64(append(message, safe), p.Clock.Firmware), attested...)
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, p.AK.PrivateKey, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature = be.AppendUint32(nil, 0x0018000b)
	return message, append(sized(signature, number(r)), sized(nil, number(s))...)
}

func number(n *big.Int) []byte { return n.FillBytes(make([]byte, 32)) }
