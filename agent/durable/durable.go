// Package durable writes the agent's small files so that a crash, a full disk
// or an empty battery leaves either the old content or the new one, never a
// part of it.
package durable

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// WriteFile replaces the file's content: temporary file beside it, sync,
// rename, sync of the directory. When it returns nil, the content survives a
// loss of power. When it returns an error, the old content is untouched,
// unless only the last sync went wrong.
func WriteFile(name string, content []byte, mode fs.FileMode) error {
	temp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	if err := fill(temp, content, mode); err != nil {
		return fmt.Errorf("writing %s: %w", temp.Name(), err)
	}
	if err := os.Rename(temp.Name(), name); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(name))
}

func fill(f *os.File, content []byte, mode fs.FileMode) error {
	err := f.Chmod(mode)
	if err == nil {
		_, err = f.Write(content)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// syncDirectory makes the rename itself durable. Windows has no such call: its
// file systems journal the rename.
func syncDirectory(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
