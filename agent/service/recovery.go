package service

import (
	"slices"
	"time"
)

// settings are what the service control manager has to know beyond the name. An
// MSI's table of services can't say all of it, and administrators' tools undo
// it, so the service puts it right whenever it starts.
type settings struct {
	// Delayed: started after the others, so that a boot is not slower for it.
	Delayed bool
	// Restarts are the waits before the first, second, … restart after a
	// failure; the last one holds for all that follow.
	Restarts []time.Duration
	// Reset is after how long without a failure the first wait is due again.
	Reset time.Duration
	// NonCrash: an end with an error is a failure too, not only a crash.
	NonCrash bool
}

// wanted are the settings of this service. A service that dies at every start is
// restarted 288 times a day at most.
func wanted() settings {
	return settings{
		Delayed:  true,
		Restarts: []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute},
		Reset:    24 * time.Hour,
		NonCrash: true,
	}
}

// differences names what has to be put right.
func (s settings) differences(have settings) []string {
	var names []string
	if s.Delayed != have.Delayed {
		names = append(names, "delayed start")
	}
	if !slices.Equal(s.Restarts, have.Restarts) || s.Reset != have.Reset {
		names = append(names, "restarts")
	}
	if s.NonCrash != have.NonCrash {
		names = append(names, "restarts after errors")
	}
	return names
}
