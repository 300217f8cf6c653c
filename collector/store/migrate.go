package store

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
)

// migrate brings the schema up to date, one transaction for each file in the
// order of their names. The schema's version is the number of files applied.
//
// A file that does not apply is an error: the caller closes the connection,
// which leaves the schema as the file before made it.
func migrate(ctx context.Context, conn *sql.Conn, scripts fs.FS) error {
	files, err := fs.Glob(scripts, "*.sql")
	if err != nil {
		return err
	}
	version, err := schemaVersion(ctx, conn)
	if err != nil {
		return fmt.Errorf("reading schema version: %w", err)
	}
	if version > len(files) {
		return fmt.Errorf("schema version %d, this program knows %d: %w", version, len(files), ErrNewerSchema)
	}
	for i, file := range files[version:] {
		if err := applyMigration(ctx, conn, scripts, file, version+i+1); err != nil {
			return fmt.Errorf("migration %s: %w", file, err)
		}
	}
	return nil
}

func schemaVersion(ctx context.Context, conn *sql.Conn) (version int, err error) {
	exists, err := tableExists(ctx, conn, "schema_version")
	if err != nil || !exists {
		return 0, err
	}
	err = conn.QueryRowContext(ctx, `SELECT version FROM schema_version`).Scan(&version)
	return version, err
}

func applyMigration(ctx context.Context, conn *sql.Conn, scripts fs.FS, file string, version int) error {
	script, err := fs.ReadFile(scripts, file)
	if err != nil {
		return err
	}
	statements := []string{
		begin,
		`CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)`,
		string(script),
		`DELETE FROM schema_version`,
		fmt.Sprintf(`INSERT INTO schema_version (version) VALUES (%d)`, version),
		`COMMIT`,
	}
	for _, statement := range statements {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}
