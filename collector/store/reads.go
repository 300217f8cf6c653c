package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// pageSize is how many rows one read takes from the database at once.
const pageSize = 500

// row reads one row; with none, the error wraps fs.ErrNotExist.
func (s *Store) row(ctx context.Context, query string, args []any, dest ...any) error {
	if s.closed.Load() {
		return ErrClosed
	}
	return translate(s.reads.QueryRowContext(ctx, query, args...).Scan(dest...))
}

// list reads all rows of a query.
func list[T any](ctx context.Context, s *Store, scan func(*sql.Rows) (T, error), query string, args ...any) (found []T, err error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	rows, err := s.reads.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, translate(err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		found = append(found, one)
	}
	return found, translate(rows.Err())
}

// each hands out a whole table in the order of its key, page by page: no
// connection is held while fn works, so fn may take its time and use the store.
// Rows that change meanwhile come as they were or as they are. query takes the
// key to go on behind and the number of rows.
func each[K, T any](ctx context.Context, s *Store, from K, key func(T) K, scan func(*sql.Rows) (T, error), query string, fn func(T) error) error {
	for {
		page, err := list(ctx, s, scan, query, from, pageSize)
		if err != nil {
			return err
		}
		for _, one := range page {
			if err := fn(one); err != nil {
				return fmt.Errorf("%v: %w", key(one), err)
			}
		}
		if len(page) < pageSize {
			return nil
		}
		from = key(page[len(page)-1])
	}
}
