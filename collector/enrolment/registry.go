// Package enrolment knows which notebooks belong to us: the inventory, the
// tokens that let an expected notebook in, the key by which each is known from
// then on, and what operators decide about it.
//
// Rules. The Registry holds the whole inventory in memory; a change is written
// to the store with its audit record first, then to memory, then told to the
// subscribers, in this order and one after the other. Devices that it returns
// are never changed: a change makes a new one. Whoever is not known, not
// active, or comes with another key than its current one is not accepted. What
// weakens something takes two operators: orders.go says who may, effects.go what
// it does, deadlines.go when it ends.
package enrolment

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/attestation"
	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Store is what the Registry needs of the collector's store. Every method that
// writes returns after the commit.
type Store interface {
	EachDevice(ctx context.Context, fn func(*fleetv1.Device) error) error
	// SaveDecision saves devices, forgets the keys of those with the ids
	// dismissed, and ends the proposals with the ids settled.
	SaveDecision(ctx context.Context, devices []*fleetv1.Device, dismissed, settled []string, records ...audit.Record) error
	// SaveEnrolment leaves no previous key; nil: the new one is not in a TPM.
	SaveEnrolment(ctx context.Context, d *fleetv1.Device, spkiSHA256 []byte, serial string, notAfter time.Time, tpm *attestation.Known, records ...audit.Record) error
	EachCredential(ctx context.Context, fn func(deviceID string, spkiSHA256 []byte, serial string, notAfter time.Time) error) error
	EachPreviousCredential(ctx context.Context, fn func(deviceID string, spkiSHA256 []byte, serial string, notAfter time.Time) error) error
	// RenewCredential keeps the key from as the previous one until
	// SettleCredential.
	RenewCredential(ctx context.Context, deviceID string, from, spkiSHA256 []byte, serial string, notAfter time.Time, records ...audit.Record) error
	SettleCredential(ctx context.Context, deviceID string, spkiSHA256 []byte) error
	SaveProposal(ctx context.Context, p *fleetv1.Proposal, records ...audit.Record) error
	EachProposal(ctx context.Context, fn func(*fleetv1.Proposal) error) error
	SaveToken(ctx context.Context, hash []byte, assetNumber string, expires time.Time, records ...audit.Record) error
	UseToken(ctx context.Context, hash []byte, now time.Time) (assetNumber string, err error)
	AppendAudit(ctx context.Context, records ...audit.Record) error
}

// Registry is the inventory in memory. Its methods may be called concurrently.
type Registry struct {
	store Store
	now   func() time.Time
	log   *slog.Logger
	// softwareLifetime is how long certificates for software keys live.
	softwareLifetime time.Duration

	// change lets one change of the inventory at a time be planned, stored and
	// published.
	change sync.Mutex
	// publishing keeps subscribers' calls in the order of the changes.
	publishing  sync.Mutex
	subscribers []func(*fleetv1.Device)

	mu            sync.RWMutex // guards the maps and the entries in them
	byAsset       map[string]*entry
	byID          map[string]*entry
	bySerial      map[string]*entry
	byCertificate map[string]*entry
	// byEndorsement has all keys that ever belonged to an asset, and those that
	// wait for approval.
	byEndorsement map[string]*entry
	proposals     map[string]*fleetv1.Proposal // by id
	// due is when something of an asset ends, by asset number; deadlines.go.
	due  map[string]time.Time
	wake chan struct{} // holds one token when due or proposals changed
}

// entry is one asset and the keys of its device.
type entry struct {
	device *fleetv1.Device
	// renewing lets one credential at a time be stored and published.
	renewing sync.Mutex
	current  credential
	// previous is the key before a renewal, until the new one has been used: a
	// notebook that never got the answer comes back with it.
	previous credential
}

// Option changes how a Registry is made.
type Option func(*Registry)

// WithClock sets the clock; without it time.Now.
func WithClock(now func() time.Time) Option {
	return func(r *Registry) { r.now = now }
}

// WithLog sets where is logged what Run could not do; without it nowhere.
func WithLog(log *slog.Logger) Option {
	return func(r *Registry) { r.log = log }
}

// NewRegistry loads inventory, credentials and proposals from the store.
func NewRegistry(ctx context.Context, store Store, options ...Option) (*Registry, error) {
	r := &Registry{
		store: store, now: time.Now, log: slog.New(slog.DiscardHandler), softwareLifetime: DefaultSoftwareLifetime,
		byAsset: map[string]*entry{}, byID: map[string]*entry{},
		bySerial: map[string]*entry{}, byCertificate: map[string]*entry{}, byEndorsement: map[string]*entry{},
		proposals: map[string]*fleetv1.Proposal{}, due: map[string]time.Time{}, wake: make(chan struct{}, 1),
	}
	for _, o := range options {
		o(r)
	}
	err := store.EachDevice(ctx, func(d *fleetv1.Device) error {
		r.put(d)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("loading inventory: %w", err)
	}
	if err := r.loadCredentials(ctx); err != nil {
		return nil, fmt.Errorf("loading keys of devices: %w", err)
	}
	err = store.EachProposal(ctx, func(p *fleetv1.Proposal) error {
		r.proposals[p.GetId()] = p
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("loading proposals: %w", err)
	}
	return r, nil
}

// loadCredentials runs before the Registry is in use.
func (r *Registry) loadCredentials(ctx context.Context) error {
	err := r.store.EachCredential(ctx, func(id string, spki []byte, serial string, notAfter time.Time) error {
		e := r.byID[id]
		if e == nil {
			return fmt.Errorf("key of unknown device %s: %w", id, fs.ErrNotExist)
		}
		e.current = credential{spki, serial, notAfter}
		r.put(e.device)
		return nil
	})
	if err != nil {
		return err
	}
	return r.store.EachPreviousCredential(ctx, func(id string, spki []byte, serial string, notAfter time.Time) error {
		e := r.byID[id]
		if e == nil {
			return fmt.Errorf("key of unknown device %s: %w", id, fs.ErrNotExist)
		}
		e.previous = credential{spki, serial, notAfter}
		return nil
	})
}

// Device returns the device with an id.
func (r *Registry) Device(id string) (*fleetv1.Device, bool) {
	return r.lookup(r.byID, id)
}

// Find returns the device with an asset number or id.
func (r *Registry) Find(key string) (*fleetv1.Device, bool) {
	if d, ok := r.lookup(r.byAsset, key); ok {
		return d, true
	}
	return r.lookup(r.byID, key)
}

// DeviceOfCertificate returns the device that a VPN certificate is bound to.
func (r *Registry) DeviceOfCertificate(sha256 []byte) (*fleetv1.Device, bool) {
	return r.lookup(r.byCertificate, string(sha256))
}

// All returns all devices, in no particular order.
func (r *Registry) All() []*fleetv1.Device {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := make([]*fleetv1.Device, 0, len(r.byAsset))
	for _, e := range r.byAsset {
		all = append(all, e.device)
	}
	return all
}

// OnChange registers a function that is called after every committed change,
// once for each device that changed, one call after the other. It must not
// change the Registry. Register before the Registry is in use.
func (r *Registry) OnChange(fn func(*fleetv1.Device)) {
	r.publishing.Lock()
	defer r.publishing.Unlock()
	r.subscribers = append(r.subscribers, fn)
}

func (r *Registry) lookup(index map[string]*entry, key string) (*fleetv1.Device, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	e, ok := index[key]
	if !ok {
		return nil, false
	}
	return e.device, true
}

// publish makes a committed change visible and tells the subscribers. swap runs
// with the maps locked and returns the devices that changed.
func (r *Registry) publish(swap func() []*fleetv1.Device) {
	r.publishing.Lock()
	defer r.publishing.Unlock()
	r.mu.Lock()
	changed := swap()
	r.mu.Unlock()
	for _, d := range changed {
		for _, fn := range r.subscribers {
			fn(d)
		}
	}
}

// decision is a change of the inventory that is committed as a whole.
type decision struct {
	devices   []*fleetv1.Device // as they will be; the caller has cloned them
	dismissed []string          // ids of those whose keys end
	settled   []string          // ids of proposals that wait no longer
	records   []audit.Record
}

// save commits devices, which the caller has cloned, with their audit records
// and publishes them. The caller holds r.change.
func (r *Registry) save(ctx context.Context, devices []*fleetv1.Device, records ...audit.Record) error {
	return r.commit(ctx, decision{devices: devices, records: records})
}

// commit stores a decision and publishes it, and ends the proposals that it
// overtakes. The caller holds r.change.
func (r *Registry) commit(ctx context.Context, d decision) error {
	overtaken := r.overtaken(d)
	for _, p := range overtaken {
		d.settled = append(d.settled, p.GetId())
		d.records = append(d.records, r.withdrawn("", p, "overtaken"))
	}
	// No renewal comes between storing and publishing that keys have ended.
	for _, id := range d.dismissed {
		if e := r.entryOf(id); e != nil {
			e.renewing.Lock()
			defer e.renewing.Unlock()
		}
	}
	if err := r.store.SaveDecision(ctx, d.devices, d.dismissed, d.settled, d.records...); err != nil {
		return err
	}
	r.publish(func() []*fleetv1.Device {
		for _, id := range d.settled {
			delete(r.proposals, id)
		}
		for _, id := range d.dismissed {
			if e := r.byID[id]; e != nil {
				e.current, e.previous = credential{}, credential{}
			}
		}
		changed := make([]*fleetv1.Device, len(d.devices))
		// First all that the devices give up, so that it may go from one to another.
		for _, device := range d.devices {
			r.forget(device.GetAsset().GetAssetNumber())
		}
		for i, device := range d.devices {
			changed[i] = r.put(device)
		}
		return changed
	})
	return nil
}

func (r *Registry) entryOf(deviceID string) *entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.byID[deviceID]
}

// put places a device into all indexes, with the end of its current
// credential, and returns it as placed.
func (r *Registry) put(d *fleetv1.Device) *fleetv1.Device {
	a := d.GetAsset()
	e := r.byAsset[a.GetAssetNumber()]
	if e == nil {
		e = &entry{}
		r.byAsset[a.GetAssetNumber()] = e
	}
	d = proto.CloneOf(d)
	d.CertificateExpiresAt = nil
	if e.current.spki != nil {
		d.CertificateExpiresAt = timestamppb.New(e.current.notAfter)
	}
	e.device = d
	if d.GetId() != "" {
		r.byID[d.GetId()] = e
	}
	if s := serialKey(a.GetSerial()); s != "" {
		r.bySerial[s] = e
	}
	for _, sum := range a.GetVpnCertificatesSha256() {
		r.byCertificate[string(sum)] = e
	}
	for _, sum := range endorsements(d) {
		r.byEndorsement[string(sum)] = e
	}
	r.schedule(d)
	return d
}

// forget removes an asset's serial number, VPN certificates and endorsement
// keys from the indexes, before it is put again.
func (r *Registry) forget(assetNumber string) {
	e := r.byAsset[assetNumber]
	if e == nil {
		return
	}
	delete(r.bySerial, serialKey(e.device.GetAsset().GetSerial()))
	for _, sum := range e.device.GetAsset().GetVpnCertificatesSha256() {
		delete(r.byCertificate, string(sum))
	}
	for _, sum := range endorsements(e.device) {
		delete(r.byEndorsement, string(sum))
	}
}

// serialKey is a serial number as it is compared.
func serialKey(serial string) string { return strings.ToUpper(strings.TrimSpace(serial)) }

// record is what is audited of a change, without who, when and what of.
type record struct {
	kind    string
	details map[string]string
}

func (r *Registry) record(kind, actor string, d *fleetv1.Device, details map[string]string) audit.Record {
	return audit.Record{
		At: r.now(), Kind: kind, Actor: actor,
		DeviceID: d.GetId(), AssetNumber: d.GetAsset().GetAssetNumber(), Details: details,
	}
}

func (r *Registry) records(actor string, d *fleetv1.Device, list []record) []audit.Record {
	sealed := make([]audit.Record, len(list))
	for i, one := range list {
		sealed[i] = r.record(one.kind, actor, d, one.details)
	}
	return sealed
}
