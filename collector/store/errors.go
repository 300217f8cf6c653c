package store

import "errors"

var (
	// ErrClosed: the store was closed; nothing was written.
	ErrClosed = errors.New("store is closed")
	// ErrFull: the disk, or what the database may use of it, is full; nothing
	// was written.
	ErrFull = errors.New("disk is full")
	// ErrNewerSchema: a newer collector has written the database; this one
	// would not understand it.
	ErrNewerSchema = errors.New("database was written by a newer version")
)
