package store

import (
	"context"
	"database/sql"
	"fmt"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// SaveProposal keeps an order that waits for a second operator. The error wraps
// fs.ErrNotExist for an asset that the inventory does not have, fs.ErrExist for
// an id that is taken.
func (s *Store) SaveProposal(ctx context.Context, p *fleetv1.Proposal, records ...audit.Record) error {
	body, err := encode(p)
	if err != nil {
		return fmt.Errorf("saving proposal: %w", err)
	}
	return s.change(ctx, "saving proposal for "+p.GetAssetNumber(), records, func(t *tx) error {
		_, err := t.exec(`INSERT INTO proposals (id, asset_number, body) VALUES (?, ?, ?)`, p.GetId(), p.GetAssetNumber(), body)
		return err
	})
}

// EachProposal hands out the orders that wait, in no particular order.
func (s *Store) EachProposal(ctx context.Context, fn func(*fleetv1.Proposal) error) error {
	scan := func(rows *sql.Rows) (*fleetv1.Proposal, error) {
		var body []byte
		if err := rows.Scan(&body); err != nil {
			return nil, err
		}
		return decode(body, &fleetv1.Proposal{})
	}
	err := each(ctx, s, "", (*fleetv1.Proposal).GetId, scan, `SELECT body FROM proposals WHERE id > ? ORDER BY id LIMIT ?`, fn)
	if err != nil {
		return fmt.Errorf("reading proposals: %w", err)
	}
	return nil
}

func removeProposals(t *tx, ids []string) error {
	for _, id := range ids {
		if _, err := t.exec(`DELETE FROM proposals WHERE id = ?`, id); err != nil {
			return err
		}
	}
	return nil
}
