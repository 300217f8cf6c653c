//go:build !linux

package uplink

import "syscall"

// keepTo has nothing to do: Windows sends from the interface that has the
// socket's address (strong host model).
func keepTo(string) func(network, address string, c syscall.RawConn) error { return nil }
