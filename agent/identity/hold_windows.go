package identity

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

const (
	heldName = "running"
	// winbase.h and winerror.h
	fileFlagDeleteOnClose = 0x04000000
	errorSharingViolation = syscall.Errno(32)
)

// hold opens a file that nobody else can open meanwhile. The system removes it
// with the handle.
func hold(dir string) (io.Closer, error) {
	name := filepath.Join(dir, heldName)
	text, err := syscall.UTF16PtrFromString(name)
	if err != nil {
		return nil, err
	}
	h, err := syscall.CreateFile(text, syscall.GENERIC_WRITE, 0, nil, syscall.OPEN_ALWAYS,
		syscall.FILE_ATTRIBUTE_NORMAL|fileFlagDeleteOnClose, 0)
	if errors.Is(err, errorSharingViolation) {
		return nil, ErrInUse
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(h), name), nil
}
