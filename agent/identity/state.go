package identity

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"pfoertner/agent/durable"
	"pfoertner/internal/mtls"
)

const (
	fileName = "identity.json"
	// format rises when an older agent could not read the file any more.
	format = 1
	// maxFileBytes is far above a key and a few certificates.
	maxFileBytes = 256 << 10
)

// ErrBroken is the error for an identity file that cannot be read as one. A
// person has to decide: restore it, or remove it and enrol with a new token.
var ErrBroken = errors.New("identity file is broken")

// ErrOtherKind is the error for an identity whose key is protected otherwise
// than this agent is set to. It stays as it is: neither a setting nor the
// loss of one lowers the protection.
var ErrOtherKind = errors.New("the stored key has another protection than device_key says")

// State is the directory of the identity file.
type State struct {
	path string
	keys Keys
	// machine is what Save remembers of this machine; nil: nothing.
	machine *binding
}

// Open opens the state directory, making it with mode 0700 when it is not
// there. It returns an error for one that others may enter.
func Open(dir string, keys Keys) (*State, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making state directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("opening state directory: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("state directory %s is not a directory", dir)
	}
	if err := private(dir, info); err != nil {
		return nil, err
	}
	return &State{path: filepath.Join(dir, fileName), keys: keys}, nil
}

// private refuses what other users could read. On Windows the installer's
// access list on the directory does that; mode bits say nothing there.
func private(name string, info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return fmt.Errorf("%s is open to other users (mode %04o): it holds the device key; close it with chmod go= %s", name, mode, name)
	}
	return nil
}

// Close gives the TPM back. The state can be used again after it.
func (s *State) Close() error {
	if s.Chip() == nil {
		return nil
	}
	return s.Chip().Close()
}

// Path is the identity file.
func (s *State) Path() string { return s.path }

// Load reads the identity, and sees that its keys belong to this machine's TPM.
// It returns ErrNotEnrolled when there is no file; ErrBroken, with what is
// wrong, when there is one that is not whole; ErrOtherKind; and for keys in a
// TPM an error that wraps chip.ErrUnavailable when it does not answer, or
// chip.ErrForeign and ErrNotEnrolled when the keys are not of this one. An
// identity without a certificate is one that waits for approval.
func (s *State) Load() (*Identity, error) {
	id, err := s.read()
	if err != nil {
		return nil, err
	}
	if err := id.resident(); err != nil {
		return nil, fmt.Errorf("identity in %s: %w", s.path, err)
	}
	return id, nil
}

// read is Load without asking the TPM.
func (s *State) read() (*Identity, error) {
	f, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotEnrolled
	}
	if err != nil {
		return nil, fmt.Errorf("opening identity: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening identity: %w", err)
	}
	if err := private(s.path, info); err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading identity: %w", err)
	}
	id, err := parse(content, s.keys)
	switch {
	case errors.Is(err, ErrOtherKind):
		return nil, fmt.Errorf("%s: %w", s.path, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %s: %w; restore it, or remove it and enrol with a new token", ErrBroken, s.path, err)
	}
	return id, nil
}

// Save replaces the identity. When it returns nil, the new one survives a loss
// of power; when it does not, the old one is still there.
func (s *State) Save(id *Identity) error { return s.store(id, durable.WriteFile) }

// writing is durable.WriteFile or durable.Create.
type writing func(name string, content []byte, mode fs.FileMode) error

// store is Save by another way of writing.
func (s *State) store(id *Identity, write writing) error {
	stored, err := s.keys.Store(id.Key)
	if err != nil {
		return fmt.Errorf("storing key: %w", err)
	}
	r := record{
		Format: format, KeyKind: s.keys.Kind(), Key: stored,
		Chain: raw(id.Chain), Servers: raw(id.Servers),
		AssetNumber: id.AssetNumber, RenewAfter: id.RenewAfter,
		KeySince: id.keySince, AttestationKeySince: id.akSince,
	}
	if id.ak != nil {
		if r.AttestationKey, err = id.ak.Stored(); err != nil {
			return fmt.Errorf("storing attestation key: %w", err)
		}
	}
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("storing identity: %w", err)
	}
	// What could not be read back is never written.
	if _, err := parse(content, s.keys); err != nil {
		return fmt.Errorf("storing identity: %w", err)
	}
	// First the machine: no identity is ever there without it.
	if err := s.saveBinding(); err != nil {
		return err
	}
	if err := write(s.path, content, 0o600); err != nil {
		return fmt.Errorf("storing identity: %w", err)
	}
	return nil
}

// record is the identity file. Certificates are DER, leaf first.
type record struct {
	Format      int       `json:"format"`
	KeyKind     string    `json:"key_kind"`
	Key         []byte    `json:"key"`
	Chain       [][]byte  `json:"chain"`
	Servers     [][]byte  `json:"servers"`
	AssetNumber string    `json:"asset_number"`
	RenewAfter  time.Time `json:"renew_after"`

	// Of a key in the TPM only: then both keys are blobs.
	KeySince            time.Time `json:"key_since,omitzero"`
	AttestationKey      []byte    `json:"attestation_key,omitempty"`
	AttestationKeySince time.Time `json:"attestation_key_since,omitzero"`
}

func raw(certs []*x509.Certificate) [][]byte {
	var list [][]byte
	for _, c := range certs {
		list = append(list, c.Raw)
	}
	return list
}

// parse reads an identity file and checks that its parts belong together.
func parse(content []byte, keys Keys) (*Identity, error) {
	if len(content) > maxFileBytes {
		return nil, fmt.Errorf("larger than %d bytes", maxFileBytes)
	}
	var r record
	dec := json.NewDecoder(bytes.NewReader(content))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("something follows the end")
	}
	if r.Format != format {
		return nil, fmt.Errorf("format %d, this agent knows %d", r.Format, format)
	}
	if err := sameKind(r.KeyKind, keys.Kind()); err != nil {
		return nil, err
	}
	id, err := keysOf(r, keys)
	if err != nil {
		return nil, err
	}
	if id.Servers, err = certificates(r.Servers); err != nil {
		return nil, fmt.Errorf("servers: %w", err)
	}
	if id.Chain, err = certificates(r.Chain); err != nil {
		return nil, fmt.Errorf("chain: %w", err)
	}
	if !id.Enrolled() {
		return id, nil
	}
	if id.DeviceID, err = deviceOf(id.Chain[0], id.Key); err != nil {
		return nil, err
	}
	if len(id.Servers) == 0 {
		return nil, errors.New("certificate without a collector's CA to trust")
	}
	return id, nil
}

// sameKind refuses keys of another kind than this agent is set to.
func sameKind(stored, set string) error {
	switch {
	case stored == set:
		return nil
	case stored == KindSoftware && set == KindTPM:
		return fmt.Errorf("%w: it is a software key, and device_key is tpm. Enrol anew with a new token "+
			"(pfoertner-agent enrol --again), or set device_key to software", ErrOtherKind)
	case stored == KindTPM && set == KindSoftware:
		return fmt.Errorf("%w: it is in the TPM, and device_key is software. Set device_key to tpm; where the inventory "+
			"permits a software key, purge this notebook and enrol it with a new token", ErrOtherKind)
	}
	return fmt.Errorf("key of kind %q, this agent is set to %q", stored, set)
}

// keysOf reads the keys of a record.
func keysOf(r record, keys Keys) (*Identity, error) {
	key, err := keys.Open(r.Key)
	if err != nil {
		return nil, err
	}
	id := &Identity{Key: key, AssetNumber: r.AssetNumber, RenewAfter: r.RenewAfter}
	t, ok := keys.(TPM)
	if !ok {
		if len(r.AttestationKey) > 0 {
			return nil, errors.New("attestation key beside a software key")
		}
		return id, nil
	}
	id.chip, id.keySince, id.akSince = t.Chip, r.KeySince, r.AttestationKeySince
	id.ak, err = t.attestation(r.AttestationKey)
	return id, err
}

func certificates(list [][]byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, der := range list {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// deviceOf returns the device that a certificate names, if it is one for key.
func deviceOf(leaf *x509.Certificate, key crypto.Signer) (string, error) {
	role, name, err := mtls.Identity(leaf)
	if err != nil {
		return "", err
	}
	if role != mtls.RoleDevice {
		return "", fmt.Errorf("certificate of role %q, not of a device", role)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(leaf.PublicKey) {
		return "", errors.New("certificate and key do not belong together")
	}
	return name, nil
}
