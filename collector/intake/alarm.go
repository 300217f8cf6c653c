package intake

import (
	"context"
	"time"

	"pfoertner/collector/audit"
)

// The alarms that suspend a device (fleet.v1 Alarm).
const (
	alarmCloned   = "cloned"
	alarmStaleKey = "stale_key"
)

const (
	// alarmTimeout is how long the Registry may take to suspend a device.
	alarmTimeout = 10 * time.Second
	// notePause is the least time between two records of one kind about one
	// device: what it sends must not fill the audit log.
	notePause = 10 * time.Minute
)

// raise has a device suspended because somebody else has its identity too. It
// does not wait: no handshake and no stream is held up by a database. The
// suspension ends all streams of the device; should it not succeed, the next
// contradiction raises it again.
func (s *Service) raise(deviceID, kind, detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raiseLocked(deviceID, kind, detail)
}

// raiseLocked is raise for who has locked the Service.
func (s *Service) raiseLocked(deviceID, kind, detail string) {
	if s.closed || s.raising[deviceID] {
		return
	}
	s.raising[deviceID] = true
	s.alarms.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), alarmTimeout)
		defer cancel()
		err := s.Registry.Alarm(ctx, deviceID, kind, detail)
		s.mu.Lock()
		delete(s.raising, deviceID)
		s.mu.Unlock()
		if err != nil {
			s.Log.Error("device not suspended in spite of an alarm", "device_id", deviceID, "alarm", kind, "detail", detail, "error", err)
			return
		}
		s.Log.Warn("device suspended by an alarm", "device_id", deviceID, "alarm", kind, "detail", detail)
	})
}

// note is a kind of audit record about a device.
type note struct{ deviceID, kind string }

// note writes an audit record of something that was refused.
func (s *Service) note(ctx context.Context, deviceID, kind, reason string) {
	now, n := s.Now(), note{deviceID, kind}
	s.mu.Lock()
	last, before := s.noted[n]
	if before && now.Before(last.Add(notePause)) {
		s.mu.Unlock()
		return
	}
	s.noted[n] = now
	s.mu.Unlock()
	d, _ := s.Registry.Device(deviceID)
	record := audit.Record{
		At: now, Kind: kind, Actor: deviceID, DeviceID: deviceID, AssetNumber: d.GetAsset().GetAssetNumber(),
		Details: map[string]string{"reason": reason},
	}
	if err := s.Audit.AppendAudit(ctx, record); err != nil {
		s.Log.ErrorContext(ctx, "alarm not recorded", "device_id", deviceID, "kind", kind, "reason", reason, "error", err)
	}
}
