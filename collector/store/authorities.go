package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"pfoertner/collector/audit"
)

// SaveAuthorities keeps certificates that vouch for TPMs, as an operator has
// uploaded them, behind those that are there. When they came is the time of the
// first audit record; without one nothing is saved.
func (s *Store) SaveAuthorities(ctx context.Context, pem []byte, actor string, records ...audit.Record) error {
	if len(records) == 0 {
		return errors.New("saving authorities of TPMs: without an audit record")
	}
	return s.change(ctx, "saving authorities of TPMs", records, func(t *tx) error {
		_, err := t.exec(`INSERT INTO endorsement_authorities (at, actor, pem) VALUES (?, ?, ?)`, nanos(records[0].At), actor, pem)
		return err
	})
}

// EachAuthorities hands out the uploads in their order.
func (s *Store) EachAuthorities(ctx context.Context, fn func(pem []byte, actor string, at time.Time) error) error {
	type upload struct {
		id, at int64
		actor  string
		pem    []byte
	}
	scan := func(rows *sql.Rows) (u upload, err error) {
		err = rows.Scan(&u.id, &u.at, &u.actor, &u.pem)
		return u, err
	}
	err := each(ctx, s, 0, func(u upload) int64 { return u.id }, scan,
		`SELECT id, at, actor, pem FROM endorsement_authorities WHERE id > ? ORDER BY id LIMIT ?`,
		func(u upload) error { return fn(u.pem, u.actor, fromNanos(u.at)) })
	if err != nil {
		return fmt.Errorf("reading authorities of TPMs: %w", err)
	}
	return nil
}
