package attestation

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// maxValues is how many values of one PCR are learned for one model.
	maxValues = 64
	// maxNovelties is how many values one device may teach in noveltyWindow: two
	// for each PCR, as when firmware and boot loader change on one day.
	maxNovelties  = 8
	noveltyWindow = 24 * time.Hour
)

// The states of a reference.
const (
	undecided = posturev1.PcrReference_PCR_REFERENCE_LEARNED
	approved  = posturev1.PcrReference_PCR_REFERENCE_APPROVED
	rejected  = posturev1.PcrReference_PCR_REFERENCE_REJECTED
)

// modelWide says which PCRs have the same value on the notebooks of one model
// with the same firmware and boot loader. The others hold what operating systems
// measure, which differs from one to the next.
func modelWide(pcr uint32) bool { return pcr == 0 || pcr == 2 || pcr == 4 || pcr == 7 }

type model struct{ vendor, name string }

// place is one value of one PCR on one model.
type place struct {
	model
	pcr   uint32
	value [32]byte
}

// placesOf are the model-wide values of an Attestation; none for a model without
// a name.
func placesOf(m model, a *posturev1.Attestation) []place {
	if m.name == "" {
		return nil
	}
	var list []place
	for _, p := range a.GetPcrs() {
		if modelWide(p.GetIndex()) && len(p.GetSha256()) == 32 {
			list = append(list, place{m, p.GetIndex(), [32]byte(p.GetSha256())})
		}
	}
	return list
}

// references are the known values, and who quotes them now.
type references struct {
	// changing lets one reference at a time be planned, stored and published.
	changing sync.Mutex

	mu        sync.RWMutex // guards what follows
	known     map[place]*fleetv1.BootReference
	values    map[valuesKey]int
	devices   map[place]int
	quoted    map[string][]place // by device
	novelties map[string]novelty // by device
}

type valuesKey struct {
	model
	pcr uint32
}

// novelty counts what a device taught since a moment.
type novelty struct {
	since time.Time
	count int
}

func newReferences() *references {
	return &references{
		known: map[place]*fleetv1.BootReference{}, values: map[valuesKey]int{}, devices: map[place]int{},
		quoted: map[string][]place{}, novelties: map[string]novelty{},
	}
}

// load places a reference; the caller does not change it again.
func (r *references) load(b *fleetv1.BootReference) {
	if len(b.GetSha256()) != 32 {
		return
	}
	p := placeOf(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known[p] == nil {
		r.values[valuesKey{p.model, p.pcr}]++
	}
	r.known[p] = b
}

func placeOf(b *fleetv1.BootReference) place {
	return place{model{b.GetVendor(), b.GetModel()}, b.GetPcr(), [32]byte(b.GetSha256())}
}

// count replaces what a device quotes.
func (r *references) count(deviceID string, places []place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.quoted[deviceID] {
		if r.devices[p]--; r.devices[p] <= 0 {
			delete(r.devices, p)
		}
	}
	delete(r.quoted, deviceID)
	for _, p := range places {
		r.devices[p]++
	}
	if len(places) > 0 {
		r.quoted[deviceID] = places
	}
}

// rate returns the Attestation with its PCRs compared; nil stays nil.
func (r *references) rate(a *posturev1.Attestation, places []place) *posturev1.Attestation {
	if a == nil {
		return nil
	}
	rated := proto.CloneOf(a)
	states := map[uint32]posturev1.PcrReference{}
	r.mu.RLock()
	for _, p := range places {
		states[p.pcr] = r.known[p].GetState()
	}
	r.mu.RUnlock()
	for _, p := range rated.GetPcrs() {
		p.Reference = states[p.GetIndex()]
	}
	return rated
}

// unknown are the places that nothing is known of and that the device may
// teach.
func (r *references) unknown(deviceID string, now time.Time) []place {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []place
	for _, p := range r.quoted[deviceID] {
		if r.known[p] != nil || r.values[valuesKey{p.model, p.pcr}] >= maxValues {
			continue
		}
		n := r.novelties[deviceID]
		if now.Sub(n.since) >= noveltyWindow {
			n = novelty{since: now}
		}
		if n.count >= maxNovelties {
			continue
		}
		n.count++
		r.novelties[deviceID] = n
		list = append(list, p)
	}
	return list
}

// quoting are the devices that quote a value.
func (r *references) quoting(p place) []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var ids []string
	for id, places := range r.quoted {
		if slices.Contains(places, p) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// shown is a reference with the number of its devices.
func (r *references) shown(p place) *fleetv1.BootReference {
	r.mu.RLock()
	defer r.mu.RUnlock()
	b := proto.CloneOf(r.known[p])
	b.Devices = uint32(r.devices[p])
	return b
}

// learn remembers the values that a device has just quoted and nobody before.
// What cannot be stored is left for the next quote.
func (b *Book) learn(ctx context.Context, e *entry) {
	id := e.deviceID
	b.references.changing.Lock()
	defer b.references.changing.Unlock()
	news := b.references.unknown(id, b.Now())
	for _, p := range news {
		ref := &fleetv1.BootReference{
			Vendor: p.vendor, Model: p.name, Pcr: p.pcr, Sha256: bytes.Clone(p.value[:]),
			State: undecided, FirstSeenAt: timestamppb.New(b.Now()),
		}
		if err := b.Store.SaveBootReference(ctx, ref, b.referenceRecord("boot_reference.learned", "", id, ref)); err != nil {
			b.Log.WarnContext(ctx, "value of a PCR not learned", "device_id", id, "pcr", p.pcr, "error", err)
			return
		}
		b.references.load(ref)
	}
	if len(news) > 0 {
		b.rate(e)
	}
}

func (b *Book) referenceRecord(kind, actor, deviceID string, r *fleetv1.BootReference) audit.Record {
	record := audit.Record{
		At: b.Now(), Kind: kind, Actor: actor, DeviceID: deviceID,
		Details: map[string]string{
			"vendor": r.GetVendor(), "model": r.GetModel(),
			"pcr": strconv.FormatUint(uint64(r.GetPcr()), 10), "sha256": hex.EncodeToString(r.GetSha256()),
		},
	}
	if d, ok := b.Device(deviceID); ok {
		record.AssetNumber = d.GetAsset().GetAssetNumber()
	}
	return record
}

// BootReferences returns the known values of a model, of all models for "", by
// vendor, model, PCR and first sight.
func (b *Book) BootReferences(model string) []*fleetv1.BootReference {
	b.references.mu.RLock()
	var places []place
	for p := range b.references.known {
		if model == "" || p.name == model {
			places = append(places, p)
		}
	}
	b.references.mu.RUnlock()
	list := make([]*fleetv1.BootReference, 0, len(places))
	for _, p := range places {
		list = append(list, b.references.shown(p))
	}
	slices.SortFunc(list, func(x, y *fleetv1.BootReference) int {
		return cmp.Or(
			cmp.Compare(x.GetVendor(), y.GetVendor()), cmp.Compare(x.GetModel(), y.GetModel()), cmp.Compare(x.GetPcr(), y.GetPcr()),
			x.GetFirstSeenAt().AsTime().Compare(y.GetFirstSeenAt().AsTime()), bytes.Compare(x.GetSha256(), y.GetSha256()),
		)
	})
	return list
}

// SetBootReference takes an operator's decision about a value: approved,
// rejected, or learned to take one back. A value may be decided before any
// device quotes it. The error wraps fs.ErrInvalid for what is no such decision,
// fs.ErrNotExist for taking back what is not known.
func (b *Book) SetBootReference(ctx context.Context, actor string, r *fleetv1.BootReference) (*fleetv1.BootReference, error) {
	kind, ok := map[posturev1.PcrReference]string{
		undecided: "boot_reference.undecided", approved: "boot_reference.approved", rejected: "boot_reference.rejected",
	}[r.GetState()]
	if !ok || r.GetModel() == "" || !modelWide(r.GetPcr()) || len(r.GetSha256()) != 32 {
		return nil, fmt.Errorf("decision about a boot reference needs a model, PCR 0, 2, 4 or 7, a SHA-256 and a state: %w", fs.ErrInvalid)
	}
	decided, err := b.decide(ctx, kind, actor, r)
	if err != nil {
		return nil, err
	}
	for _, id := range b.references.quoting(placeOf(decided)) {
		if e := b.entry(id); e != nil {
			_ = b.change(e, func() error { // no error can come of it
				b.rate(e)
				return nil
			})
		}
	}
	return b.references.shown(placeOf(decided)), nil
}

func (b *Book) decide(ctx context.Context, kind, actor string, r *fleetv1.BootReference) (*fleetv1.BootReference, error) {
	b.references.changing.Lock()
	defer b.references.changing.Unlock()
	b.references.mu.RLock()
	known := b.references.known[placeOf(r)]
	b.references.mu.RUnlock()
	now := b.Now()
	if known == nil {
		if r.GetState() == undecided {
			return nil, fmt.Errorf("boot reference of %s, PCR %d: %w", r.GetModel(), r.GetPcr(), fs.ErrNotExist)
		}
		known = &fleetv1.BootReference{
			Vendor: r.GetVendor(), Model: r.GetModel(), Pcr: r.GetPcr(), Sha256: bytes.Clone(r.GetSha256()), FirstSeenAt: timestamppb.New(now),
		}
	}
	decided := proto.CloneOf(known)
	decided.State, decided.DecidedBy, decided.DecidedAt, decided.Devices = r.GetState(), actor, timestamppb.New(now), 0
	if err := b.Store.SaveBootReference(ctx, decided, b.referenceRecord(kind, actor, "", decided)); err != nil {
		return nil, fmt.Errorf("storing boot reference: %w", err)
	}
	b.references.load(decided)
	return decided, nil
}
