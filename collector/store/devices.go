package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"pfoertner/collector/attestation"
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
// A device id, VPN certificate or endorsement key that another asset has is an
// error that wraps fs.ErrExist; one that moves within the same call is not. With
// a new device id an asset loses the report, the credential and the TPM of the
// old one.
func (s *Store) SaveDevices(ctx context.Context, devices []*fleetv1.Device, records ...audit.Record) error {
	return s.SaveDecision(ctx, devices, nil, nil, records...)
}

// SaveDecision is SaveDevices when keys or proposals end with it: of the devices
// with the ids dismissed, credential and TPM are forgotten, and tokens that were
// not used have expired; the proposals with the ids settled wait no longer. Ids that are not there are no error.
func (s *Store) SaveDecision(ctx context.Context, devices []*fleetv1.Device, dismissed, settled []string, records ...audit.Record) error {
	stored := make([]storedDevice, 0, len(devices))
	for _, d := range devices {
		one, err := encodeDevice(d)
		if err != nil {
			return fmt.Errorf("saving devices: %w", err)
		}
		stored = append(stored, one)
	}
	return s.change(ctx, "saving devices", records, func(t *tx) error {
		if err := saveDevices(t, stored); err != nil {
			return err
		}
		for _, id := range dismissed {
			if err := dismiss(t, id); err != nil {
				return err
			}
		}
		return removeProposals(t, settled)
	})
}

// SaveEnrolment is SaveDevices for one device that has just got its only key
// from now on (SaveCredential), and what is known of its TPM; nil: the key is
// not in one, and what was known of another is forgotten.
func (s *Store) SaveEnrolment(ctx context.Context, d *fleetv1.Device, spkiSHA256 []byte, serial string, notAfter time.Time, tpm *attestation.Known, records ...audit.Record) error {
	what := "saving enrolment of " + d.GetAsset().GetAssetNumber()
	stored, err := encodeDevice(d)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	var values []any
	if tpm != nil {
		if values, err = encodeTPM(*tpm); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return s.change(ctx, what, records, func(t *tx) error {
		if err := saveDevices(t, []storedDevice{stored}); err != nil {
			return err
		}
		if err := saveCredential(t, d.GetId(), spkiSHA256, serial, notAfter); err != nil {
			return err
		}
		if tpm == nil {
			return removeTPM(t, d.GetId())
		}
		return enrolTPM(t, tpm.DeviceID, values)
	})
}

// storedDevice is a device as it is written.
type storedDevice struct {
	number       string
	id           sql.NullString
	certificates [][]byte
	endorsements [][]byte
	body         []byte
}

func encodeDevice(d *fleetv1.Device) (storedDevice, error) {
	number := d.GetAsset().GetAssetNumber()
	if number == "" {
		return storedDevice{}, errors.New("device without an asset number")
	}
	kept := &fleetv1.Device{
		Id: d.GetId(), Asset: d.GetAsset(), EnrolledAt: d.GetEnrolledAt(), CertificateExpiresAt: d.GetCertificateExpiresAt(),
		Key: d.GetKey(), Pending: d.GetPending(), VpnCertificates: d.GetVpnCertificates(),
	}
	body, err := encode(kept)
	return storedDevice{
		number:       number,
		id:           sql.NullString{String: d.GetId(), Valid: d.GetId() != ""},
		certificates: d.GetAsset().GetVpnCertificatesSha256(),
		endorsements: d.GetAsset().GetEndorsementKeysSha256(),
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
	for _, query := range []string{
		`DELETE FROM vpn_certificates WHERE asset_number = ?`,
		`DELETE FROM endorsement_keys WHERE asset_number = ?`,
	} {
		if _, err := t.exec(query, d.number); err != nil {
			return err
		}
	}
	if !id.Valid || id == d.id {
		return nil
	}
	if err := dismiss(t, id.String); err != nil {
		return err
	}
	for _, query := range []string{
		`DELETE FROM reports WHERE device_id = ?`,
		`UPDATE devices SET device_id = NULL WHERE device_id = ?`,
	} {
		if _, err := t.exec(query, id.String); err != nil {
			return err
		}
	}
	return nil
}

// dismiss forgets by which keys a device is known, and ends the tokens that
// were made for it: nobody knows any more who has them.
func dismiss(t *tx, deviceID string) error {
	if _, err := t.exec(`UPDATE tokens SET expires_at = 0 WHERE used_at IS NULL
			AND asset_number = (SELECT asset_number FROM devices WHERE device_id = ?)`, deviceID); err != nil {
		return err
	}
	if _, err := t.exec(`DELETE FROM credentials WHERE device_id = ?`, deviceID); err != nil {
		return err
	}
	return removeTPM(t, deviceID)
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
	for _, sum := range d.endorsements {
		if _, err := t.exec(`INSERT INTO endorsement_keys (sha256, asset_number) VALUES (?, ?)`, sum, d.number); err != nil {
			return fmt.Errorf("endorsement key %x: %w", sum, err)
		}
	}
	return nil
}
