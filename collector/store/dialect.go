package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Everything that is SQLite's own is in this file and in migrations/sqlite: how
// to open, how to begin, what its errors mean. All other files use the SQL that
// SQLite and PostgreSQL share, with ? for parameters.

//go:embed migrations/sqlite/*.sql
var embedded embed.FS

func migrations() (fs.FS, error) { return fs.Sub(embedded, "migrations/sqlite") }

const begin = "BEGIN IMMEDIATE"

// pragmas of the writing connection. WAL with synchronous FULL: a commit is on
// the disk when it returns. The checkpoint comes late enough that it rarely
// holds up a commit; the file it bounds stays near 32 MiB. A larger cache than
// 16 MiB costs twice its size in memory and writes no faster, as a fleet's
// reports come in no order.
var pragmas = []string{
	"busy_timeout(5000)", "journal_mode(wal)", "synchronous(full)", "foreign_keys(on)",
	"wal_autocheckpoint(8000)", "cache_size(-16384)", "trusted_schema(off)",
}

func openWrites(path string) (*sql.DB, error) {
	// SQLite gives its other files the mode of the first: nobody else reads the
	// fleet's evidence.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", dataSource(path, "rw", pragmas...))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

func openReads(path string, connections int) (*sql.DB, error) {
	db, err := sql.Open("sqlite", dataSource(path, "ro", "busy_timeout(5000)", "query_only(on)", "trusted_schema(off)"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

func dataSource(path, mode string, pragmas ...string) string {
	query := url.Values{"mode": {mode}, "_pragma": pragmas}
	return "file:" + strings.ReplaceAll(url.PathEscape(path), "%2F", "/") + "?" + query.Encode()
}

func tableExists(ctx context.Context, conn *sql.Conn, name string) (bool, error) {
	var n int
	err := conn.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?`, name).Scan(&n)
	return n > 0, err
}

// translate says what a database error means to callers.
func translate(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return fs.ErrNotExist
	}
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch code := e.Code(); {
	case code == sqlite3.SQLITE_CONSTRAINT_UNIQUE || code == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
		return fmt.Errorf("%w: %w", fs.ErrExist, err)
	case code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return fmt.Errorf("what it belongs to: %w: %w", fs.ErrNotExist, err)
	case code&0xff == sqlite3.SQLITE_FULL:
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}
