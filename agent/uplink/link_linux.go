package uplink

import (
	"errors"
	"syscall"
)

// keepTo makes a socket use one interface only (SO_BINDTODEVICE, socket(7)):
// Linux would send from a tunnel's address over any link that a route prefers.
// Nil for no interface. A kernel before 5.7 does not let us, without
// CAP_NET_RAW: then the route decides after all.
func keepTo(link string) func(network, address string, c syscall.RawConn) error {
	if link == "" {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var bound error
		if err := c.Control(func(fd uintptr) { bound = syscall.BindToDevice(int(fd), link) }); err != nil {
			return err
		}
		if errors.Is(bound, syscall.EPERM) {
			return nil
		}
		return bound
	}
}
