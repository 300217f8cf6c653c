package authority

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// owned gives a file that root writes to the owner of its directory: the
// service that has to read it may not be root.
func owned(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	if dir, ok := info.Sys().(*syscall.Stat_t); ok {
		return f.Chown(int(dir.Uid), int(dir.Gid))
	}
	return nil
}

// lock keeps other programs from changing the directory at the same time. It
// ends with the process at the latest.
func lock(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		d.Close()
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}
