package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

const auditColumns = `sequence, at, kind, actor, device_id, asset_number, details, previous, hash`

// AppendAudit adds records to the audit log, all or none.
func (s *Store) AppendAudit(ctx context.Context, records ...audit.Record) error {
	return s.change(ctx, "appending to the audit log", records, nil)
}

// EachAudit hands out the audit log in its order, from a sequence on; 0 and 1
// are the beginning. It does not verify: see audit.Verifier.
func (s *Store) EachAudit(ctx context.Context, from uint64, fn func(audit.Sealed) error) error {
	err := each(ctx, s, max(from, 1)-1, func(r audit.Sealed) uint64 { return r.Sequence }, scanSealed,
		`SELECT `+auditColumns+` FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?`, fn)
	if err != nil {
		return fmt.Errorf("reading the audit log: %w", err)
	}
	return nil
}

// AuditHead returns the newest record. Sequence and Hash come from where the
// store keeps them apart from the records; when the record itself is gone or
// there never was one (sequence 0, hash of audit.Genesis), they are all that is
// filled in.
func (s *Store) AuditHead(ctx context.Context) (audit.Sealed, error) {
	head, err := readHead(func(query string, dest ...any) error { return s.row(ctx, query, nil, dest...) })
	if err != nil {
		return audit.Sealed{}, fmt.Errorf("reading the audit head: %w", err)
	}
	newest, err := list(ctx, s, scanSealed, `SELECT `+auditColumns+` FROM audit WHERE sequence = ?`, head.Sequence)
	if err != nil {
		return audit.Sealed{}, fmt.Errorf("reading the audit head: %w", err)
	}
	sealed := audit.Sealed{}
	if len(newest) > 0 {
		sealed = newest[0]
	}
	sealed.Sequence, sealed.Hash = head.Sequence, head.Hash
	return sealed, nil
}

// Events returns audit records that concern a device, named by its id or its
// asset number, or all when it is empty; newest first, not older than since, at
// most limit.
func (s *Store) Events(ctx context.Context, device string, since time.Time, limit int) ([]*fleetv1.Event, error) {
	query, args := `SELECT `+auditColumns+` FROM audit WHERE at >= ? ORDER BY sequence DESC LIMIT ?`,
		[]any{nanos(since), limit}
	if device != "" {
		query, args = `SELECT `+auditColumns+` FROM audit
			WHERE at >= ? AND (device_id = ? OR asset_number = ?
				OR device_id = (SELECT device_id FROM devices WHERE asset_number = ?)
				OR asset_number = (SELECT asset_number FROM devices WHERE device_id = ?))
			ORDER BY sequence DESC LIMIT ?`,
			[]any{nanos(since), device, device, device, device, limit}
	}
	events, err := list(ctx, s, scanEvent, query, args...)
	if err != nil {
		return nil, fmt.Errorf("reading events: %w", err)
	}
	return events, nil
}

// appendAudit seals records behind the head, in the transaction of what they
// record.
func (t *tx) appendAudit(records []audit.Record) error {
	if len(records) == 0 {
		return nil
	}
	if t.head == nil {
		head, err := readHead(func(query string, dest ...any) error { return t.read(query, nil, dest...) })
		if err != nil {
			return fmt.Errorf("reading the audit head: %w", err)
		}
		t.head = &head
	}
	for _, r := range records {
		sealed := t.head.Seal(r)
		details, err := json.Marshal(sealed.Details)
		if err != nil {
			return fmt.Errorf("encoding audit details: %w", err)
		}
		_, err = t.exec(`INSERT INTO audit (`+auditColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			sealed.Sequence, nanos(sealed.At), sealed.Kind, sealed.Actor, sealed.DeviceID, sealed.AssetNumber,
			string(details), sealed.Previous, sealed.Hash)
		if err != nil {
			return fmt.Errorf("appending to the audit log: %w", err)
		}
		*t.head = sealed.Head()
	}
	_, err := t.exec(`INSERT INTO audit_head (id, sequence, hash) VALUES (1, ?, ?)
		ON CONFLICT (id) DO UPDATE SET sequence = excluded.sequence, hash = excluded.hash`,
		t.head.Sequence, t.head.Hash)
	if err != nil {
		return fmt.Errorf("moving the audit head: %w", err)
	}
	return nil
}

func readHead(row func(query string, dest ...any) error) (audit.Head, error) {
	head := audit.Head{}
	err := row(`SELECT sequence, hash FROM audit_head WHERE id = 1`, &head.Sequence, &head.Hash)
	if errors.Is(err, fs.ErrNotExist) {
		return audit.Genesis(), nil
	}
	return head, err
}

func scanSealed(rows *sql.Rows) (audit.Sealed, error) {
	var r audit.Sealed
	var at int64
	var details []byte
	err := rows.Scan(&r.Sequence, &at, &r.Kind, &r.Actor, &r.DeviceID, &r.AssetNumber, &details, &r.Previous, &r.Hash)
	if err != nil {
		return r, err
	}
	r.At = fromNanos(at)
	// Details that cannot be read are a changed record: its hash will say so.
	if json.Unmarshal(details, &r.Details) != nil {
		r.Details = nil
	}
	return r, nil
}

func scanEvent(rows *sql.Rows) (*fleetv1.Event, error) {
	r, err := scanSealed(rows)
	return &fleetv1.Event{
		Sequence: r.Sequence, At: timestamppb.New(r.At), Kind: r.Kind, Actor: r.Actor,
		DeviceId: r.DeviceID, AssetNumber: r.AssetNumber, Details: r.Details,
	}, err
}
