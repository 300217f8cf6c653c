package probe

import (
	"net/netip"
	"slices"
	"testing"
)

func addresses(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func TestOwnAddressesAreReadFromEveryLinkThatIsUp(t *testing.T) {
	h := Host{Network: fakeNetwork{links: []Link{
		{Index: 1, Name: "lo", Loopback: true, Up: true, Addresses: prefixes("127.0.0.1/8", "::1/128")},
		{Index: 2, Name: "wlan0", Up: true, Addresses: prefixes("192.168.178.20/24", "fe80::1/64", "2001:db8::20/64")},
		{Index: 3, Name: "eth0", Addresses: prefixes("10.1.1.1/24")},
		{Index: 4, Name: "tun0", Kind: "tun", Up: true, Addresses: prefixes("10.8.0.2/24", "fd00:8::2/64", "fe80::8/64")},
		{Index: 5, Name: "wg0", Kind: "wireguard", Up: true},
	}}}
	got, err := ReadAddresses(t.Context(), h, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := addresses("192.168.178.20", "2001:db8::20", "10.8.0.2", "fd00:8::2"); !slices.Equal(got.All, want) {
		t.Errorf("all: %v, want %v", got.All, want)
	}
	if len(got.Tunnels) != 1 || got.Tunnels[0].Link != "tun0" || !slices.Equal(got.Tunnels[0].Addresses, addresses("10.8.0.2", "fd00:8::2")) {
		t.Errorf("tunnels: %v", got.Tunnels)
	}
}

func TestAnAddressOfAnIPsecTunnelLiesOnAnotherLink(t *testing.T) {
	links := []Link{{Index: 2, Name: "eth0", Up: true, Addresses: prefixes("192.168.178.20/24", "10.3.0.1/32")}}
	for name, c := range map[string]struct {
		policy IPsecPolicy
		tunnel bool
	}{
		"a tunnel":        {IPsecPolicy{Direction: "out", Tunnel: true, Source: netip.MustParsePrefix("10.3.0.1/32")}, true},
		"incoming":        {IPsecPolicy{Direction: "in", Tunnel: true, Source: netip.MustParsePrefix("10.3.0.1/32")}, false},
		"no tunnel":       {IPsecPolicy{Direction: "out", Source: netip.MustParsePrefix("10.3.0.1/32")}, false},
		"a whole network": {IPsecPolicy{Direction: "out", Tunnel: true, Source: netip.MustParsePrefix("10.3.0.0/24")}, false},
	} {
		got, err := ReadAddresses(t.Context(), Host{Network: fakeNetwork{links: links, policies: []IPsecPolicy{c.policy}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if (len(got.Tunnels) == 1) != c.tunnel || c.tunnel && !slices.Equal(got.Tunnels[0].Addresses, addresses("10.3.0.1")) {
			t.Errorf("%s: %v", name, got.Tunnels)
		}
	}
}

func TestWindowsTunnelsAreKnownByTypeAndCatalogue(t *testing.T) {
	h := Host{Windows: &Windows{}, Network: fakeNetwork{links: []Link{
		{Index: 1, Name: "Ethernet", Description: "Intel(R) Ethernet", Type: 6, Up: true, Addresses: prefixes("192.168.178.20/24")},
		{Index: 2, Name: "OpenVPN", Description: "TAP-Windows Adapter V9", Type: 53, Up: true, Addresses: prefixes("10.8.0.2/24")},
		{Index: 3, Name: "Teredo", Description: "Teredo Tunneling Pseudo-Interface", Type: 131, Up: true, Addresses: prefixes("2001:0:1::2/64")},
	}}}
	got, err := ReadAddresses(t.Context(), h, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.All) != 3 || len(got.Tunnels) != 1 || got.Tunnels[0].Link != "OpenVPN" {
		t.Errorf("%+v", got)
	}
}
