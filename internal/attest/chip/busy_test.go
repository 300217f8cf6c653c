//go:build linux

package chip_test

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
)

// busy is a TPM that answers some commands with a code instead.
type busy struct {
	transport.TPMCloser
	command tpm2.TPMCC
	code    tpm2.TPMRC
	left    *atomic.Int32 // how often
}

func (b busy) Send(in []byte) ([]byte, error) {
	if tpm2.TPMCC(binary.BigEndian.Uint32(in[6:])) != b.command || b.left.Add(-1) < 0 {
		return b.TPMCloser.Send(in)
	}
	out := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	out = binary.BigEndian.AppendUint32(out, 10)
	return binary.BigEndian.AppendUint32(out, uint32(b.code)), nil
}

// whileBusy does something with the TPM of p, which answers a command with a code
// so often.
func whileBusy(t *testing.T, p *pc, command tpm2.TPMCC, code tpm2.TPMRC, times int32, do func(c *chip.Chip)) {
	t.Helper()
	if err := p.Close(); err != nil { // it serves one connection at a time
		t.Fatal(err)
	}
	left := &atomic.Int32{}
	left.Store(times)
	c := chip.New(func() (transport.TPMCloser, error) {
		tpm, err := linuxudstpm.Open(p.Socket)
		return busy{tpm, command, code, left}, err
	}, nil)
	do(c)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// passing are the codes of a TPM that may do better soon.
var passing = []tpm2.TPMRC{
	tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded, tpm2.TPMRCNVRate, tpm2.TPMRCLockout,
	tpm2.TPMRCNVUnavailable, tpm2.TPMRCFailure, tpm2.TPMRCInitialize,
}

// Keys that are taken for another TPM's are given up: a code that says nothing
// about them must never lead there.
func TestATPMThatIsBusyDisownsNoKey(t *testing.T) {
	p := newPC(t)
	kept := stored(t, p.newKey(t))
	for _, command := range []tpm2.TPMCC{tpm2.TPMCCLoad, tpm2.TPMCCCreatePrimary} {
		for _, code := range passing {
			whileBusy(t, p, command, code, 9, func(c *chip.Chip) {
				_, err := c.LoadKey(kept)
				wantError(t, err, chip.ErrUnavailable)
				if errors.Is(err, chip.ErrForeign) {
					t.Errorf("%v: %v", code, err)
				}
			})
			whileBusy(t, p, command, code, 1, func(c *chip.Chip) {
				if _, err := c.LoadKey(kept); err != nil {
					t.Errorf("%v, once: %v", code, err)
				}
			})
		}
	}
}

// A notebook whose certificate cannot be read now is not one without: it would
// wait for two persons who have nothing to decide.
func TestATPMThatIsBusyHasItsCertificate(t *testing.T) {
	p := newPC(t)
	key, err := attest.ParseEndorsementKey(must(p.Endorsement())(t).Area)
	if err != nil {
		t.Fatal(err)
	}
	p.store(t, 0x01C00002, newMaker(t, "Infineon").certificate(t, key, "id:49465800"))
	if e := must(p.Endorsement())(t); len(e.Certificates) != 1 {
		t.Fatalf("%d certificates", len(e.Certificates))
	}
	for _, command := range []tpm2.TPMCC{tpm2.TPMCCNVRead, tpm2.TPMCCNVReadPublic} {
		for _, code := range passing {
			whileBusy(t, p, command, code, 1, func(c *chip.Chip) {
				if e, err := c.Endorsement(); err != nil || len(e.Certificates) != 1 {
					t.Errorf("%v, once: %v", code, err)
				}
			})
			whileBusy(t, p, command, code, 9, func(c *chip.Chip) {
				_, err := c.Endorsement()
				wantError(t, err, chip.ErrUnavailable)
			})
		}
	}
}
