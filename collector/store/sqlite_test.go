package store

import (
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"pfoertner/collector/audit"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// meddle does to the database file what no method of Store does.
func meddle(t *testing.T, path, statement string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	check(t, err)
	defer db.Close()
	_, err = db.Exec(statement, args...)
	check(t, err)
}

func TestADatabaseOfANewerCollectorIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pfoertner.db")
	check(t, open(t, path, Options{}).Close())
	meddle(t, path, `UPDATE schema_version SET version = 99`)
	s, err := Open(t.Context(), path, Options{})
	wants(t, err, ErrNewerSchema)
	if s != nil {
		t.Error("and yet it was opened")
	}
}

// An update that breaks off leaves the database as the last whole migration
// made it, and the next start goes on from there.
func TestAMigrationIsWholeOrNotAtAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pfoertner.db")
	scripts := fstest.MapFS{
		"0001_a.sql": {Data: []byte(`CREATE TABLE a (x INTEGER); INSERT INTO a VALUES (1);`)},
		"0002_b.sql": {Data: []byte(`UPDATE a SET x = 2; CREATE TABLE b (x INTEGER); INSERT INTO nowhere VALUES (1);`)},
	}
	run := func() (x, version int, err error) {
		db, errOpen := openWrites(path)
		check(t, errOpen)
		defer db.Close()
		conn, errConn := db.Conn(t.Context())
		check(t, errConn)
		err = migrate(t.Context(), conn, scripts)
		check(t, conn.Close())
		db2, errOpen := sql.Open("sqlite", path)
		check(t, errOpen)
		defer db2.Close()
		check(t, db.Close())
		check(t, db2.QueryRow(`SELECT x, version FROM a, schema_version`).Scan(&x, &version))
		return x, version, err
	}
	if x, version, err := run(); err == nil || !strings.Contains(err.Error(), "0002_b.sql") || x != 1 || version != 1 {
		t.Errorf("broken: %v, x %d, version %d", err, x, version)
	}
	scripts["0002_b.sql"] = &fstest.MapFile{Data: []byte(`UPDATE a SET x = x + 1; CREATE TABLE b (x INTEGER);`)}
	for range 2 {
		if x, version, err := run(); err != nil || x != 2 || version != 2 {
			t.Errorf("mended: %v, x %d, version %d", err, x, version)
		}
	}
}

// A collector that is brought up to date keeps what the one before it wrote.
func TestADatabaseOfTheFirstSchemaIsBroughtUpToDate(t *testing.T) {
	all, err := migrations()
	check(t, err)
	path := filepath.Join(t.TempDir(), "pfoertner.db")
	first, err := fs.ReadFile(all, "0001_begin.sql")
	check(t, err)
	db, err := openWrites(path)
	check(t, err)
	conn, err := db.Conn(t.Context())
	check(t, err)
	check(t, migrate(t.Context(), conn, fstest.MapFS{"0001_begin.sql": {Data: first}}))
	check(t, conn.Close())
	check(t, db.Close())
	meddle(t, path, `INSERT INTO devices (asset_number, device_id, body) VALUES ('NB-1', ?, X'')`, deviceID(1))
	meddle(t, path, `INSERT INTO credentials (device_id, spki_sha256, serial, not_after) VALUES (?, CAST('one' AS BLOB), '01', ?)`, deviceID(1), morning.UnixNano())

	s := open(t, path, Options{})
	wantKeys(t, s, deviceID(1), "one01", "")
	check(t, s.RenewCredential(t.Context(), deviceID(1), []byte("one"), []byte("two"), "02", morning))
	wantKeys(t, s, deviceID(1), "two02", "one01")
}

func TestWhatIsNoDatabaseIsRefusedAndLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "letter.txt")
	letter := strings.Repeat("Sehr geehrte Damen und Herren, ", 100)
	check(t, os.WriteFile(path, []byte(letter), 0o600))
	if _, err := Open(t.Context(), path, Options{}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want an error that names the file", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != letter {
		t.Error("the file was changed")
	}
	if _, err := Open(t.Context(), filepath.Join(t.TempDir(), "none", "pfoertner.db"), Options{}); err == nil {
		t.Error("opened in a directory that is not there")
	}
}

func TestAnyPathOpensThatFileAndNoOther(t *testing.T) {
	for _, name := range []string{"a b.db", "größe.db", "what?mode=memory", "100%41.db", "a#b;c.db", "file:x.db"} {
		path := filepath.Join(t.TempDir(), name)
		s := open(t, path, Options{})
		enrol(t, s, 1)
		info, err := os.Stat(path)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%q has mode %v: others can read the fleet's evidence", name, info.Mode())
		}
		if info, err := os.Stat(path + "-wal"); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%q: write-ahead log: %v %v", name, info, err)
		}
		if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 3 {
			t.Errorf("%q: files %v, want the database, its log and its index", name, entries)
		}
	}
}

func TestReadersCannotWrite(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "pfoertner.db"), Options{})
	if _, err := s.reads.Exec(`DELETE FROM audit`); err == nil {
		t.Error("a reading connection deleted records")
	}
}

func TestCommitsGoToTheDisk(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "pfoertner.db"), Options{})
	check(t, s.writer.write(t.Context(), func(tx *tx) error {
		for pragma, want := range map[string]string{"synchronous": "2", "journal_mode": "wal", "foreign_keys": "1"} {
			var got string
			if err := tx.read(`PRAGMA `+pragma, nil, &got); err != nil {
				return err
			}
			if got != want {
				t.Errorf("%s is %s, want %s", pragma, got, want)
			}
		}
		return nil
	}))
}

// A full disk is an error that says so. What was acknowledged stays, and when
// there is room again, writing goes on.
func TestAFullDiskLosesNothing(t *testing.T) {
	s, ctx := open(t, filepath.Join(t.TempDir(), "pfoertner.db"), Options{}), t.Context()
	enrol(t, s, 200)
	limit := func(pages int) {
		t.Helper()
		check(t, s.writer.write(ctx, func(tx *tx) error {
			var now int
			return tx.read(fmt.Sprintf(`PRAGMA max_page_count = %d`, pages), nil, &now)
		}))
	}
	limit(150)
	ev, res := threeKB()
	saved := 0
	var err error
	for ; saved < 200; saved++ {
		record := audit.Record{At: morning, Kind: "verdict.changed", DeviceID: deviceID(saved)}
		if err = s.SaveReport(ctx, deviceID(saved), ev, res, record); err != nil {
			break
		}
	}
	wants(t, err, ErrFull)
	if saved == 0 || saved == 200 {
		t.Fatalf("%d reports were saved before the disk was full", saved)
	}
	count := func() (n int) {
		check(t, s.EachResult(ctx, func(string, *posturev1.Result) error { n++; return nil }))
		return n
	}
	if n := count(); n != saved {
		t.Errorf("%d reports are there, %d were acknowledged", n, saved)
	}
	if n := wholeChain(t, s); n != uint64(saved) {
		t.Errorf("%d audit records, want %d", n, saved)
	}
	limit(1 << 20)
	check(t, s.SaveReport(ctx, deviceID(saved), ev, res, audit.Record{At: morning, Kind: "verdict.changed"}))
	if n := count(); n != saved+1 {
		t.Errorf("%d reports when there was room again, want %d", n, saved+1)
	}
	wholeChain(t, s)
}

// What somebody does to the audit table is found, a cut off end too.
func TestMeddlingWithTheAuditTableIsFound(t *testing.T) {
	for name, tt := range map[string]struct {
		statement string
		want      string
	}{
		"changed":  {`UPDATE audit SET actor = 'nobody' WHERE sequence = 4`, "record 4 does not match its hash"},
		"details":  {`UPDATE audit SET details = 'no json' WHERE sequence = 4`, "record 4 does not match its hash"},
		"missing":  {`DELETE FROM audit WHERE sequence = 4`, "record 4 is missing"},
		"cut off":  {`DELETE FROM audit WHERE sequence > 7`, "records 8 to 10 are missing"},
		"all gone": {`DELETE FROM audit`, "records 1 to 10 are missing"},
		"no head":  {`DELETE FROM audit_head`, "records go on to 10, behind the head at 0"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "pfoertner.db")
			s := open(t, path, Options{})
			for range 10 {
				check(t, s.AppendAudit(t.Context(), audit.Record{At: morning, Kind: "token.created", Details: map[string]string{"a": "b"}}))
			}
			meddle(t, path, tt.statement)
			v := audit.NewVerifier()
			check(t, s.EachAudit(t.Context(), 0, func(r audit.Sealed) error {
				v.Next(r)
				return nil
			}))
			faults := v.Finish(must(s.AuditHead(t.Context()))(t).Head())
			if len(faults) != 1 || faults[0].Message != tt.want {
				t.Errorf("got %+v, want %q", faults, tt.want)
			}
		})
	}
}
