package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// History returns how a device's results changed, newest first, at most limit.
// Each stands for the time until the next.
func (s *Store) History(ctx context.Context, deviceID string, limit int) ([]*posturev1.Result, error) {
	results, err := list(ctx, s, scanHistory,
		`SELECT result FROM history WHERE device_id = ? ORDER BY id DESC LIMIT ?`, deviceID, limit)
	if err != nil {
		return nil, fmt.Errorf("reading history of %s: %w", deviceID, err)
	}
	return results, nil
}

func scanHistory(rows *sql.Rows) (*posturev1.Result, error) {
	var b []byte
	if err := rows.Scan(&b); err != nil {
		return nil, err
	}
	return decode(b, &posturev1.Result{})
}

// trimBatch bounds how long one commit of Trim holds up the others.
const trimBatch = 500

// Trim deletes history and refusals from before a time and says how many rows
// those were. The newest history row of each device stays: it tells since when
// things are as they are. Of a device that was given another id or is gone,
// nothing stays.
func (s *Store) Trim(ctx context.Context, before time.Time) (int, error) {
	trimmed := 0
	for _, query := range []string{
		`DELETE FROM history WHERE id IN (
			SELECT h.id FROM history h WHERE h.at < ?
				AND h.id < (SELECT max(id) FROM history WHERE device_id = h.device_id)
			ORDER BY h.at LIMIT ?)`,
		`DELETE FROM refusals WHERE (code, subject) IN (
			SELECT code, subject FROM refusals WHERE at < ? ORDER BY at LIMIT ?)`,
	} {
		for {
			var n int64
			err := s.change(ctx, "trimming history", nil, func(t *tx) (err error) {
				n, err = t.exec(query, nanos(before), trimBatch)
				return err
			})
			if err != nil {
				return trimmed, err
			}
			trimmed += int(n)
			if n < trimBatch {
				break
			}
		}
	}
	return trimmed, nil
}
