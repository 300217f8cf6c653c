//go:build windows

package service

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/windows"
)

// On the real file system: what protect decides is what Windows then knows.
func TestDirectoriesAreClosedOnTheRealFileSystem(t *testing.T) {
	root := t.TempDir()
	d := Directories{
		Base: filepath.Join(root, "Pfoertner"), State: filepath.Join(root, "Pfoertner", "agent"),
		Public: filepath.Join(root, "Pfoertner", "public"), Readable: filepath.Join(root, "Pfoertner", "agent.yaml"),
	}
	for _, round := range []string{"made", "made before"} {
		if aside, err := Protect(d); err != nil || len(aside) > 0 {
			t.Fatalf("%s: %v, %v", round, aside, err)
		}
		if err := os.WriteFile(d.Readable, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{d.Base, d.State, d.Public, d.Readable} {
		sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s", path, sd)
	}
}
