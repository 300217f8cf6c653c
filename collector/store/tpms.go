package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"fmt"
	"io/fs"
	"slices"

	"pfoertner/collector/attestation"
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

// SaveTPM replaces what is known of a device's TPM as long as its attestation
// key is was. The error wraps fs.ErrNotExist when it has another, or none: then
// the device was enrolled anew or dismissed meanwhile.
func (s *Store) SaveTPM(ctx context.Context, was []byte, k attestation.Known) error {
	what := "saving TPM of " + k.DeviceID
	values, err := encodeTPM(k)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return s.change(ctx, what, nil, func(t *tx) error {
		n, err := t.exec(`UPDATE tpms SET (endorsement_key, attestation_key, since, clock,
				previous_key, previous_clock, virtual, attestation, boot_loaders, failure) = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			WHERE device_id = ? AND attestation_key = ?`, append(values, k.DeviceID, was)...)
		if err == nil && n == 0 {
			err = fmt.Errorf("its attestation key is not known any more: %w", fs.ErrNotExist)
		}
		return err
	})
}

// enrolTPM makes a TPM the device's, whatever was known of another.
func enrolTPM(t *tx, deviceID string, values []any) error {
	if err := removeTPM(t, deviceID); err != nil {
		return err
	}
	_, err := t.exec(`INSERT INTO tpms (device_id, endorsement_key, attestation_key, since, clock,
			previous_key, previous_clock, virtual, attestation, boot_loaders, failure) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		append([]any{deviceID}, values...)...)
	return err
}

func removeTPM(t *tx, deviceID string) error {
	_, err := t.exec(`DELETE FROM tpms WHERE device_id = ?`, deviceID)
	return err
}

// encodeTPM returns the columns of a TPM, from the endorsement key on.
func encodeTPM(k attestation.Known) ([]any, error) {
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
	return []any{
		k.EndorsementKey, k.AttestationKey, nanos(k.Since), encodeClock(k.Clock),
		previous, previousClock, k.Virtual, stated, loaders, k.Failure,
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
