package uplink

import "syscall"

// keepTo makes a socket use one interface only (SO_BINDTODEVICE, socket(7)):
// Linux would send from a tunnel's address over any link that a route prefers.
// Nil for no interface.
func keepTo(link string) func(network, address string, c syscall.RawConn) error {
	if link == "" {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var bound error
		if err := c.Control(func(fd uintptr) { bound = syscall.BindToDevice(int(fd), link) }); err != nil {
			return err
		}
		return bound
	}
}
