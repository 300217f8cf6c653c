package session

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/agent/identity"
	"pfoertner/agent/status"
	"pfoertner/agent/testcollector"
	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// machine is a notebook whose posture the test sets. It is Collector and
// Watcher of the agent under test.
type machine struct {
	mu        sync.Mutex
	kernel    string
	encrypted bool
	pending   uint32
	asked     map[string]int           // by section: how often it was read
	stuck     map[string]chan struct{} // by section: its probe goes on when this is closed
	notify    chan []string
}

func newMachine() *machine {
	return &machine{
		kernel: "6.1.0-1", encrypted: true,
		asked: map[string]int{}, stuck: map[string]chan struct{}{}, notify: make(chan []string),
	}
}

func (m *machine) Collect(_ context.Context, sections ...string) *posturev1.Evidence {
	ev := &posturev1.Evidence{}
	for _, s := range sections {
		ev = posture.Merge(ev, m.read(s))
	}
	return ev
}

// read returns what a section was like when it was called, however long it
// takes.
func (m *machine) read(section string) *posturev1.Evidence {
	m.mu.Lock()
	m.asked[section]++
	ev, stuck := m.section(section), m.stuck[section]
	m.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	return ev
}

func (m *machine) section(name string) *posturev1.Evidence {
	observed := &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_OBSERVED, ObservedAt: timestamppb.Now()}
	switch name {
	case "platform":
		return &posturev1.Evidence{Platform: &posturev1.Platform{Reading: observed, KernelRelease: m.kernel}}
	case "patch":
		return &posturev1.Evidence{Patch: &posturev1.Patch{Reading: observed, PendingSecurity: m.pending}}
	case "volumes":
		layer := posturev1.LayerType_LAYER_TYPE_PARTITION
		if m.encrypted {
			layer = posturev1.LayerType_LAYER_TYPE_LUKS2
		}
		return &posturev1.Evidence{Volumes: &posturev1.Volumes{Reading: observed, Volumes: []*posturev1.Volume{{
			Reading: observed, Paths: []*posturev1.StoragePath{{Layers: []*posturev1.StorageLayer{{Type: layer}}}},
		}}}}
	}
	return nil
}

// stick makes the probe of a section hang from now on; calling what it returns
// lets it go on.
func (m *machine) stick(section string) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	stuck := make(chan struct{})
	m.stuck[section] = stuck
	return sync.OnceFunc(func() {
		m.mu.Lock()
		delete(m.stuck, section)
		m.mu.Unlock()
		close(stuck)
	})
}

func (m *machine) Watch(ctx context.Context, notify func(sections ...string)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case sections := <-m.notify:
			notify(sections...)
		}
	}
}

// change changes the machine and tells the agent's watcher.
func (m *machine) change(change func(*machine), sections ...string) {
	m.mu.Lock()
	change(m)
	m.mu.Unlock()
	m.notify <- sections
}

// reads is how often a section was read, and began to be.
func (m *machine) reads(section string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked[section]
}

// board remembers what the user would see.
type board struct {
	mu          sync.Mutex
	connections []status.Connection
	obstacles   []status.Obstacle
	contacts    int
	results     []*posturev1.Result
	changed     chan struct{}
}

func newBoard() *board { return &board{changed: make(chan struct{}, 1)} }

func (b *board) update(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	signal(b.changed)
}

func (b *board) Connection(c status.Connection) {
	b.update(func() { b.connections = append(b.connections, c) })
}

func (b *board) NotEnrolled(o status.Obstacle) {
	b.update(func() { b.connections, b.obstacles = append(b.connections, status.NotEnrolled), append(b.obstacles, o) })
}

func (b *board) Waiting(string) { b.Connection(status.Pending) }

func (b *board) Acknowledged(time.Time) { b.update(func() { b.contacts++ }) }

func (b *board) Judged(r *posturev1.Result) { b.update(func() { b.results = append(b.results, r) }) }

// await waits until the board looks as the test wants.
func (b *board) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	patience := testcollector.Within(t)
	for {
		b.mu.Lock()
		done := ok()
		b.mu.Unlock()
		if done {
			return
		}
		select {
		case <-b.changed:
		case <-patience.Done():
			t.Fatalf("%s: never", what)
		}
	}
}

func (b *board) shows(t *testing.T, c status.Connection) {
	t.Helper()
	b.await(t, "board shows "+string(c), func() bool {
		return len(b.connections) > 0 && b.connections[len(b.connections)-1] == c
	})
}

// running is an agent under test.
type running struct {
	*agent
	machine *machine
	board   *board
	ended   chan error
	stop    func()
}

// start runs an agent with short waits; it ends with the test.
func start(t *testing.T, c *testcollector.Collector, state *identity.State, adjust ...func(*agent)) *running {
	t.Helper()
	m, b := newMachine(), newBoard()
	a := newAgent(Options{
		Target: c.Target(), State: state, Collector: m, Watcher: m, Board: b,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	a.retry.Base, a.retry.Cap = time.Millisecond, 10*time.Millisecond
	for _, f := range adjust {
		f(a)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{agent: a, machine: m, board: b, ended: make(chan error, 1), stop: cancel}
	var running sync.WaitGroup
	running.Go(func() { r.ended <- a.run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return r
}
