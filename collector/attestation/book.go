package attestation

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Book is what is known of every device's TPM, in memory. Its methods may be
// called concurrently. Nothing that it returns is ever changed.
type Book struct {
	Options
	references *references

	mu          sync.RWMutex // guards what follows, and what entries know
	entries     map[string]*entry
	subscribers []func(deviceID string)
}

// entry is one device.
type entry struct {
	deviceID string
	// judging lets one statement of a device at a time be compared with the one
	// before, and stored.
	judging sync.Mutex
	// heard is when the newest statement arrived, quoted when the newest quote did;
	// zero: none since the collector started. They belong to who holds judging.
	heard, quoted time.Time
	known         Known
	// rated is known.Attestation with its PCRs compared with the model's; nil:
	// there is none.
	rated *posturev1.Attestation
}

// New loads the Book from the store.
func New(ctx context.Context, o Options) (*Book, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b := &Book{Options: o, references: newReferences(), entries: map[string]*entry{}}
	err := o.Store.EachBootReference(ctx, func(r *fleetv1.BootReference) error {
		b.references.load(r)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("loading boot references: %w", err)
	}
	err = o.Store.EachTPM(ctx, func(k Known) error {
		b.publish(b.entryFor(k.DeviceID), k)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("loading TPMs: %w", err)
	}
	return b, nil
}

// Known returns what is known of a device's TPM.
func (b *Book) Known(deviceID string) (Known, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	e := b.entries[deviceID]
	if e == nil || len(e.known.AttestationKey) == 0 {
		return Known{}, false
	}
	return e.known, true
}

// Put replaces what is known of a device's TPM, after the store has committed
// it. A statement that is being judged is finished first.
func (b *Book) Put(k Known) {
	e := b.entryFor(k.DeviceID)
	_ = b.change(e, func() error { // no error can come of it
		b.publish(e, k)
		now := b.Now()
		e.heard, e.quoted = now, now // an enrolment quotes, too
		return nil
	})
}

// Forget removes a device's TPM, after the store has.
func (b *Book) Forget(deviceID string) {
	e := b.entry(deviceID)
	if e == nil {
		return
	}
	_ = b.change(e, func() error { // no error can come of it
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.entries, deviceID)
		b.references.count(deviceID, nil)
		return nil
	})
}

// change lets one change of an entry at a time happen, and announces it if it
// changes a fact.
func (b *Book) change(e *entry, fn func() error) error {
	e.judging.Lock()
	before := b.Attestation(e.deviceID)
	err := fn()
	after := b.Attestation(e.deviceID)
	e.judging.Unlock() // whoever is told may ask for more
	if !sameFacts(before, after) {
		b.announce(e.deviceID)
	}
	return err
}

// OnChange registers what is called when the facts about a device have changed:
// what its TPM vouches for, or how a value compares with the model's. That
// quotes become too old is not announced; Attestation.valid_until tells. The
// function is called on the goroutine that made the change. Register before the
// Book is in use.
func (b *Book) OnChange(fn func(deviceID string)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subscribers = append(b.subscribers, fn)
}

func (b *Book) announce(deviceID string) {
	b.mu.RLock()
	subscribers := b.subscribers
	b.mu.RUnlock()
	for _, fn := range subscribers {
		fn(deviceID)
	}
}

func (b *Book) entry(deviceID string) *entry {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.entries[deviceID]
}

// entryFor is entry, and makes one that nothing is known of.
func (b *Book) entryFor(deviceID string) *entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[deviceID]
	if e == nil {
		e = &entry{deviceID: deviceID}
		b.entries[deviceID] = e
	}
	return e
}

// publish makes visible what is known of a device now.
func (b *Book) publish(e *entry, k Known) {
	b.mu.Lock()
	e.known = k
	b.mu.Unlock()
	b.rate(e)
}

// rate compares what a device has quoted with the references as they are now.
func (b *Book) rate(e *entry) {
	m := b.model(e.deviceID)
	b.mu.Lock()
	defer b.mu.Unlock()
	places := placesOf(m, e.known.Attestation)
	b.references.count(e.deviceID, places)
	e.rated = b.references.rate(e.known.Attestation, places)
}

// save stores what is known of a device and publishes it.
func (b *Book) save(ctx context.Context, e *entry, k Known) error {
	if err := b.Store.SaveTPM(ctx, e.known.AttestationKey, k); err != nil {
		return fmt.Errorf("storing the TPM of %s: %w", k.DeviceID, err)
	}
	b.publish(e, k)
	return nil
}

// model is how the inventory names a device's model; it never comes from the
// notebook. The zero value has no references.
func (b *Book) model(deviceID string) model {
	d, ok := b.Device(deviceID)
	if !ok {
		return model{}
	}
	return model{vendor: d.GetAsset().GetVendor(), name: d.GetAsset().GetModel()}
}

// Attestation is what the TPM of a device vouches for as it stands now:
// OBSERVED; FAILED when the newest quote is missing or too old, or the TPM is
// not known; NOT_APPLICABLE for a key that is not in a TPM. It is never nil.
func (b *Book) Attestation(deviceID string) *posturev1.Attestation {
	b.mu.RLock()
	e := b.entries[deviceID]
	var known Known
	var rated *posturev1.Attestation
	if e != nil {
		known, rated = e.known, e.rated
	}
	b.mu.RUnlock()
	switch {
	case len(known.AttestationKey) == 0:
		if d, ok := b.Device(deviceID); ok && d.GetKey().GetProtection() == fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE {
			return without(posturev1.ReadingState_READING_STATE_NOT_APPLICABLE, "the device key is not in a TPM", false)
		}
		return failed("no TPM of this device is known", false)
	case known.Failure != "":
		return failed(known.Failure, known.Virtual)
	case rated == nil:
		return failed("the TPM has never quoted", known.Virtual)
	case !b.Now().Before(rated.GetValidUntil().AsTime()):
		return failed("the newest quote is of "+rated.GetQuotedAt().AsTime().UTC().Format(time.RFC3339), known.Virtual)
	}
	return rated
}

func failed(why string, virtual bool) *posturev1.Attestation {
	return without(posturev1.ReadingState_READING_STATE_FAILED, why, virtual)
}

// without is an Attestation without facts.
func without(state posturev1.ReadingState, why string, virtual bool) *posturev1.Attestation {
	return &posturev1.Attestation{
		Reading: &posturev1.Reading{State: state, Reason: why, Source: source},
		Virtual: virtual,
	}
}

// sameFacts compares what two Attestations say, their times apart.
func sameFacts(a, b *posturev1.Attestation) bool {
	return proto.Equal(timeless(a), timeless(b))
}

func timeless(a *posturev1.Attestation) *posturev1.Attestation {
	t := proto.CloneOf(a)
	t.QuotedAt, t.ValidUntil = nil, nil
	if t.Reading != nil {
		t.Reading.ObservedAt = nil
	}
	return t
}
