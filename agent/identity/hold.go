package identity

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// ErrInUse is the error of Hold while another process has the directory.
var ErrInUse = errors.New("another pfoertner-agent reports with this state directory")

// Hold takes the state directory for the one process that reports with it, until
// it is closed or the process ends. Two streams of one device are what a copied
// TPM looks like: the collector would suspend the notebook. Enrolling and looking
// need no hold. It makes the directory if it is not there.
func Hold(dir string) (io.Closer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making state directory: %w", err)
	}
	held, err := hold(dir)
	if err != nil {
		return nil, fmt.Errorf("holding %s: %w", dir, err)
	}
	return held, nil
}
