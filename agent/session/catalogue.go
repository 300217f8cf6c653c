package session

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pfoertner/agent/durable"
	"pfoertner/agent/identity"
	"pfoertner/internal/signed"
)

// CatalogueFile lies beside the identity.
const CatalogueFile = "vpn-catalogue.json"

// catalogueFormat rises when an older agent could not read the file any more.
const catalogueFormat = 1

// VPNCatalogue is what knows VPN clients, and can be told of more.
type VPNCatalogue interface {
	// Sequence checks a catalogue's content and returns its sequence.
	Sequence(content []byte) (uint64, error)
	// Extend uses the content from now on; nil: no longer any.
	Extend(content []byte) error
}

// RestoreVPNCatalogue makes use of the catalogue that the collector sent last,
// once more verified by the CAs that state trusts. Without one, or before
// enrolment, it does nothing. After an error nothing is extended.
func RestoreVPNCatalogue(state *identity.State, use VPNCatalogue, now time.Time) error {
	k := newCatalogueKeeper(state, use, slog.New(slog.DiscardHandler))
	id, err := state.Load()
	if errors.Is(err, identity.ErrNotEnrolled) {
		return nil
	}
	if err != nil {
		return err
	}
	return k.restore(id.ServerPool(), now)
}

// catalogueKeeper takes catalogues from the collector, and keeps the newest
// over restarts. The collector is believed only as far as the signature goes:
// it passes on what a reference signer signed, and nothing older than what was
// in force before.
type catalogueKeeper struct {
	use  VPNCatalogue
	path string
	log  *slog.Logger

	mu sync.Mutex
	// held is what the file holds, once loaded.
	held   catalogueRecord
	loaded bool
	// inUse says that held.SignedFile holds up and is in use.
	inUse bool
	// refused is the last file that was refused: it is logged once, although
	// every stream brings it again.
	refused [sha256.Size]byte
}

// catalogueRecord is the file.
type catalogueRecord struct {
	Format int `json:"format"`
	// Highest is the highest sequence that was ever in force here, also after
	// the catalogue was withdrawn, and Content the SHA-256 of its content.
	Highest uint64 `json:"highest"`
	Content []byte `json:"content,omitempty"`
	// SignedFile is the catalogue in force; empty: none is.
	SignedFile []byte `json:"signed_file,omitempty"`
}

func newCatalogueKeeper(state *identity.State, use VPNCatalogue, log *slog.Logger) *catalogueKeeper {
	return &catalogueKeeper{use: use, path: filepath.Join(filepath.Dir(state.Path()), CatalogueFile), log: log}
}

// receive takes what the collector sent; empty means that no catalogue is in
// force. It says whether that changed what is in use. What it cannot believe
// it refuses and logs, and the old one stays.
func (k *catalogueKeeper) receive(file []byte, roots *x509.CertPool, now time.Time) (changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed, err := k.take(file, roots, now)
	sum := sha256.Sum256(file)
	switch {
	case err != nil && sum != k.refused:
		k.refused = sum
		k.log.Warn("the VPN catalogue of the collector is refused", "error", err)
	case changed:
		k.log.Info("the VPN catalogue of the collector is in use", "sequence", k.held.Highest, "withdrawn", len(file) == 0)
	}
	return changed
}

func (k *catalogueKeeper) take(file []byte, roots *x509.CertPool, now time.Time) (changed bool, err error) {
	if err := k.load(); err != nil {
		return false, err
	}
	if bytes.Equal(file, k.held.SignedFile) && (k.inUse || len(file) == 0) {
		return false, nil
	}
	next := catalogueRecord{Format: catalogueFormat, Highest: k.held.Highest, Content: k.held.Content, SignedFile: file}
	var content []byte
	if len(file) > 0 {
		if content, err = k.open(file, roots, now, &next); err != nil {
			return false, err
		}
		if err := k.held.permits(next); err != nil {
			return false, err
		}
	}
	text, err := json.Marshal(next)
	if err != nil {
		return false, fmt.Errorf("storing VPN catalogue: %w", err)
	}
	if err := durable.WriteFile(k.path, text, 0o600); err != nil {
		return false, fmt.Errorf("storing VPN catalogue: %w", err)
	}
	k.held = next
	return true, k.extend(content)
}

// open verifies a file and its content, and notes both in the record.
func (k *catalogueKeeper) open(file []byte, roots *x509.CertPool, now time.Time, r *catalogueRecord) ([]byte, error) {
	content, _, err := signed.Open(signed.VPNCatalogue, file, roots, now)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	r.Content = sum[:]
	r.Highest, err = k.use.Sequence(content)
	return content, err
}

// permits refuses what is older than what was in force. The same content may
// come again, signed anew.
func (r catalogueRecord) permits(next catalogueRecord) error {
	switch {
	case next.Highest < r.Highest:
		return fmt.Errorf("VPN catalogue: sequence %d is older than %d, which was in force", next.Highest, r.Highest)
	case next.Highest == r.Highest && !bytes.Equal(next.Content, r.Content):
		return fmt.Errorf("VPN catalogue: sequence %d was used for another content", next.Highest)
	}
	return nil
}

func (k *catalogueKeeper) extend(content []byte) error {
	err := k.use.Extend(content)
	k.inUse = err == nil && content != nil
	return err
}

// restore uses what the file holds, if it still holds up.
func (k *catalogueKeeper) restore(roots *x509.CertPool, now time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(); err != nil {
		return err
	}
	if len(k.held.SignedFile) == 0 {
		return nil
	}
	var found catalogueRecord
	content, err := k.open(k.held.SignedFile, roots, now, &found)
	if err == nil && (found.Highest != k.held.Highest || !bytes.Equal(found.Content, k.held.Content)) {
		err = errors.New("it is not the one that was in force")
	}
	if err != nil {
		return fmt.Errorf("kept VPN catalogue: %w", err)
	}
	return k.extend(content)
}

// load reads the file once. One that is broken counts as none: files are
// written whole, and whoever could break it could as well have removed it.
func (k *catalogueKeeper) load() error {
	if k.loaded {
		return nil
	}
	content, err := readSmall(k.path, 2*signed.MaxFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading kept VPN catalogue: %w", err)
	}
	if err == nil {
		if k.held, err = parseCatalogueRecord(content); err != nil {
			k.log.Warn("the kept VPN catalogue is broken and not used", "error", err)
		}
	}
	k.loaded = true
	return nil
}

// readSmall reads a file up to most bytes; what is longer is cut off there.
func readSmall(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

func parseCatalogueRecord(content []byte) (catalogueRecord, error) {
	var r catalogueRecord
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil {
		return catalogueRecord{}, err
	}
	if r.Format != catalogueFormat {
		return catalogueRecord{}, fmt.Errorf("format %d, this agent knows %d", r.Format, catalogueFormat)
	}
	return r, nil
}
