package enrolment

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

const (
	// maxNap is how long Run sleeps at most: nobody wakes it when the clock is
	// set.
	maxNap = 10 * time.Minute
	// retryAfter is when Run tries again what the store did not take.
	retryAfter = time.Minute
)

// Run ends what has an end when its time comes: permissions for software keys,
// re-image windows, enrolments and orders that wait, VPN certificates. It returns nil when ctx
// ends. Nothing depends on its being in time: what has ended is not accepted,
// whether or not Run has noted it.
func (r *Registry) Run(ctx context.Context) error {
	for {
		next, err := r.endWhatIsDue(ctx)
		nap := maxNap
		if !next.IsZero() {
			nap = min(maxNap, next.Sub(r.now()))
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			r.log.ErrorContext(ctx, "ending what is due failed", "error", err)
			nap = retryAfter
		}
		timer := time.NewTimer(nap)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-r.wake:
		}
		timer.Stop()
	}
}

// awake lets Run look again. The caller holds r.mu.
func (r *Registry) awake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// schedule notes when something of a device ends. The caller holds r.mu.
func (r *Registry) schedule(d *fleetv1.Device) {
	number := d.GetAsset().GetAssetNumber()
	before, had := r.due[number]
	switch at, has := deadline(d); {
	case !has:
		delete(r.due, number)
	case !had || !at.Equal(before):
		r.due[number] = at
		r.awake()
	}
}

// endWhatIsDue ends all whose time has come and returns when the next thing
// ends; zero: nothing does.
func (r *Registry) endWhatIsDue(ctx context.Context) (next time.Time, err error) {
	r.change.Lock()
	defer r.change.Unlock()
	now := r.now()
	assets, proposals, _ := r.overdue(now)
	for _, p := range proposals {
		if err := r.settle(ctx, p, r.withdrawn("", p, "expired")); err != nil {
			return time.Time{}, err
		}
	}
	for _, number := range assets {
		old, _ := r.lookup(r.byAsset, number)
		d, ended := lapse(old, now)
		if err := r.save(ctx, []*fleetv1.Device{d}, r.records("", d, ended)...); err != nil {
			return time.Time{}, fmt.Errorf("ending what is due of %s: %w", number, err)
		}
	}
	_, _, next = r.overdue(now)
	return next, nil
}

// overdue returns what is due, and when the next of the rest will be.
func (r *Registry) overdue(now time.Time) (assets []string, proposals []*fleetv1.Proposal, next time.Time) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	isDue := func(at time.Time) bool {
		if !at.After(now) {
			return true
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
		return false
	}
	for number, at := range r.due {
		if isDue(at) {
			assets = append(assets, number)
		}
	}
	for _, p := range r.proposals {
		if isDue(p.GetExpiresAt().AsTime()) {
			proposals = append(proposals, p)
		}
	}
	return assets, proposals, next
}

// deadline returns when the next thing of a device ends; it may be past.
func deadline(d *fleetv1.Device) (at time.Time, has bool) {
	note := func(t time.Time) {
		if !has || t.Before(at) {
			at, has = t, true
		}
	}
	a := d.GetAsset()
	if usesSoftware(d) && a.GetState() == active {
		note(a.GetSoftwareKey().GetUntil().AsTime()) // without an end: 1970
	}
	if a.GetReimageUntil() != nil {
		note(a.GetReimageUntil().AsTime())
	}
	if d.GetPending() != nil {
		note(d.GetPending().GetExpiresAt().AsTime())
	}
	for _, c := range d.GetVpnCertificates() {
		note(c.GetExpiresAt().AsTime())
	}
	return at, has
}

// lapse returns a device without what has ended, and the audit records of it.
func lapse(old *fleetv1.Device, now time.Time) (*fleetv1.Device, []record) {
	d := proto.CloneOf(old)
	var ended []record
	if usesSoftware(d) && d.Asset.State == active && !softwareAllowed(d.Asset, now) {
		d.Asset.State = suspended
		details := map[string]string{"reason": "never allowed"}
		if until := d.Asset.GetSoftwareKey().GetUntil(); until != nil {
			details = map[string]string{"reason": "permission ended", "until": timeText(until)}
		}
		ended = append(ended, record{"software_key.ended", details})
	}
	if until := d.Asset.ReimageUntil; until != nil && !now.Before(until.AsTime()) {
		d.Asset.ReimageUntil = nil
		ended = append(ended, record{"device.reimage_window_ended", map[string]string{"until": timeText(until)}})
	}
	if p := d.Pending; p != nil && !now.Before(p.GetExpiresAt().AsTime()) {
		unpend(d)
		ended = append(ended, record{"device.pending_ended", map[string]string{"fingerprint": p.GetFingerprint()}})
	}
	if gone := endedVPN(d, now); len(gone) > 0 {
		ended = append(ended, record{"vpn_certificate.ended", map[string]string{"certificate_sha256": prints(gone)}})
	}
	return d, ended
}
