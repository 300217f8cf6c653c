// Package store keeps what the collector must not forget: inventory, reports,
// refusals, tokens, credentials, policies and the audit log.
//
// Rules. Nothing else knows SQL. The package speaks protobuf messages and plain
// values; what is not there is an error that wraps fs.ErrNotExist, what must
// not be there twice one that wraps fs.ErrExist. A method that writes returns
// nil only after its change is committed to the disk (fsync), together with the
// audit records given to it, and an error only if nothing of it is there; an
// ended context makes no exception.
//
// The way of a write: method → writer (one goroutine, many callers to a
// commit) → database. Reads go past it, on connections that cannot write.
//
// Each method has its file by topic; what SQLite and PostgreSQL do differently
// is in dialect.go and migrations/.
package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"

	"pfoertner/collector/audit"
)

// Options of a Store. Zero values are good ones.
type Options struct {
	// Readers is how many reads run at the same time; zero is 4.
	Readers int
	// MaxGroup is how many writes share one commit at most; zero is 256.
	MaxGroup int
	// Committed is told how many writes each commit held, by the writer: it must
	// be quick. Nil is nobody.
	Committed func(writes int)
}

// Store is an open database. Its methods may be called concurrently.
type Store struct {
	reads  *sql.DB
	writes *sql.DB
	writer *writer
	closed atomic.Bool
}

// Open opens the database at path, makes it when there is none, and brings its
// schema up to date. It returns an error that wraps ErrNewerSchema for a
// database that a newer collector has written. End it with Close.
func Open(ctx context.Context, path string, o Options) (*Store, error) {
	s := &Store{}
	if err := s.open(ctx, path, o); err != nil {
		return nil, fmt.Errorf("opening store %s: %w", path, errors.Join(err, s.Close()))
	}
	return s, nil
}

func (s *Store) open(ctx context.Context, path string, o Options) (err error) {
	scripts, err := migrations()
	if err != nil {
		return err
	}
	if s.writes, err = openWrites(path); err != nil {
		return err
	}
	conn, err := s.writes.Conn(ctx)
	if err != nil {
		return err
	}
	if err := migrate(ctx, conn, scripts); err != nil {
		return errors.Join(err, conn.Close())
	}
	if s.reads, err = openReads(path, cmp.Or(o.Readers, 4)); err != nil {
		return errors.Join(err, conn.Close())
	}
	s.writer = startWriter(conn, cmp.Or(o.MaxGroup, 256), o.Committed)
	return nil
}

// Close commits what callers still wait for and closes the database. Calls
// after it return an error that wraps ErrClosed.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	var errs []error
	if s.writer != nil {
		errs = append(errs, s.writer.close())
	}
	for _, db := range []*sql.DB{s.reads, s.writes} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// Ping returns an error unless the database takes writes and answers reads.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.writer.write(ctx, func(*tx) error { return nil }); err != nil {
		return fmt.Errorf("pinging store: %w", err)
	}
	if err := s.reads.PingContext(ctx); err != nil {
		return fmt.Errorf("pinging store: %w", err)
	}
	return nil
}

// change is the way of every write: do, then the audit records of it, in one
// transaction. what names it in errors; a nil do only records.
func (s *Store) change(ctx context.Context, what string, records []audit.Record, do func(*tx) error) error {
	for _, r := range records {
		if err := r.Validate(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	err := s.writer.write(ctx, func(t *tx) error {
		if do != nil {
			if err := do(t); err != nil {
				return err
			}
		}
		return t.appendAudit(records)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// NextEpoch returns a number that is higher by one with every call, over all
// runs of the collector; the first is 1.
func (s *Store) NextEpoch(ctx context.Context) (uint64, error) {
	var epoch uint64
	err := s.change(ctx, "counting epoch", nil, func(t *tx) error {
		_, err := t.exec(`INSERT INTO counters (name, value) VALUES ('epoch', 1)
			ON CONFLICT (name) DO UPDATE SET value = counters.value + 1`)
		if err != nil {
			return err
		}
		return t.read(`SELECT value FROM counters WHERE name = 'epoch'`, nil, &epoch)
	})
	if err != nil {
		return 0, err
	}
	return epoch, nil
}
