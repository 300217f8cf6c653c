package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// EachDevice hands out the inventory, ordered by asset number, without evidence
// and results.
func (s *Store) EachDevice(ctx context.Context, fn func(*fleetv1.Device) error) error {
	number := func(d *fleetv1.Device) string { return d.GetAsset().GetAssetNumber() }
	err := each(ctx, s, "", number, scanDevice,
		`SELECT body FROM devices WHERE asset_number > ? ORDER BY asset_number LIMIT ?`, fn)
	if err != nil {
		return fmt.Errorf("reading devices: %w", err)
	}
	return nil
}

func scanDevice(rows *sql.Rows) (*fleetv1.Device, error) {
	var b []byte
	if err := rows.Scan(&b); err != nil {
		return nil, err
	}
	return decode(b, &fleetv1.Device{})
}

// SaveDevices adds devices to the inventory or changes them, by asset number,
// all or none. Evidence, result and what is only true now (online) are not kept.
// A device id or VPN certificate that another asset has is an error that wraps
// fs.ErrExist; one that moves within the same call is not. With a new device id
// an asset loses the report and the credential of the old one.
func (s *Store) SaveDevices(ctx context.Context, devices []*fleetv1.Device, records ...audit.Record) error {
	stored := make([]storedDevice, 0, len(devices))
	for _, d := range devices {
		one, err := encodeDevice(d)
		if err != nil {
			return fmt.Errorf("saving devices: %w", err)
		}
		stored = append(stored, one)
	}
	return s.change(ctx, "saving devices", records, func(t *tx) error { return saveDevices(t, stored) })
}

// storedDevice is a device as it is written.
type storedDevice struct {
	number       string
	id           sql.NullString
	certificates [][]byte
	body         []byte
}

func encodeDevice(d *fleetv1.Device) (storedDevice, error) {
	number := d.GetAsset().GetAssetNumber()
	if number == "" {
		return storedDevice{}, errors.New("device without an asset number")
	}
	kept := &fleetv1.Device{
		Id: d.GetId(), Asset: d.GetAsset(), EnrolledAt: d.GetEnrolledAt(), CertificateExpiresAt: d.GetCertificateExpiresAt(),
	}
	body, err := encode(kept)
	return storedDevice{
		number:       number,
		id:           sql.NullString{String: d.GetId(), Valid: d.GetId() != ""},
		certificates: d.GetAsset().GetVpnCertificatesSha256(),
		body:         body,
	}, err
}

// saveDevices first frees all that the devices give up, so that it may go from
// one to another.
func saveDevices(t *tx, devices []storedDevice) error {
	for _, d := range devices {
		if err := d.release(t); err != nil {
			return fmt.Errorf("%s: %w", d.number, err)
		}
	}
	for _, d := range devices {
		if err := d.save(t); err != nil {
			return fmt.Errorf("%s: %w", d.number, err)
		}
	}
	return nil
}

func (d storedDevice) release(t *tx) error {
	var id sql.NullString
	err := t.read(`SELECT device_id FROM devices WHERE asset_number = ?`, []any{d.number}, &id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := t.exec(`DELETE FROM vpn_certificates WHERE asset_number = ?`, d.number); err != nil {
		return err
	}
	if !id.Valid || id == d.id {
		return nil
	}
	for _, query := range []string{
		`DELETE FROM reports WHERE device_id = ?`,
		`DELETE FROM credentials WHERE device_id = ?`,
		`UPDATE devices SET device_id = NULL WHERE device_id = ?`,
	} {
		if _, err := t.exec(query, id.String); err != nil {
			return err
		}
	}
	return nil
}

func (d storedDevice) save(t *tx) error {
	_, err := t.exec(`INSERT INTO devices (asset_number, device_id, body) VALUES (?, ?, ?)
		ON CONFLICT (asset_number) DO UPDATE SET device_id = excluded.device_id, body = excluded.body`,
		d.number, d.id, d.body)
	if err != nil {
		return fmt.Errorf("device id %q: %w", d.id.String, err)
	}
	for _, sum := range d.certificates {
		if _, err := t.exec(`INSERT INTO vpn_certificates (sha256, asset_number) VALUES (?, ?)`, sum, d.number); err != nil {
			return fmt.Errorf("VPN certificate %x: %w", sum, err)
		}
	}
	return nil
}
