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

// AddPolicy keeps a policy as the newest version and returns its number; the
// first is 1. p.Version is ignored, p is not changed.
func (s *Store) AddPolicy(ctx context.Context, p *fleetv1.PolicyVersion, yaml []byte, records ...audit.Record) (uint64, error) {
	kept := proto.CloneOf(p)
	kept.Version = 0
	body, err := encode(kept)
	if err != nil {
		return 0, fmt.Errorf("adding policy: %w", err)
	}
	var version uint64
	err = s.change(ctx, "adding policy", records, func(t *tx) error {
		if err := t.read(`SELECT coalesce(max(version), 0) + 1 FROM policies`, nil, &version); err != nil {
			return err
		}
		_, err := t.exec(`INSERT INTO policies (version, body, yaml) VALUES (?, ?, ?)`, version, body, yaml)
		return err
	})
	if err != nil {
		return 0, err
	}
	return version, nil
}

// Policies returns all versions, newest first.
func (s *Store) Policies(ctx context.Context) ([]*fleetv1.PolicyVersion, error) {
	found, err := list(ctx, s, func(rows *sql.Rows) (*fleetv1.PolicyVersion, error) {
		var version uint64
		var body []byte
		if err := rows.Scan(&version, &body); err != nil {
			return nil, err
		}
		return decodePolicy(version, body)
	}, `SELECT version, body FROM policies ORDER BY version DESC`)
	if err != nil {
		return nil, fmt.Errorf("reading policies: %w", err)
	}
	return found, nil
}

// Policy returns a version and its text; version 0 is the newest.
func (s *Store) Policy(ctx context.Context, version uint64) (*fleetv1.PolicyVersion, []byte, error) {
	if version > math.MaxInt64 { // more than SQL can count to
		return nil, nil, fmt.Errorf("reading policy version %d: %w", version, fs.ErrNotExist)
	}
	var body, yaml []byte
	err := s.row(ctx, `SELECT version, body, yaml FROM policies WHERE version = ? OR ? = 0 ORDER BY version DESC LIMIT 1`,
		[]any{version, version}, &version, &body, &yaml)
	if err != nil {
		return nil, nil, fmt.Errorf("reading policy version %d: %w", version, err)
	}
	p, err := decodePolicy(version, body)
	if err != nil {
		return nil, nil, fmt.Errorf("reading policy version %d: %w", version, err)
	}
	return p, yaml, nil
}

func decodePolicy(version uint64, body []byte) (*fleetv1.PolicyVersion, error) {
	p, err := decode(body, &fleetv1.PolicyVersion{})
	p.Version = version
	return p, err
}
