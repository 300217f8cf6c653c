package tunnel

import (
	"context"
	"slices"
	"sync"
)

// Runner works until its context ends.
type Runner interface{ Run(ctx context.Context) }

// Start has r run beside the caller; stop ends it and waits for its end.
func Start(ctx context.Context, r Runner) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	return func() {
		cancel()
		running.Wait()
	}
}

// Watcher tells which sections of evidence may have changed (probe.Watcher).
type Watcher interface {
	Watch(ctx context.Context, notify func(sections ...string)) error
}

// Following is w, but the prover hears of changed links too.
func (p *Prover) Following(w Watcher) Watcher { return following{w, p} }

type following struct {
	Watcher
	prover *Prover
}

// Watch implements Watcher.
func (f following) Watch(ctx context.Context, notify func(sections ...string)) error {
	return f.Watcher.Watch(ctx, func(sections ...string) {
		if len(sections) == 0 || slices.Contains(sections, "vpn") {
			f.prover.Changed()
		}
		notify(sections...)
	})
}
