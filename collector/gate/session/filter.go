package session

import (
	"net/netip"
	"time"
)

// Access is what one tunnel address may do, by the kernel's clock: everything
// for Admit, then only the quarantine's destinations until Quarantine is over,
// both counted from now. Zero is nothing.
type Access struct {
	Address    netip.Addr
	Admit      time.Duration
	Quarantine time.Duration
}

// Filter is the packet filter.
type Filter interface {
	// Apply sets the access of these addresses, all at once or none.
	Apply(changes []Access) error
	// Forget ends the connections that these addresses have open, so that
	// nothing that was allowed before goes on.
	Forget(addresses []netip.Addr) error
	// Addresses lists those that may do anything at all now.
	Addresses() ([]netip.Addr, error)
}
