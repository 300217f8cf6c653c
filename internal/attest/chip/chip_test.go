//go:build linux

package chip_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/pem"
	"errors"
	"os"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
)

func TestKeyOfTheTPMSigns(t *testing.T) {
	p := newPC(t)
	key := p.newKey(t)
	pub := key.Public().(*ecdsa.PublicKey)
	sum256, sum384 := sha256.Sum256([]byte("x")), sha512.Sum384([]byte("x"))
	for _, tc := range []struct {
		digest []byte
		hash   crypto.Hash
	}{{sum256[:], crypto.SHA256}, {sum384[:], crypto.SHA384}} {
		sig, err := key.Sign(rand.Reader, tc.digest, tc.hash)
		if err != nil {
			t.Fatalf("%v: %v", tc.hash, err)
		}
		if !ecdsa.VerifyASN1(pub, tc.digest, sig) {
			t.Errorf("%v: the signature does not verify", tc.hash)
		}
	}
	if _, err := key.Sign(rand.Reader, sum256[:5], crypto.SHA256); err == nil {
		t.Error("a digest that is none was signed")
	}
	if _, err := attest.ParseRequest(must(attest.NewRequest(key))(t)); err != nil {
		t.Errorf("request: %v", err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// The attestation key signs nothing but statements of its TPM: otherwise
// whoever can use it could sign statements of his own.
func TestAttestationKeySignsNothingElse(t *testing.T) {
	p := newPC(t)
	sum := sha256.Sum256([]byte("x"))
	if _, err := p.newAK(t).Sign(rand.Reader, sum[:], crypto.SHA256); err == nil {
		t.Error("the attestation key signed")
	}
}

func TestKeysSurvivePowerCycles(t *testing.T) {
	p := newPC(t)
	key := p.newKey(t)
	kept := stored(t, key)
	sum := sha256.Sum256([]byte("x"))
	must(key.Sign(rand.Reader, sum[:], crypto.SHA256))(t)
	for range 3 {
		p.powerCycle(t)
		// The TPM has forgotten the key; the handle that we hold is no one's.
		if _, err := key.Sign(rand.Reader, sum[:], crypto.SHA256); err != nil {
			t.Errorf("after a reset: %v", err)
		}
	}
	if again := must(p.LoadKey(kept))(t); !again.Public().(*ecdsa.PublicKey).Equal(key.Public()) {
		t.Error("another key was loaded")
	}
}

func TestKeysAreUsedByManyAtOnce(t *testing.T) {
	p := newPC(t)
	keys := []*chip.Key{p.newKey(t), p.newKey(t), p.newKey(t), p.newKey(t)}
	ak := p.newAK(t)
	sum := sha256.Sum256([]byte("x"))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 5 {
				if _, err := keys[i%4].Sign(rand.Reader, sum[:], crypto.SHA256); err != nil {
					t.Errorf("signing: %v", err)
				}
				if _, _, err := p.Certify(ak, keys[(i+1)%4], sum[:]); err != nil {
					t.Errorf("certifying: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if n := p.objects(t); n > 3 {
		t.Errorf("%d objects are loaded", n)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if n := p.objects(t); n != 0 {
		t.Errorf("%d objects are left", n)
	}
}

func TestNothingIsLeftInTheTPM(t *testing.T) {
	p := newPC(t)
	ek := p.endorsement(t)
	ak := p.newAK(t)
	ch, e := challengeFor(t, ek, ak, p.newKey(t))
	must(p.Activate(ak, ek, ch.GetCredentialBlob(), ch.GetEncryptedSecret()))(t)
	if e == nil {
		t.Fatal("no expectation")
	}
	// A secret for somebody else fails, and leaves nothing either.
	if _, err := p.Activate(p.newAK(t), ek, ch.GetCredentialBlob(), ch.GetEncryptedSecret()); err == nil {
		t.Error("another key's secret was opened")
	}
	must(p.Quote(ak, attest.QuotedPCRs(), make([]byte, 32)))(t)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if n := p.objects(t); n != 0 {
		t.Errorf("%d objects are left", n)
	}
	sessions := raw(t, p, tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x02000000, PropertyCount: 16})
	if list := must(sessions.CapabilityData.Data.Handles())(t); len(list.Handle) != 0 {
		t.Errorf("%d sessions are left", len(list.Handle))
	}
}

func TestWithoutATPM(t *testing.T) {
	p := newPC(t)
	key := p.newKey(t)
	kept := stored(t, key)
	p.Off()
	_, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256)
	wantError(t, err, chip.ErrUnavailable)
	_, err = p.LoadKey(kept)
	wantError(t, err, chip.ErrUnavailable)
	_, err = chip.New(func() (transport.TPMCloser, error) { return nil, os.ErrNotExist }, nil).NewAK()
	wantError(t, err, chip.ErrUnavailable)
	p.On(t)
	if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
		t.Errorf("when it is back: %v", err)
	}
}

func TestOwnerWithAPassword(t *testing.T) {
	p := newPC(t)
	raw(t, p, tpm2.HierarchyChangeAuth{AuthHandle: password(tpm2.TPMRHOwner), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("random")}})
	if _, err := p.NewKey(); err == nil || errors.Is(err, chip.ErrUnavailable) {
		t.Fatalf("a key without any parent: %v", err)
	}
	// Windows leaves an RSA storage key in the TPM.
	primary := raw(t, p, tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth([]byte("random"))},
		InPublic:      tpm2.New2B(tpm2.RSASRKTemplate),
	})
	raw(t, p, tpm2.EvictControl{
		Auth:         tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth([]byte("random"))},
		ObjectHandle: &tpm2.NamedHandle{Handle: primary.ObjectHandle, Name: primary.Name}, PersistentHandle: 0x81000001,
	})
	raw(t, p, tpm2.FlushContext{FlushHandle: primary.ObjectHandle})
	key := p.newKey(t)
	p.powerCycle(t)
	again := must(p.LoadKey(stored(t, key)))(t)
	if _, err := again.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
		t.Error(err)
	}
	p.Clear(t) // takes the storage key along
	_, err := p.LoadKey(stored(t, key))
	wantError(t, err, chip.ErrForeign)
}

func TestEndorsementKeysOfAllTemplates(t *testing.T) {
	m := newMaker(t, "ACME")
	for _, template := range attest.EndorsementKeys() {
		p := newPC(t)
		primary := raw(t, p, tpm2.CreatePrimary{
			PrimaryHandle: password(tpm2.TPMRHEndorsement), InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](template.Area),
		})
		raw(t, p, tpm2.FlushContext{FlushHandle: primary.ObjectHandle})
		key := must(attest.ParseEndorsementKey(primary.OutPublic.Bytes()))(t)
		want := m.certificate(t, key, "id:49465800")
		p.store(t, tpm2.TPMHandle(template.Certificate), want)
		p.store(t, 0x01C00100, m.authority.Raw)

		ek, ak := p.endorsement(t), p.newAK(t)
		if len(ek.Certificates) != 2 || string(ek.Certificates[0]) != string(want) || string(ek.Certificates[1]) != string(m.authority.Raw) {
			t.Errorf("%#x: %d certificates", template.Certificate, len(ek.Certificates))
		}
		if got := must(ek.Key())(t); !got.(interface{ Equal(crypto.PublicKey) bool }).Equal(key) {
			t.Errorf("%#x: another endorsement key", template.Certificate)
		}
		ch, _ := challengeFor(t, ek, ak, p.newKey(t))
		if _, err := p.Activate(ak, ek, ch.GetCredentialBlob(), ch.GetEncryptedSecret()); err != nil {
			t.Errorf("%#x: %v", template.Certificate, err)
		}
	}
}

func TestEndorsementKeyThatLiesInTheTPMIsUsed(t *testing.T) {
	p := newPC(t)
	template := attest.EndorsementKeys()[0]
	primary := raw(t, p, tpm2.CreatePrimary{
		PrimaryHandle: password(tpm2.TPMRHEndorsement), InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](template.Area),
	})
	raw(t, p, tpm2.EvictControl{
		Auth: password(tpm2.TPMRHOwner), ObjectHandle: &tpm2.NamedHandle{Handle: primary.ObjectHandle, Name: primary.Name},
		PersistentHandle: 0x81010001,
	})
	raw(t, p, tpm2.FlushContext{FlushHandle: primary.ObjectHandle})
	ek, ak := p.endorsement(t), p.newAK(t)
	ch, _ := challengeFor(t, ek, ak, p.newKey(t))
	must(p.Activate(ak, ek, ch.GetCredentialBlob(), ch.GetEncryptedSecret()))(t)
	if _, ok := must(ek.Key())(t).(*rsa.PublicKey); !ok {
		t.Errorf("endorsement key %T", must(ek.Key())(t))
	}
}

// OpenSSL's provider for TPMs reads what is stored, under this name.
func TestKeyForOpenSSLIsTheStoredOne(t *testing.T) {
	p := newPC(t)
	key := p.newKey(t)
	block, rest := pem.Decode(must(key.PEM())(t))
	if block == nil || len(rest) != 0 || block.Type != "TSS2 PRIVATE KEY" {
		t.Fatalf("%+v", block)
	}
	again := must(p.LoadKey(block.Bytes))(t)
	if pub := again.Public().(*ecdsa.PublicKey); pub.Curve != elliptic.P256() || !pub.Equal(key.Public()) {
		t.Error("another key")
	}
}

func TestStoredKeysThatAreNone(t *testing.T) {
	p := newPC(t)
	good := stored(t, p.newKey(t))
	for name, bad := range map[string][]byte{
		"nothing": nil, "nonsense": []byte("key"), "cut off": good[:len(good)-1], "followed by more": append(good, 0),
		"far too long": make([]byte, 10_000),
	} {
		if _, err := p.LoadKey(bad); err == nil || errors.Is(err, chip.ErrForeign) || errors.Is(err, chip.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)-1] ^= 1
	_, err := p.LoadKey(flipped)
	wantError(t, err, chip.ErrForeign)
}

func TestEventLogIsReadFromTheKernel(t *testing.T) {
	root := fstest.MapFS{"sys/kernel/security/tpm0/binary_bios_measurements": {Data: []byte("log")}}
	if log, err := chip.ReadEventLog(root); err != nil || string(log) != "log" {
		t.Errorf("%q, %v", log, err)
	}
	if _, err := chip.ReadEventLog(fstest.MapFS{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
