package session

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"
)

const (
	// lastWords is how long a client gets to hear why it has to leave. Its
	// packets no longer pass.
	lastWords = 100 * time.Millisecond
	// endWithin is how long a session may take to end when it can only be asked
	// to (OpenVPN's client-kill takes five seconds), forceWithin when it is
	// ended by any means.
	endWithin   = 8 * time.Second
	forceWithin = 3 * time.Second
)

var errSurvives = errors.New("the server still lists the session, or does not answer")

// cut ends sessions whose packets were cut at the given time: connections,
// then the session, then it looks whether it is gone.
func (k *Keeper) cut(ctx context.Context, cuts []Cut, packets time.Time, filtered bool) {
	servers := map[string][]Cut{}
	for _, c := range cuts {
		servers[c.Server] = append(servers[c.Server], c)
	}
	for server, cuts := range servers {
		k.work.Go(func() {
			var addresses []netip.Addr
			for _, c := range cuts {
				addresses = append(addresses, c.Addresses...)
			}
			k.forget(addresses)
			k.end(ctx, k.o.Drivers[server], cuts, func(c Cut, survives error) {
				after := time.Since(c.Since)
				p := packets.Sub(c.Since)
				if !filtered { // then nothing but the end of the session stopped them
					p = after
				}
				k.in.put(gone{Cut: c, packets: p, after: after, survives: survives})
			})
		})
	}
}

// end ends sessions and tells of each when it is gone, or that it survives.
func (k *Keeper) end(ctx context.Context, d Driver, cuts []Cut, told func(Cut, error)) {
	for _, c := range cuts {
		if err := d.Dismiss(ctx, c.Key, c.Text); err != nil {
			k.o.Log.Debug("client not dismissed", "session", c.ID, "error", err)
		}
	}
	select {
	case <-time.After(lastWords):
	case <-ctx.Done():
	}
	for _, try := range []struct {
		force  bool
		within time.Duration
	}{{false, endWithin}, {true, forceWithin}} {
		err := d.End(ctx, keys(cuts), try.force)
		if err != nil {
			k.o.Log.Warn("session not ended", "error", err)
		}
		cuts = k.awaitEnd(ctx, d, cuts, try.within, told)
		if len(cuts) == 0 || ctx.Err() != nil {
			return
		}
	}
	for _, c := range cuts {
		told(c, errSurvives)
	}
}

// awaitEnd looks until the server no longer lists the sessions, and returns
// those that it still lists when the time is over.
func (k *Keeper) awaitEnd(ctx context.Context, d Driver, cuts []Cut, within time.Duration, told func(Cut, error)) []Cut {
	deadline := time.Now().Add(within)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		if live, err := d.Live(ctx); err == nil {
			cuts = slices.DeleteFunc(slices.Clone(cuts), func(c Cut) bool {
				if slices.ContainsFunc(live, func(l Live) bool { return l.Key == c.Key }) {
					return false
				}
				told(c, nil)
				return true
			})
		}
		if len(cuts) == 0 || time.Now().After(deadline) {
			return cuts
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return cuts
		}
	}
}

// confirm tells the collector that a session is gone.
func (k *Keeper) confirm(g gone, now time.Time) Todo {
	todo := k.book.Gone(g.Key, g.ID, g.survives, now)
	if g.survives == nil {
		k.o.Metrics.cut(deny, g.packets)
		k.o.Log.Info("session cut", "session", g.ID, "packets_cut_after", g.packets, "session_gone_after", g.after)
		confirmed := cutEvent(g.ID, g.Cause, deny, g.packets, g.after, now)
		todo.Reports = slices.Insert(todo.Reports, 0, confirmed)
	}
	return todo
}

func keys(cuts []Cut) []Key {
	out := make([]Key, len(cuts))
	for i, c := range cuts {
		out[i] = c.Key
	}
	return out
}
