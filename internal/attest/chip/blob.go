package chip

import (
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"pfoertner/internal/attest"
)

// blob is a key as it lies on disk, in the form that OpenSSL's TPM providers
// read too (draft-bottomley-tpm2-keys, TPMKey). It is useless without the TPM
// that made it.
type blob struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool `asn1:"optional,explicit,tag:0"`
	// Parent is the handle of the key that it is encrypted with; a hierarchy
	// stands for the primary key of the standard template in it.
	Parent int64
	// Public and Private are TPM2B_PUBLIC and TPM2B_PRIVATE.
	Public, Private []byte
}

var loadableKey = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}

// persistentStorageKey is where operating systems keep their storage key (TCG
// TPM v2.0 Provisioning Guidance, 7.8).
const persistentStorageKey tpm2.TPMHandle = 0x81000001

const maxBlob = 4 << 10

func (b *blob) area() []byte { return b.Public[2:] }

func parseBlob(der []byte) (*blob, error) {
	b := &blob{}
	if len(der) > maxBlob {
		return nil, fmt.Errorf("stored key of %d bytes", len(der))
	}
	if rest, err := asn1.Unmarshal(der, b); err != nil || len(rest) > 0 {
		return nil, errors.New("stored key is malformed")
	}
	if !b.Type.Equal(loadableKey) || !b.EmptyAuth || !sized(b.Public) || !sized(b.Private) {
		return nil, errors.New("stored key is not one of ours")
	}
	if p := tpm2.TPMHandle(b.Parent); int64(p) != b.Parent || p != tpm2.TPMRHOwner && p != persistentStorageKey {
		return nil, fmt.Errorf("stored key has the parent %#x", b.Parent)
	}
	return b, nil
}

// sized says whether b is a TPM2B.
func sized(b []byte) bool { return len(b) > 2 && len(b) == 2+int(b[0])<<8+int(b[1]) }

func (b *blob) der() ([]byte, error) { return asn1.Marshal(*b) }

func (b *blob) pem() ([]byte, error) {
	der, err := b.der()
	if err != nil {
		return nil, fmt.Errorf("storing key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: der}), nil
}

// create makes a key. Its parent is the owner's primary key, which comes back
// as long as the TPM is not cleared; where the owner has a password (Windows),
// the storage key of the operating system.
func create(tpm transport.TPM, template attest.Template) (*blob, error) {
	for _, handle := range []tpm2.TPMHandle{tpm2.TPMRHOwner, persistentStorageKey} {
		p, err := openParent(tpm, handle)
		if closed(err) || errors.Is(err, tpm2.TPMRCHandle) {
			continue
		}
		if err != nil {
			return nil, err
		}
		rsp, err := tpm2.Create{
			ParentHandle: p.AuthHandle,
			InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](template.Area),
		}.Execute(tpm)
		p.close(tpm)
		if err != nil {
			return nil, err
		}
		return &blob{
			Type: loadableKey, EmptyAuth: true, Parent: int64(handle),
			Public: tpm2.Marshal(rsp.OutPublic), Private: tpm2.Marshal(rsp.OutPrivate),
		}, nil
	}
	return nil, fmt.Errorf("%w: the owner has a password, and there is no storage key", errRefused)
}

// closed says that an operation needs a password that we do not have.
func closed(err error) bool {
	return errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail)
}

// loadBlob loads a key. The error is ErrForeign when it is of another TPM, or
// when its parent is gone.
func loadBlob(tpm transport.TPM, b *blob) (tpm2.TPMHandle, error) {
	p, err := openParent(tpm, tpm2.TPMHandle(b.Parent))
	if errors.Is(err, tpm2.TPMRCHandle) {
		return 0, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	if err != nil {
		return 0, err
	}
	defer p.close(tpm)
	rsp, err := tpm2.Load{
		ParentHandle: p.AuthHandle,
		InPrivate:    tpm2.TPM2BPrivate{Buffer: b.Private[2:]},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](b.area()),
	}.Execute(tpm)
	if errors.Is(err, tpm2.TPMRCIntegrity) {
		return 0, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	if err != nil {
		return 0, err
	}
	return rsp.ObjectHandle, nil
}

// parent is an open parent key.
type parent struct {
	tpm2.AuthHandle
	transient bool
}

func (p *parent) close(tpm transport.TPM) {
	if p.transient {
		flush(tpm, p.Handle)
	}
}

func openParent(tpm transport.TPM, handle tpm2.TPMHandle) (*parent, error) {
	if handle == tpm2.TPMRHOwner {
		return createPrimary(tpm, handle, attest.StorageKey())
	}
	rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(tpm)
	if err != nil {
		return nil, err
	}
	return &parent{AuthHandle: tpm2.AuthHandle{Handle: handle, Name: rsp.Name, Auth: tpm2.PasswordAuth(nil)}}, nil
}

func createPrimary(tpm transport.TPM, hierarchy tpm2.TPMHandle, template attest.Template) (*parent, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.BytesAs2B[tpm2.TPMTPublic](template.Area),
	}.Execute(tpm)
	if err != nil {
		return nil, err
	}
	return &parent{
		AuthHandle: tpm2.AuthHandle{Handle: rsp.ObjectHandle, Name: rsp.Name, Auth: tpm2.PasswordAuth(nil)},
		transient:  true,
	}, nil
}
