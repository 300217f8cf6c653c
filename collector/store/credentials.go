package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"pfoertner/collector/audit"
)

// SaveCredential keeps the key that a device may use from now on, by the SHA-256
// of its SubjectPublicKeyInfo, and the certificate issued for it last. The error
// wraps fs.ErrNotExist for a device that the inventory does not have.
func (s *Store) SaveCredential(ctx context.Context, deviceID string, spkiSHA256 []byte, serial string, notAfter time.Time, records ...audit.Record) error {
	return s.change(ctx, "saving credential of "+deviceID, records, func(t *tx) error {
		_, err := t.exec(`INSERT INTO credentials (device_id, spki_sha256, serial, not_after) VALUES (?, ?, ?, ?)
			ON CONFLICT (device_id) DO UPDATE SET
				spki_sha256 = excluded.spki_sha256, serial = excluded.serial, not_after = excluded.not_after`,
			deviceID, spkiSHA256, serial, nanos(notAfter))
		return err
	})
}

// Credential returns what SaveCredential kept last for a device.
func (s *Store) Credential(ctx context.Context, deviceID string) (spkiSHA256 []byte, serial string, notAfter time.Time, err error) {
	c := credential{}
	err = s.row(ctx, `SELECT spki_sha256, serial, not_after FROM credentials WHERE device_id = ?`, []any{deviceID},
		&c.spki, &c.serial, &c.notAfter)
	if err != nil {
		return nil, "", time.Time{}, fmt.Errorf("reading credential of %s: %w", deviceID, err)
	}
	return c.spki, c.serial, fromNanos(c.notAfter), nil
}

// EachCredential hands out the credentials of all devices, ordered by device id.
func (s *Store) EachCredential(ctx context.Context, fn func(deviceID string, spkiSHA256 []byte, serial string, notAfter time.Time) error) error {
	err := each(ctx, s, "", func(c credential) string { return c.deviceID }, scanCredential,
		`SELECT device_id, spki_sha256, serial, not_after FROM credentials WHERE device_id > ? ORDER BY device_id LIMIT ?`,
		func(c credential) error { return fn(c.deviceID, c.spki, c.serial, fromNanos(c.notAfter)) })
	if err != nil {
		return fmt.Errorf("reading credentials: %w", err)
	}
	return nil
}

type credential struct {
	deviceID string
	spki     []byte
	serial   string
	notAfter int64
}

func scanCredential(rows *sql.Rows) (c credential, err error) {
	err = rows.Scan(&c.deviceID, &c.spki, &c.serial, &c.notAfter)
	return c, err
}
