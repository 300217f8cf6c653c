// Package durable writes the agent's small files so that a crash, a full disk
// or an empty battery leaves either the old content or the new one, never a
// part of it.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// WriteFile replaces the file's content: temporary file beside it, sync,
// rename, sync of the directory. When it returns nil, the content survives a
// loss of power. When it returns an error, the old content is untouched,
// unless only the last sync went wrong.
func WriteFile(name string, content []byte, mode fs.FileMode) error {
	return write(name, content, mode, os.Rename)
}

// Create is WriteFile for a file that must not be there yet: of several programs
// that create it at the same time one succeeds. The error of the others wraps
// fs.ErrExist.
func Create(name string, content []byte, mode fs.FileMode) error {
	return write(name, content, mode, os.Link)
}

// write fills a temporary file and puts it in place.
func write(name string, content []byte, mode fs.FileMode, place func(temp, name string) error) error {
	temp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	if err := fill(temp, content, mode); err != nil {
		return fmt.Errorf("writing %s: %w", temp.Name(), err)
	}
	if err := place(temp.Name(), name); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(name))
}

// Remove removes the file, if it is there, and the parts that interrupted calls
// of WriteFile have left beside it.
func Remove(name string) error {
	err := os.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	entries, listErr := os.ReadDir(filepath.Dir(name))
	if listErr != nil && !errors.Is(listErr, fs.ErrNotExist) {
		return errors.Join(err, listErr)
	}
	for _, e := range entries {
		random, ok := strings.CutPrefix(e.Name(), "."+filepath.Base(name)+".")
		if _, notNumber := strconv.ParseUint(random, 10, 64); ok && notNumber == nil {
			err = errors.Join(err, os.Remove(filepath.Join(filepath.Dir(name), e.Name())))
		}
	}
	return err
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
