package probe

import (
	"os"
	"time"
)

// NewHost returns the machine this program runs on.
func NewHost() Host {
	return Host{
		Files: os.DirFS("/"),
		Now:   time.Now,
	}
}
