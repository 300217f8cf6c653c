//go:build linux

package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
)

// watchAgain is the pause before the kernel is asked again for its news.
const watchAgain = 100 * time.Millisecond

// Guard puts the table back whenever others delete it, as a firewall does that
// is reloaded with `flush ruleset`. It comes back closed: lost is called with
// nil, and access has to be applied anew. What fails is told to lost as well,
// and tried again. Guard returns when ctx ends, with its error.
func (f *Filter) Guard(ctx context.Context, lost func(error)) error {
	for {
		err := f.watch(ctx, func() { lost(nil) })
		if ctx.Err() != nil {
			return ctx.Err()
		}
		lost(fmt.Errorf("watching packet filter: %w", err))
		select {
		case <-ctx.Done():
		case <-time.After(watchAgain):
		}
	}
}

// watch looks after the table until ctx ends or the kernel tells no more.
func (f *Filter) watch(ctx context.Context, lost func()) error {
	conn, err := f.dial()
	if err != nil {
		return err
	}
	monitor := nftables.NewMonitor(nftables.WithMonitorObject(nftables.MonitorObjectTables))
	news, err := conn.AddGenerationalMonitor(monitor)
	if err != nil {
		return err
	}
	defer func() {
		monitor.Close() // an error says that it is closed
		for range news {
			continue // the monitor may wait to be heard
		}
	}()
	for changed := true; ; {
		if changed {
			back, err := f.putBack()
			if err != nil {
				return err
			}
			if back {
				lost()
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case n, ok := <-news:
			if !ok {
				return errors.New("the kernel's news ended")
			}
			if err := n.GeneratedBy.Error; err != nil {
				return err
			}
			changed = slices.ContainsFunc(n.Changes, func(e *nftables.MonitorEvent) bool {
				return e.Type == nftables.MonitorEventTypeDelTable
			})
		}
	}
}

// putBack installs the table if it is gone, and says whether it was.
func (f *Filter) putBack() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn, err := f.dial()
	if err != nil {
		return false, err
	}
	tables, err := conn.ListTablesOfFamily(f.table.Family)
	if err != nil {
		return false, fmt.Errorf("listing tables: %w", err)
	}
	if slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == f.table.Name }) {
		return false, nil
	}
	if err := f.install(false); err != nil {
		return false, fmt.Errorf("installing packet filter: %w", err)
	}
	return true, nil
}
