package enrolment

import (
	"context"
	"fmt"
	"io/fs"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Alarm suspends the asset of a device, because the collector has seen what
// must not be: two machines with one identity ("cloned"), a key that came back
// ("stale_key"), a TPM that contradicts itself ("attestation"). It takes two
// operators to resume, and the notebook has to enrol anew. The first alarm
// stays until then; on a retired asset there is nothing to suspend. The error
// wraps fs.ErrNotExist for an unknown device.
func (r *Registry) Alarm(ctx context.Context, deviceID, kind, detail string) error {
	r.change.Lock()
	defer r.change.Unlock()
	old, ok := r.Device(deviceID)
	if !ok {
		return fmt.Errorf("alarm for device %q: %w", deviceID, fs.ErrNotExist)
	}
	before := old.GetAsset().GetState()
	if before == retired || before == suspended && old.GetAsset().GetAlarm() != nil {
		return nil
	}
	d := proto.CloneOf(old)
	d.Asset.State = suspended
	d.Asset.Alarm = &fleetv1.Alarm{Kind: kind, Detail: detail, At: timestamppb.New(r.now())}
	d.Asset.ReimageUntil = nil
	record := r.record("alarm."+kind, "", d, map[string]string{"before": stateName(before), "detail": detail})
	if err := r.save(ctx, []*fleetv1.Device{d}, record); err != nil {
		return fmt.Errorf("suspending %s after an alarm: %w", d.GetAsset().GetAssetNumber(), err)
	}
	return nil
}
