package store

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"time"

	"pfoertner/collector/audit"
)

// SaveCredential keeps the only key that a device may use from now on, by the
// SHA-256 of its SubjectPublicKeyInfo, and the certificate issued for it last.
// The error wraps fs.ErrNotExist for a device that the inventory does not have.
func (s *Store) SaveCredential(ctx context.Context, deviceID string, spkiSHA256 []byte, serial string, notAfter time.Time, records ...audit.Record) error {
	return s.change(ctx, "saving credential of "+deviceID, records, func(t *tx) error {
		return saveCredential(t, deviceID, spkiSHA256, serial, notAfter)
	})
}

func saveCredential(t *tx, deviceID string, spkiSHA256 []byte, serial string, notAfter time.Time) error {
	_, err := t.exec(`INSERT INTO credentials (device_id, spki_sha256, serial, not_after) VALUES (?, ?, ?, ?)
		ON CONFLICT (device_id) DO UPDATE SET
			spki_sha256 = excluded.spki_sha256, serial = excluded.serial, not_after = excluded.not_after,
			previous_spki_sha256 = NULL, previous_serial = NULL, previous_not_after = NULL`,
		deviceID, spkiSHA256, serial, nanos(notAfter))
	return err
}

// RenewCredential is SaveCredential when the key from asks for it. From stays
// the device's previous key until SettleCredential. The error wraps
// fs.ErrNotExist if from is neither the current nor the previous key.
func (s *Store) RenewCredential(ctx context.Context, deviceID string, from, spkiSHA256 []byte, serial string, notAfter time.Time, records ...audit.Record) error {
	return s.change(ctx, "renewing credential of "+deviceID, records, func(t *tx) error {
		_, err := t.exec(`UPDATE credentials SET
				previous_spki_sha256 = spki_sha256, previous_serial = serial, previous_not_after = not_after
			WHERE device_id = ? AND spki_sha256 = ?`, deviceID, from)
		if err != nil {
			return err
		}
		n, err := t.exec(`UPDATE credentials SET spki_sha256 = ?, serial = ?, not_after = ?
			WHERE device_id = ? AND previous_spki_sha256 = ?`, spkiSHA256, serial, nanos(notAfter), deviceID, from)
		if err == nil && n == 0 {
			err = fmt.Errorf("by a key that it does not have: %w", fs.ErrNotExist)
		}
		return err
	})
}

// SettleCredential ends the previous key of a device for good, if the key given
// is its current one; otherwise it does nothing.
func (s *Store) SettleCredential(ctx context.Context, deviceID string, spkiSHA256 []byte) error {
	return s.change(ctx, "settling credential of "+deviceID, nil, func(t *tx) error {
		_, err := t.exec(`UPDATE credentials SET previous_spki_sha256 = NULL, previous_serial = NULL, previous_not_after = NULL
			WHERE device_id = ? AND spki_sha256 = ?`, deviceID, spkiSHA256)
		return err
	})
}

// Credential returns the current key of a device, and its certificate.
func (s *Store) Credential(ctx context.Context, deviceID string) (spkiSHA256 []byte, serial string, notAfter time.Time, err error) {
	c := credential{}
	err = s.row(ctx, `SELECT spki_sha256, serial, not_after FROM credentials WHERE device_id = ?`, []any{deviceID},
		&c.spki, &c.serial, &c.notAfter)
	if err != nil {
		return nil, "", time.Time{}, fmt.Errorf("reading credential of %s: %w", deviceID, err)
	}
	return c.spki, c.serial, fromNanos(c.notAfter), nil
}

// EachCredential hands out the current keys of all devices, ordered by device
// id.
func (s *Store) EachCredential(ctx context.Context, fn func(deviceID string, spkiSHA256 []byte, serial string, notAfter time.Time) error) error {
	return s.eachCredential(ctx, `SELECT device_id, spki_sha256, serial, not_after FROM credentials
		WHERE device_id > ? ORDER BY device_id LIMIT ?`, fn)
}

// EachPreviousCredential is EachCredential for the previous keys that have not
// been settled yet.
func (s *Store) EachPreviousCredential(ctx context.Context, fn func(deviceID string, spkiSHA256 []byte, serial string, notAfter time.Time) error) error {
	return s.eachCredential(ctx, `SELECT device_id, previous_spki_sha256, previous_serial, previous_not_after FROM credentials
		WHERE device_id > ? AND previous_spki_sha256 IS NOT NULL ORDER BY device_id LIMIT ?`, fn)
}

func (s *Store) eachCredential(ctx context.Context, query string, fn func(deviceID string, spkiSHA256 []byte, serial string, notAfter time.Time) error) error {
	err := each(ctx, s, "", func(c credential) string { return c.deviceID }, scanCredential, query,
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
