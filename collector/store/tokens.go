package store

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"time"

	"pfoertner/collector/audit"
)

// SaveToken keeps an enrolment token for an asset by its hash. The error wraps
// fs.ErrNotExist for an asset that the inventory does not have, and fs.ErrExist
// for a token that is there already.
func (s *Store) SaveToken(ctx context.Context, hash []byte, assetNumber string, expires time.Time, records ...audit.Record) error {
	return s.change(ctx, "saving token for "+assetNumber, records, func(t *tx) error {
		_, err := t.exec(`INSERT INTO tokens (hash, asset_number, expires_at) VALUES (?, ?, ?)`,
			hash, assetNumber, nanos(expires))
		return err
	})
}

// UseToken spends a token, once, and returns the asset that it is for. Of many
// callers with the same token one succeeds. The error wraps fs.ErrNotExist for
// an unknown token, fs.ErrExist for one that was used, os.ErrDeadlineExceeded
// for one that has expired at now, both for one that is both; with these two the
// asset is returned all the same, for the audit record.
func (s *Store) UseToken(ctx context.Context, hash []byte, now time.Time) (assetNumber string, err error) {
	err = s.change(ctx, "using token", nil, func(t *tx) error {
		var expires int64
		var used sql.NullInt64
		err := t.read(`SELECT asset_number, expires_at, used_at FROM tokens WHERE hash = ?`, []any{hash}, &assetNumber, &expires, &used)
		switch {
		case err != nil:
			return err
		case used.Valid && now.UnixNano() >= expires:
			return fmt.Errorf("used already (%w) and expired (%w)", fs.ErrExist, os.ErrDeadlineExceeded)
		case used.Valid:
			return fmt.Errorf("used already: %w", fs.ErrExist)
		case now.UnixNano() >= expires:
			return fmt.Errorf("expired: %w", os.ErrDeadlineExceeded)
		}
		_, err = t.exec(`UPDATE tokens SET used_at = ? WHERE hash = ?`, now.UnixNano(), hash)
		return err
	})
	return assetNumber, err
}
