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
	// maxEnded is how many things of a kind end in one commit.
	maxEnded = 256
)

// Run ends what has an end when its time comes: permissions for software keys,
// re-image windows, enrolments and orders that wait, VPN certificates. It
// returns nil when ctx ends. Nothing depends on its being in time: what has ended is not accepted,
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
	for more := true; more && err == nil; {
		next, more, err = r.endSome(ctx)
	}
	return next, err
}

// endSome ends in one commit what is due, but not of more than maxEnded: an
// alarm, say, need not wait until the rest is done.
func (r *Registry) endSome(ctx context.Context) (next time.Time, more bool, err error) {
	r.change.Lock()
	defer r.change.Unlock()
	now := r.now()
	assets, proposals, next := r.overdue(now)
	more = len(assets) > maxEnded || len(proposals) > maxEnded
	ended := decision{}
	for _, p := range proposals[:min(len(proposals), maxEnded)] {
		ended.settled = append(ended.settled, p.GetId())
		ended.records = append(ended.records, r.withdrawn("", p, "expired"))
	}
	for _, number := range assets[:min(len(assets), maxEnded)] {
		old, _ := r.lookup(r.byAsset, number)
		d, records := lapse(old, now)
		ended.devices = append(ended.devices, d)
		ended.records = append(ended.records, r.records("", d, records)...)
	}
	if len(ended.records) == 0 {
		return next, more, nil
	}
	if err := r.commit(ctx, ended); err != nil {
		return time.Time{}, false, fmt.Errorf("ending what is due: %w", err)
	}
	_, _, next = r.overdue(now)
	return next, more, nil
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
