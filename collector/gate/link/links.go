package link

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/collector/gate/session"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

// tryFor is how long one of several collectors may take to answer.
const tryFor = 2 * time.Second

// tryAgain is the pause before collectors that could not answer are asked
// again.
const tryAgain = 200 * time.Millisecond

// Links are the links to all collectors. They implement session.Collector.
type Links struct {
	links []*link

	mu sync.Mutex
	// up is closed, and replaced, when a link comes up.
	up chan struct{}
}

// Dial makes the links. It does not wait for the collectors: Run does.
func Dial(o Options) (*Links, error) {
	if len(o.Addresses) == 0 {
		return nil, errors.New("no collector is configured")
	}
	ls := &Links{up: make(chan struct{})}
	for _, address := range o.Addresses {
		l, err := dial(o, address, ls.cameUp)
		if err != nil {
			ls.close()
			return nil, err
		}
		ls.links = append(ls.links, l)
	}
	return ls, nil
}

// Run keeps the links until ctx ends, and closes them.
func (ls *Links) Run(ctx context.Context, k Keeper) error {
	defer ls.close()
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range ls.links {
		g.Go(func() error { return l.run(ctx, k) })
	}
	return g.Wait()
}

// Up is how many collectors are reachable.
func (ls *Links) Up() int {
	n := 0
	for _, l := range ls.links {
		if key, _ := l.state(); key != nil {
			n++
		}
	}
	return n
}

// Admit implements session.Collector: the collector that is furthest is asked
// first. While none can answer it tries again until ctx ends.
func (ls *Links) Admit(ctx context.Context, facts *gatev1.SessionFacts) (session.Answer, error) {
	for {
		changed := ls.change()
		answer, err := ls.tryAll(ctx, facts)
		if err == nil || !away(err) {
			return answer, err
		}
		select {
		case <-changed:
		case <-time.After(tryAgain):
		case <-ctx.Done():
			return session.Answer{}, err
		}
	}
}

// away says whether an error is that of a collector which is not there, or not
// yet ready.
func away(err error) bool {
	c := status.Code(err)
	return errors.Is(err, errDown) || c == codes.Unavailable || c == codes.DeadlineExceeded
}

// tryAll asks one after the other. Its error is that of the last which could
// be asked, errDown when none could.
func (ls *Links) tryAll(ctx context.Context, facts *gatev1.SessionFacts) (session.Answer, error) {
	order := slices.SortedStableFunc(slices.Values(ls.links), func(a, b *link) int {
		_, x := a.state()
		_, y := b.state()
		return y.Compare(x)
	})
	var failed error
	for _, l := range order {
		answer, err := func() (session.Answer, error) {
			ctx, cancel := context.WithTimeout(ctx, tryFor)
			defer cancel()
			return l.admit(ctx, facts)
		}()
		switch {
		case err == nil:
			return answer, nil
		case !errors.Is(err, errDown):
			failed = err
		}
	}
	return session.Answer{}, cmp.Or(failed, errDown)
}

// Report implements session.Collector: every collector is told.
func (ls *Links) Report(events ...*gatev1.SessionEvent) {
	for _, l := range ls.links {
		l.out.put(events...)
	}
}

func (ls *Links) change() <-chan struct{} {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.up
}

func (ls *Links) cameUp() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	close(ls.up)
	ls.up = make(chan struct{})
}

func (ls *Links) close() {
	for _, l := range ls.links {
		l.conn.Close()
	}
}
