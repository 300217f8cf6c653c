//go:build !windows

package identity

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// hold locks the directory itself (flock(2)): nothing is left in it.
func hold(dir string) (io.Closer, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}
