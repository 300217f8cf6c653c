package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"pfoertner/collector/audit"
)

// writer is the one goroutine that writes. While it commits one group of jobs,
// the next one gathers; so many callers share the price of one fsync, and a
// lone one does not wait for others.
type writer struct {
	conn      *sql.Conn
	maxGroup  int
	committed func(writes int)
	stopped   chan struct{}

	mu     sync.Mutex
	queue  []*job
	wake   chan struct{} // holds one token when queue or closed changed
	closed bool
}

// job is one caller's change. do may run twice and must only assign results.
type job struct {
	do    func(*tx) error
	done  chan error
	taken atomic.Bool // by the writer, or by its caller who gave up
}

func startWriter(conn *sql.Conn, maxGroup int, committed func(writes int)) *writer {
	w := &writer{conn: conn, maxGroup: maxGroup, committed: committed, stopped: make(chan struct{}), wake: make(chan struct{}, 1)}
	go w.run()
	return w
}

// write runs do in a transaction and returns after its commit. do checks first
// and writes then: an error before the first write costs the others in the
// group nothing. A ctx that ends takes the job back as long as it waits; once
// the writer works on it, write waits for the outcome, so that it is known.
func (w *writer) write(ctx context.Context, do func(*tx) error) error {
	j := &job{do: do, done: make(chan error, 1)}
	if err := w.enqueue(j); err != nil {
		return err
	}
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		if j.taken.CompareAndSwap(false, true) {
			return ctx.Err()
		}
		return <-j.done
	}
}

func (w *writer) enqueue(j *job) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return ErrClosed
	}
	w.queue = append(w.queue, j)
	w.signal()
	return nil
}

func (w *writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// close waits until all that was queued is committed.
func (w *writer) close() error {
	w.mu.Lock()
	w.closed = true
	w.signal()
	w.mu.Unlock()
	<-w.stopped
	return w.conn.Close()
}

func (w *writer) run() {
	defer close(w.stopped)
	statements := &statements{conn: w.conn, prepared: map[string]*sql.Stmt{}}
	defer statements.close()
	for {
		group, closed := w.next()
		switch {
		case len(group) > 0:
			w.commit(statements, group)
		case closed:
			return
		default:
			<-w.wake
		}
	}
}

// next takes the next group off the queue.
func (w *writer) next() (group []*job, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) > 0 && len(group) < w.maxGroup {
		if j := w.queue[0]; j.taken.CompareAndSwap(false, true) {
			group = append(group, j)
		}
		w.queue = w.queue[1:]
	}
	return group, w.closed
}

// commit makes the changes of a group durable and answers its callers. A job
// that fails, fails alone: the others are done again, this time each behind a
// savepoint.
func (w *writer) commit(st *statements, group []*job) {
	answers := make([]error, len(group))
	err := attempt(st, group, answers, false)
	if errors.Is(err, errSpoiled) {
		err = attempt(st, group, answers, true)
	}
	if err == nil && w.committed != nil {
		w.committed(len(group))
	}
	for i, j := range group {
		if err != nil {
			answers[i] = err
		}
		j.done <- answers[i]
	}
}

// errSpoiled: a job failed after it had begun to write.
var errSpoiled = errors.New("transaction spoiled by one of its jobs")

// attempt runs the group in one transaction and fills in the answers. An error
// means that nothing was committed.
func attempt(st *statements, group []*job, answers []error, savepoints bool) error {
	if _, err := st.exec(begin); err != nil {
		return fmt.Errorf("beginning transaction: %w", translate(err))
	}
	err := runJobs(st, group, answers, savepoints)
	if err == nil {
		if _, err = st.exec(`COMMIT`); err == nil {
			return nil
		}
		err = fmt.Errorf("committing: %w", translate(err))
	}
	// After some errors SQLite has rolled back by itself; then this one fails,
	// and the state is the same.
	_, _ = st.exec(`ROLLBACK`)
	return err
}

func runJobs(st *statements, group []*job, answers []error, savepoints bool) error {
	t := &tx{statements: st}
	for i, j := range group {
		if savepoints {
			if _, err := st.exec(`SAVEPOINT job`); err != nil {
				return fmt.Errorf("setting savepoint: %w", translate(err))
			}
		}
		t.dirty = false
		err := j.do(t)
		answers[i] = err
		switch {
		case err == nil || !t.dirty:
		case !savepoints:
			return errSpoiled
		default:
			if _, rollback := st.exec(`ROLLBACK TO job`); rollback != nil {
				return err // the whole transaction is gone: disk full, I/O error
			}
			t.head = nil
		}
		if savepoints {
			if _, err := st.exec(`RELEASE job`); err != nil {
				return fmt.Errorf("releasing savepoint: %w", translate(err))
			}
		}
	}
	return nil
}

// tx is what a job sees of the transaction.
type tx struct {
	*statements
	// dirty: this job has tried to write or met an error of the database.
	dirty bool
	// head of the audit log as of this transaction; nil until it is needed.
	head *audit.Head
}

// exec changes something and says how many rows it touched.
func (t *tx) exec(query string, args ...any) (int64, error) {
	t.dirty = true
	res, err := t.statements.exec(query, args...)
	if err != nil {
		return 0, translate(err)
	}
	return res.RowsAffected()
}

// read asks for one row; with none, the error wraps fs.ErrNotExist.
func (t *tx) read(query string, args []any, dest ...any) error {
	stmt, err := t.prepare(query)
	if err == nil {
		err = stmt.QueryRow(args...).Scan(dest...)
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		t.dirty = true
	}
	return translate(err)
}

// statements are prepared once for the writing connection and kept. They run
// without a caller's context: a group belongs to many callers.
type statements struct {
	conn     *sql.Conn
	prepared map[string]*sql.Stmt
}

func (s *statements) exec(query string, args ...any) (sql.Result, error) {
	stmt, err := s.prepare(query)
	if err != nil {
		return nil, err
	}
	return stmt.Exec(args...)
}

func (s *statements) prepare(query string) (*sql.Stmt, error) {
	if stmt, ok := s.prepared[query]; ok {
		return stmt, nil
	}
	stmt, err := s.conn.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, err
	}
	s.prepared[query] = stmt
	return stmt, nil
}

func (s *statements) close() {
	for _, stmt := range s.prepared {
		_ = stmt.Close()
	}
}
