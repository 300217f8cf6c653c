package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// SaveRefusal keeps what a refusal code stands for when the refused identity is
// not known; SaveReport does it for those that are. A later refusal of the same
// certificate (or device) under the same code takes its place.
func (s *Store) SaveRefusal(ctx context.Context, e *fleetv1.Explanation, code string, records ...audit.Record) error {
	body, err := encode(e)
	if err != nil {
		return fmt.Errorf("saving refusal: %w", err)
	}
	subject := e.GetDevice().GetId()
	if subject == "" {
		subject = hex.EncodeToString(e.GetCertificateSha256())
	}
	at := stampNanos(e.GetRefusedAt())
	return s.change(ctx, "saving refusal", records, func(t *tx) error {
		return t.saveRefusal(code, subject, at, body)
	})
}

func (t *tx) saveRefusal(code, subject string, at int64, body []byte) error {
	_, err := t.exec(`INSERT INTO refusals (code, subject, at, body) VALUES (?, ?, ?, ?)
		ON CONFLICT (code, subject) DO UPDATE SET at = excluded.at, body = excluded.body`, code, subject, at, body)
	return err
}

// Refusals returns what a code stands for, newest first; nothing for a code that
// was never given. The device is filled in with its id only.
func (s *Store) Refusals(ctx context.Context, code string) ([]*fleetv1.Explanation, error) {
	found, err := list(ctx, s, scanRefusal,
		`SELECT body FROM refusals WHERE code = ? ORDER BY at DESC, subject`, code)
	if err != nil {
		return nil, fmt.Errorf("reading refusals: %w", err)
	}
	return found, nil
}

func scanRefusal(rows *sql.Rows) (*fleetv1.Explanation, error) {
	var b []byte
	if err := rows.Scan(&b); err != nil {
		return nil, err
	}
	return decode(b, &fleetv1.Explanation{})
}
