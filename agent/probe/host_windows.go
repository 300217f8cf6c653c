package probe

import "time"

// NewHost returns the machine this program runs on. What it leaves nil makes
// the sections that need it FAILED, with that reason.
func NewHost() Host {
	return Host{
		System: runningSystem{},
		Now:    time.Now,
	}
}
