package fleet

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/attestation"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Devices is the inventory in memory (enrolment.Registry). What it returns is
// never changed.
type Devices interface {
	Device(id string) (*fleetv1.Device, bool)
	// Find finds a device by asset number or device id.
	Find(key string) (*fleetv1.Device, bool)
	All() []*fleetv1.Device
}

// Reports is what is stored of the devices (store.Store). What is not there is
// an error that wraps fs.ErrNotExist.
type Reports interface {
	Report(ctx context.Context, deviceID string) (*posturev1.Evidence, *posturev1.Result, error)
	EachReport(ctx context.Context, fn func(deviceID string, ev *posturev1.Evidence, res *posturev1.Result) error) error
	EachResult(ctx context.Context, fn func(deviceID string, res *posturev1.Result) error) error
	Refusals(ctx context.Context, code string) ([]*fleetv1.Explanation, error)
	Events(ctx context.Context, device string, since time.Time, limit int) ([]*fleetv1.Event, error)
}

// Presence says whether a device's agent is connected, when it last was heard
// of (zero: not since the collector started) and its version.
type Presence interface {
	Online(deviceID string) (online bool, lastSeen time.Time, agentVersion string)
}

// Desk is where sessions and verdicts meet (admission.Desk).
type Desk interface {
	// Sessions lists live sessions of a gateway, of all when it is empty.
	Sessions(gateway string) []*fleetv1.Session
	// Explain says what would be decided now, and why.
	Explain(deviceID string) (posturev1.Verdict, *posturev1.LocalText)
}

// TPMs is what is known of devices' TPMs (attestation.Book).
type TPMs interface {
	Known(deviceID string) (attestation.Known, bool)
	// Attestation is what a device's TPM vouches for now.
	Attestation(deviceID string) *posturev1.Attestation
}

// fleetService answers questions about the fleet.
type fleetService struct {
	fleetv1.UnimplementedFleetServiceServer
	devices   Devices
	reports   Reports
	desk      Desk
	presence  Presence
	tpms      TPMs
	collector Collector
	now       func() time.Time
	listings  *listings
}

func newFleetService(o Options) *fleetService {
	return &fleetService{
		devices: o.Devices, reports: o.Reports, desk: o.Desk, presence: o.Presence,
		tpms: o.TPMs, collector: o.Collector, now: o.Now, listings: &listings{},
	}
}

// GetDevice returns one device with everything known of it.
func (s *fleetService) GetDevice(ctx context.Context, req *fleetv1.GetDeviceRequest) (*fleetv1.GetDeviceResponse, error) {
	dev, err := s.find(req.GetDevice())
	if err != nil {
		return nil, err
	}
	view, err := s.look(ctx, dev)
	if err != nil {
		return nil, err
	}
	return &fleetv1.GetDeviceResponse{Device: view}, nil
}

func (s *fleetService) find(key string) (*fleetv1.Device, error) {
	if key == "" {
		return nil, invalid("no device named: an asset number or a device id is needed")
	}
	dev, ok := s.devices.Find(key)
	if !ok {
		return nil, notFound("no device has the asset number or the id %q", key)
	}
	return dev, nil
}

// look joins what is stored of a device to it.
func (s *fleetService) look(ctx context.Context, dev *fleetv1.Device) (*fleetv1.Device, error) {
	if dev.GetId() == "" {
		return s.view(dev, nil, nil), nil
	}
	ev, res, err := s.reports.Report(ctx, dev.GetId())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return s.view(dev, ev, res), nil
}

// view is a device as operators see it. It shares its parts with its sources;
// nobody changes them.
func (s *fleetService) view(dev *fleetv1.Device, ev *posturev1.Evidence, res *posturev1.Result) *fleetv1.Device {
	v := &fleetv1.Device{
		Id: dev.GetId(), Asset: dev.GetAsset(), EnrolledAt: dev.GetEnrolledAt(), CertificateExpiresAt: dev.GetCertificateExpiresAt(),
		Key: dev.GetKey(), Pending: dev.GetPending(), VpnCertificates: dev.GetVpnCertificates(),
		Evidence: ev, Result: res,
		AgentVersion: ev.GetPlatform().GetAgentVersion(), LastSeenAt: res.GetCollectedAt(),
	}
	if dev.GetId() == "" {
		return v
	}
	v.Attested = s.tpms.Attestation(dev.GetId())
	if known, ok := s.tpms.Known(dev.GetId()); ok && v.Key != nil {
		v.Key = proto.CloneOf(v.Key)
		v.Key.AttestationKeySince = timestamppb.New(known.Since)
	}
	online, seen, version := s.presence.Online(dev.GetId())
	v.Online = online
	if !seen.IsZero() {
		v.LastSeenAt = timestamppb.New(seen)
	}
	if version != "" {
		v.AgentVersion = version
	}
	return v
}

// summary leaves evidence and findings out of a view.
func summary(v *fleetv1.Device) *fleetv1.Device {
	v.Evidence = nil
	if v.Result != nil && len(v.Result.Findings) > 0 {
		short := proto.CloneOf(v.Result)
		short.Findings = nil
		v.Result = short
	}
	return v
}
