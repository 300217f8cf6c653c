package store

import (
	"context"
	"database/sql"
	"fmt"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// EachBootReference hands out the learned PCR values, the ones learned first in
// front.
func (s *Store) EachBootReference(ctx context.Context, fn func(*fleetv1.BootReference) error) error {
	type numbered struct {
		id        int64
		reference *fleetv1.BootReference
	}
	scan := func(rows *sql.Rows) (n numbered, err error) {
		var body []byte
		if err = rows.Scan(&n.id, &body); err == nil {
			n.reference, err = decode(body, &fleetv1.BootReference{})
		}
		return n, err
	}
	err := each(ctx, s, 0, func(n numbered) int64 { return n.id }, scan,
		`SELECT id, body FROM boot_references WHERE id > ? ORDER BY id LIMIT ?`,
		func(n numbered) error { return fn(n.reference) })
	if err != nil {
		return fmt.Errorf("reading boot references: %w", err)
	}
	return nil
}

// SaveBootReference replaces the one of the same vendor, model, PCR and value.
func (s *Store) SaveBootReference(ctx context.Context, r *fleetv1.BootReference, records ...audit.Record) error {
	body, err := encode(r)
	if err != nil {
		return fmt.Errorf("saving boot reference: %w", err)
	}
	return s.change(ctx, "saving boot reference", records, func(t *tx) error {
		_, err := t.exec(`INSERT INTO boot_references (vendor, model, pcr, sha256, body) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (vendor, model, pcr, sha256) DO UPDATE SET body = excluded.body`,
			r.GetVendor(), r.GetModel(), r.GetPcr(), r.GetSha256(), body)
		return err
	})
}
