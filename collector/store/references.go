package store

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"math"

	"google.golang.org/protobuf/proto"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// AddReferences keeps a signed file as the newest of its kind and returns its
// version, which counts up over all kinds; the first is 1. v.Version is
// ignored, v is not changed.
func (s *Store) AddReferences(ctx context.Context, v *fleetv1.ReferenceVersion, file []byte, records ...audit.Record) (uint64, error) {
	kept := proto.CloneOf(v)
	kept.Version = 0
	body, err := encode(kept)
	if err != nil {
		return 0, fmt.Errorf("adding %s: %w", v.GetKind(), err)
	}
	var version uint64
	err = s.change(ctx, "adding "+v.GetKind(), records, func(t *tx) error {
		if err := t.read(`SELECT coalesce(max(version), 0) + 1 FROM reference_files`, nil, &version); err != nil {
			return err
		}
		_, err := t.exec(`INSERT INTO reference_files (version, kind, body, file) VALUES (?, ?, ?, ?)`, version, v.GetKind(), body, file)
		return err
	})
	if err != nil {
		return 0, err
	}
	return version, nil
}

// References returns a file of a kind; version 0 is the newest.
func (s *Store) References(ctx context.Context, kind string, version uint64) (*fleetv1.ReferenceVersion, []byte, error) {
	what := fmt.Sprintf("reading %s version %d", kind, version)
	if version > math.MaxInt64 { // more than SQL can count to
		return nil, nil, fmt.Errorf("%s: %w", what, fs.ErrNotExist)
	}
	var body, file []byte
	err := s.row(ctx, `SELECT version, body, file FROM reference_files WHERE kind = ? AND (version = ? OR ? = 0) ORDER BY version DESC LIMIT 1`,
		[]any{kind, version, version}, &version, &body, &file)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	v, err := decodeReferences(version, body)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	return v, file, nil
}

// ReferenceVersions returns all versions of all kinds, newest first.
func (s *Store) ReferenceVersions(ctx context.Context) ([]*fleetv1.ReferenceVersion, error) {
	found, err := list(ctx, s, func(rows *sql.Rows) (*fleetv1.ReferenceVersion, error) {
		var version uint64
		var body []byte
		if err := rows.Scan(&version, &body); err != nil {
			return nil, err
		}
		return decodeReferences(version, body)
	}, `SELECT version, body FROM reference_files ORDER BY version DESC`)
	if err != nil {
		return nil, fmt.Errorf("reading versions of references: %w", err)
	}
	return found, nil
}

func decodeReferences(version uint64, body []byte) (*fleetv1.ReferenceVersion, error) {
	v, err := decode(body, &fleetv1.ReferenceVersion{})
	v.Version = version
	return v, err
}
