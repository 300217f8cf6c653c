package probe

import (
	"fmt"
	"net"
	"net/netip"

	"golang.zx2c4.com/wireguard/wgctrl"
)

// wireGuardLinks asks the kernel, or the driver of Windows, and drops the keys.
func wireGuardLinks() ([]WireGuardLink, error) {
	client, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("asking WireGuard: %w", err)
	}
	defer client.Close()
	devices, err := client.Devices()
	if err != nil {
		return nil, fmt.Errorf("listing WireGuard devices: %w", err)
	}
	var found []WireGuardLink
	for _, d := range devices {
		link, err := net.InterfaceByName(d.Name)
		if err != nil {
			return nil, fmt.Errorf("looking up a WireGuard link: %w", err)
		}
		w := WireGuardLink{LinkIndex: link.Index, Peers: len(d.Peers)}
		for _, peer := range d.Peers {
			if peer.LastHandshakeTime.After(w.LastHandshake) {
				w.LastHandshake = peer.LastHandshakeTime
			}
			for _, allowed := range peer.AllowedIPs {
				if p, ok := toPrefix(&allowed); ok {
					w.AllowedIPs = append(w.AllowedIPs, p)
				}
			}
		}
		found = append(found, w)
	}
	return found, nil
}

func toAddr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	address := toAddr(n.IP)
	ones, bits := n.Mask.Size()
	if bits == 128 && address.Is4() { // a mapped address with a mask of IPv6
		ones -= 96
	}
	p := netip.PrefixFrom(address, ones)
	return p, p.IsValid()
}
