//go:build linux

package chip_test

import (
	"bytes"
	"crypto"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"pfoertner/internal/attest/bootlog/bootlogtest"
	"pfoertner/internal/attest/chip"
	"pfoertner/internal/e2e/swtpm"
)

// pc is a machine with a TPM 2.0: a real swtpm, reached as a notebook reaches
// its own.
type pc struct {
	*chip.Chip
	*swtpm.TPM
}

// newPC is a machine fresh from the factory.
func newPC(t testing.TB) *pc { return pcWith(t, swtpm.New(t)) }

func pcWith(t testing.TB, tpm *swtpm.TPM) *pc { return &pc{tpm.Chip(t), tpm} }

// powerCycle switches the machine off and on: the TPM keeps its state, and
// forgets what was loaded.
func (p *pc) powerCycle(t testing.TB) {
	t.Helper()
	p.Off()
	p.On(t)
}

// raw gives the TPM a command beside the chip.
func raw[R any](t testing.TB, p *pc, command tpm2.Command[R, *R]) *R {
	t.Helper()
	rsp, err := tryRaw(t, p, command)
	if err != nil {
		t.Fatalf("%T: %v", command, err)
	}
	return rsp
}

func tryRaw[R any](t testing.TB, p *pc, command tpm2.Command[R, *R]) (*R, error) {
	t.Helper()
	tpm, err := linuxudstpm.Open(p.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	executable, ok := any(command).(interface {
		Execute(transport.TPM, ...tpm2.Session) (*R, error)
	})
	if !ok {
		t.Fatalf("%T cannot be executed", command)
	}
	return executable.Execute(tpm)
}

func password(h tpm2.TPMHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Auth: tpm2.PasswordAuth(nil)}
}

// store leaves a certificate in the TPM, as its manufacturer does; padded as
// some do.
func (p *pc) store(t testing.TB, index tpm2.TPMHandle, der []byte) {
	t.Helper()
	padded := append(bytes.Clone(der), make([]byte, 7)...)
	raw(t, p, tpm2.NVDefineSpace{
		AuthHandle: password(tpm2.TPMRHPlatform),
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(padded)),
			Attributes: tpm2.TPMANV{PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true},
		}),
	})
	for offset := 0; offset < len(padded); offset += 512 {
		pub := raw(t, p, tpm2.NVReadPublic{NVIndex: index})
		raw(t, p, tpm2.NVWrite{
			AuthHandle: password(tpm2.TPMRHPlatform), NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: padded[offset:min(offset+512, len(padded))]}, Offset: uint16(offset),
		})
	}
}

// boot measures what a log says, as firmware and boot loaders do.
func (p *pc) boot(t testing.TB, b *bootlogtest.Builder) {
	t.Helper()
	for _, e := range b.Events {
		if e.Type == 3 {
			continue
		}
		raw(t, p, tpm2.PCRExtend{
			PCRHandle: password(tpm2.TPMHandle(e.PCR)),
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: e.Digest}}},
		})
	}
	p.Log = b.Log()
}

// objects counts what is loaded in the TPM.
func (p *pc) objects(t testing.TB) int {
	t.Helper()
	rsp := raw(t, p, tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 16})
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		t.Fatal(err)
	}
	return len(list.Handle)
}

func (p *pc) newAK(t testing.TB) *chip.Key { return made(t, p.NewAK) }

func (p *pc) newKey(t testing.TB) *chip.Key { return made(t, p.NewKey) }

func made(t testing.TB, make func() (*chip.Key, error)) *chip.Key {
	t.Helper()
	k, err := make()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (p *pc) endorsement(t testing.TB) *chip.Endorsement {
	t.Helper()
	e, err := p.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (p *pc) endorsementKey(t testing.TB) crypto.PublicKey {
	t.Helper()
	key, err := p.endorsement(t).Key()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func stored(t testing.TB, k *chip.Key) []byte {
	t.Helper()
	b, err := k.Stored()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantError(t *testing.T, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
