package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"fmt"
	"slices"

	"pfoertner/collector/attestation"
	"pfoertner/collector/audit"
	"pfoertner/internal/attest"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// EachTPM hands out what is known of the devices' TPMs, ordered by device id.
func (s *Store) EachTPM(ctx context.Context, fn func(attestation.Known) error) error {
	err := each(ctx, s, "", func(k attestation.Known) string { return k.DeviceID }, scanTPM,
		`SELECT device_id, endorsement_key, attestation_key, since, clock, previous_key, previous_clock, virtual, attestation, boot_loaders, failure
			FROM tpms WHERE device_id > ? ORDER BY device_id LIMIT ?`, fn)
	if err != nil {
		return fmt.Errorf("reading TPMs: %w", err)
	}
	return nil
}

// SaveTPM replaces what is known of a device's TPM. The error wraps
// fs.ErrNotExist for a device that the inventory does not have.
func (s *Store) SaveTPM(ctx context.Context, k attestation.Known, records ...audit.Record) error {
	save, err := encodeTPM(k)
	if err != nil {
		return fmt.Errorf("saving TPM of %s: %w", k.DeviceID, err)
	}
	return s.change(ctx, "saving TPM of "+k.DeviceID, records, save)
}

// RemoveTPM forgets the TPM of a device; one that is not known is no error.
func (s *Store) RemoveTPM(ctx context.Context, deviceID string) error {
	return s.change(ctx, "removing TPM of "+deviceID, nil, func(t *tx) error { return removeTPM(t, deviceID) })
}

func removeTPM(t *tx, deviceID string) error {
	_, err := t.exec(`DELETE FROM tpms WHERE device_id = ?`, deviceID)
	return err
}

// encodeTPM returns what saves a TPM in a transaction.
func encodeTPM(k attestation.Known) (func(*tx) error, error) {
	var stated, previousClock []byte
	if k.Attestation != nil {
		var err error
		if stated, err = encode(k.Attestation); err != nil {
			return nil, err
		}
	}
	previous := k.PreviousAttestationKey
	if len(previous) == 0 {
		previous = nil
	} else {
		previousClock = encodeClock(k.PreviousClock)
	}
	loaders := []byte{}
	for _, digest := range k.BootLoaders {
		if len(digest) != sha256.Size {
			return nil, fmt.Errorf("digest of a boot loader has %d bytes, want %d", len(digest), sha256.Size)
		}
		loaders = append(loaders, digest...)
	}
	return func(t *tx) error {
		_, err := t.exec(`INSERT INTO tpms (device_id, endorsement_key, attestation_key, since, clock,
				previous_key, previous_clock, virtual, attestation, boot_loaders, failure) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (device_id) DO UPDATE SET
				endorsement_key = excluded.endorsement_key, attestation_key = excluded.attestation_key, since = excluded.since,
				clock = excluded.clock, previous_key = excluded.previous_key, previous_clock = excluded.previous_clock,
				virtual = excluded.virtual, attestation = excluded.attestation, boot_loaders = excluded.boot_loaders, failure = excluded.failure`,
			k.DeviceID, k.EndorsementKey, k.AttestationKey, nanos(k.Since), encodeClock(k.Clock),
			previous, previousClock, k.Virtual, stated, loaders, k.Failure)
		return err
	}, nil
}

func scanTPM(rows *sql.Rows) (k attestation.Known, err error) {
	var since int64
	var clock, previousClock, stated, loaders []byte
	err = rows.Scan(&k.DeviceID, &k.EndorsementKey, &k.AttestationKey, &since, &clock,
		&k.PreviousAttestationKey, &previousClock, &k.Virtual, &stated, &loaders, &k.Failure)
	if err != nil {
		return k, err
	}
	k.Since = fromNanos(since)
	for digest := range slices.Chunk(loaders, sha256.Size) {
		k.BootLoaders = append(k.BootLoaders, digest)
	}
	if k.Clock, err = decodeClock(clock); err != nil {
		return k, fmt.Errorf("%s: %w", k.DeviceID, err)
	}
	if len(k.PreviousAttestationKey) > 0 {
		if k.PreviousClock, err = decodeClock(previousClock); err != nil {
			return k, fmt.Errorf("%s: %w", k.DeviceID, err)
		}
	}
	if stated != nil {
		k.Attestation, err = decode(stated, &posturev1.Attestation{})
	}
	return k, err
}

// A clock is stored in big endian: milliseconds, reset and restart count, safe,
// firmware. Its numbers use all 64 bits, which SQL's do not have.
const clockBytes = 8 + 4 + 4 + 1 + 8

func encodeClock(c attest.Clock) []byte {
	b := make([]byte, 0, clockBytes)
	b = binary.BigEndian.AppendUint64(b, c.Milliseconds)
	b = binary.BigEndian.AppendUint32(b, c.ResetCount)
	b = binary.BigEndian.AppendUint32(b, c.RestartCount)
	safe := byte(0)
	if c.Safe {
		safe = 1
	}
	return binary.BigEndian.AppendUint64(append(b, safe), c.Firmware)
}

func decodeClock(b []byte) (attest.Clock, error) {
	if len(b) != clockBytes {
		return attest.Clock{}, fmt.Errorf("stored clock has %d bytes, want %d", len(b), clockBytes)
	}
	return attest.Clock{
		Milliseconds: binary.BigEndian.Uint64(b),
		ResetCount:   binary.BigEndian.Uint32(b[8:]),
		RestartCount: binary.BigEndian.Uint32(b[12:]),
		Safe:         b[16] == 1,
		Firmware:     binary.BigEndian.Uint64(b[17:]),
	}, nil
}
