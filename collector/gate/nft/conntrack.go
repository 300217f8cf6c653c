//go:build linux

package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Forget implements session.Filter. The filter itself does not look at the
// state of connections before it has looked at the sets; but address
// translation, flow tables and other people's rules do.
func (f *Filter) Forget(addresses []netip.Addr) error {
	if len(addresses) == 0 {
		return nil
	}
	h, err := f.handle()
	if err != nil {
		return fmt.Errorf("opening connection tracking: %w", err)
	}
	defer h.Close()
	var errs error
	for _, family := range []netlink.InetFamily{syscall.AF_INET, syscall.AF_INET6} {
		wanted := flowsOf{}
		for _, a := range addresses {
			if a.Unmap().Is4() == (family == syscall.AF_INET) {
				wanted[a.Unmap()] = true
			}
		}
		if len(wanted) == 0 {
			continue
		}
		if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, wanted); err != nil && !errors.Is(err, syscall.ENOENT) {
			errs = errors.Join(errs, fmt.Errorf("ending tracked connections: %w", err))
		}
	}
	return errs
}

func (f *Filter) handle() (*netlink.Handle, error) {
	if f.options.Namespace != 0 {
		return netlink.NewHandleAt(netns.NsHandle(f.options.Namespace), syscall.NETLINK_NETFILTER)
	}
	return netlink.NewHandle(syscall.NETLINK_NETFILTER)
}

// flowsOf matches connections that have one of the addresses at either end, in
// either direction: translated or not.
type flowsOf map[netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (w flowsOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, ip := range []net.IP{flow.Forward.SrcIP, flow.Forward.DstIP, flow.Reverse.SrcIP, flow.Reverse.DstIP} {
		if a, ok := netip.AddrFromSlice(ip); ok && w[a.Unmap()] {
			return true
		}
	}
	return false
}
