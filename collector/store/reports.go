package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// SaveReport keeps a device's newest evidence and result in place of the ones
// before. Nil evidence means unchanged evidence (a heartbeat, or a new
// appraisal of the old): only the result is replaced. When the result differs in
// more than its times it also goes to the history, and, when it has a refusal
// code, to the refusals. The error wraps fs.ErrNotExist for a device that the
// inventory does not have, and for nil evidence before the first report.
func (s *Store) SaveReport(ctx context.Context, deviceID string, ev *posturev1.Evidence, res *posturev1.Result, records ...audit.Record) error {
	r, err := encodeReport(deviceID, ev, res)
	if err != nil {
		return fmt.Errorf("saving report of %s: %w", deviceID, err)
	}
	return s.change(ctx, "saving report of "+deviceID, records, r.save)
}

// report is a report as it is written.
type report struct {
	deviceID         string
	evidence, result []byte // nil evidence: unchanged
	fingerprint      []byte
	appraisedAt      int64
	code             string
	refusal          []byte // nil without a code
}

func encodeReport(deviceID string, ev *posturev1.Evidence, res *posturev1.Result) (r report, err error) {
	if res == nil {
		return r, errors.New("no result")
	}
	r = report{deviceID: deviceID, fingerprint: fingerprint(res), appraisedAt: stampNanos(res.GetAppraisedAt()), code: res.GetCode()}
	if r.result, err = encode(res); err != nil {
		return r, err
	}
	if ev != nil {
		if r.evidence, err = encode(ev); err != nil {
			return r, err
		}
	}
	if r.code != "" {
		r.refusal, err = encode(&fleetv1.Explanation{
			Device: &fleetv1.Device{Id: deviceID}, Result: res, Verdict: res.GetVerdict(), RefusedAt: res.GetAppraisedAt(),
		})
	}
	return r, err
}

func (r report) save(t *tx) error {
	var before []byte
	err := t.read(`SELECT fingerprint FROM reports WHERE device_id = ?`, []any{r.deviceID}, &before)
	if err != nil && (r.evidence == nil || !errors.Is(err, fs.ErrNotExist)) {
		return err
	}
	if r.evidence == nil {
		_, err = t.exec(`UPDATE reports SET fingerprint = ?, result = ? WHERE device_id = ?`,
			r.fingerprint, r.result, r.deviceID)
	} else {
		_, err = t.exec(`INSERT INTO reports (device_id, fingerprint, evidence, result) VALUES (?, ?, ?, ?)
			ON CONFLICT (device_id) DO UPDATE SET
				fingerprint = excluded.fingerprint, evidence = excluded.evidence, result = excluded.result`,
			r.deviceID, r.fingerprint, r.evidence, r.result)
	}
	if err != nil || bytes.Equal(before, r.fingerprint) {
		return err
	}
	_, err = t.exec(`INSERT INTO history (device_id, at, result) VALUES (?, ?, ?)`, r.deviceID, r.appraisedAt, r.result)
	if err != nil || r.code == "" {
		return err
	}
	return t.saveRefusal(r.code, r.deviceID, r.appraisedAt, r.refusal)
}

// fingerprint covers what makes a result another one than before: the evidence
// judged, the verdicts, and what each rule found and does. Times are left out.
func fingerprint(res *posturev1.Result) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%x %d %d %d %q\n", res.GetEvidenceDigest(), res.GetVerdict(), res.GetEnforcedVerdict(), res.GetRollout(), res.GetCode())
	lines := make([]string, 0, len(res.GetFindings()))
	for _, f := range res.GetFindings() {
		lines = append(lines, fmt.Sprintf("%q %d %d %d\n", f.GetRule(), f.GetOutcome(), f.GetEffect(), f.GetEffectAfterGrace()))
	}
	slices.Sort(lines)
	for _, line := range lines {
		h.Write([]byte(line))
	}
	return h.Sum(nil)
}

// Report returns a device's newest evidence and result.
func (s *Store) Report(ctx context.Context, deviceID string) (*posturev1.Evidence, *posturev1.Result, error) {
	r := report{deviceID: deviceID}
	err := s.row(ctx, `SELECT evidence, result FROM reports WHERE device_id = ?`, []any{deviceID}, &r.evidence, &r.result)
	if err != nil {
		return nil, nil, fmt.Errorf("reading report of %s: %w", deviceID, err)
	}
	ev, res, err := r.decode()
	if err != nil {
		return nil, nil, fmt.Errorf("reading report of %s: %w", deviceID, err)
	}
	return ev, res, nil
}

// EachReport hands out the newest report of every device, ordered by device id.
func (s *Store) EachReport(ctx context.Context, fn func(deviceID string, ev *posturev1.Evidence, res *posturev1.Result) error) error {
	err := each(ctx, s, "", report.key, scanReport,
		`SELECT device_id, evidence, result FROM reports WHERE device_id > ? ORDER BY device_id LIMIT ?`,
		func(r report) error {
			ev, res, err := r.decode()
			if err != nil {
				return err
			}
			return fn(r.deviceID, ev, res)
		})
	if err != nil {
		return fmt.Errorf("reading reports: %w", err)
	}
	return nil
}

// EachResult is EachReport without the evidence, and much faster for it.
func (s *Store) EachResult(ctx context.Context, fn func(deviceID string, res *posturev1.Result) error) error {
	err := each(ctx, s, "", report.key, scanResult,
		`SELECT device_id, result FROM reports WHERE device_id > ? ORDER BY device_id LIMIT ?`,
		func(r report) error {
			res, err := decode(r.result, &posturev1.Result{})
			if err != nil {
				return err
			}
			return fn(r.deviceID, res)
		})
	if err != nil {
		return fmt.Errorf("reading results: %w", err)
	}
	return nil
}

func (r report) key() string { return r.deviceID }

func (r report) decode() (*posturev1.Evidence, *posturev1.Result, error) {
	ev, err := decode(r.evidence, &posturev1.Evidence{})
	if err != nil {
		return nil, nil, err
	}
	res, err := decode(r.result, &posturev1.Result{})
	return ev, res, err
}

func scanReport(rows *sql.Rows) (r report, err error) {
	err = rows.Scan(&r.deviceID, &r.evidence, &r.result)
	return r, err
}

func scanResult(rows *sql.Rows) (r report, err error) {
	err = rows.Scan(&r.deviceID, &r.result)
	return r, err
}
