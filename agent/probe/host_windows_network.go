//go:build windows

package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

// ipHelper asks the network stack (iphlpapi.dll).
type ipHelper struct{}

func (ipHelper) Links(context.Context) ([]Link, error) {
	rows, err := winipcfg.GetIfTable2Ex(winipcfg.MibIfEntryNormalWithoutStatistics)
	if errors.Is(err, windows.ERROR_INVALID_PARAMETER) { // not known to every version
		rows, err = winipcfg.GetIfTable2Ex(winipcfg.MibIfEntryNormal)
	}
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	addresses, err := winipcfg.GetUnicastIPAddressTable(windows.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	found := make([]Link, 0, len(rows))
	for i := range rows {
		// Each adapter is listed again for every filter driver on it.
		if rows[i].InterfaceAndOperStatusFlags&winipcfg.IAOSFFilterInterface != 0 {
			continue
		}
		link := linkOf(&rows[i])
		for _, a := range addresses {
			if a.InterfaceIndex == rows[i].InterfaceIndex {
				address := a.Address.Addr().WithZone("").Unmap()
				link.Addresses = append(link.Addresses, netip.PrefixFrom(address, int(a.OnLinkPrefixLength)))
			}
		}
		found = append(found, link)
	}
	return found, nil
}

// linkOf takes an adapter that is up as one that carries: RFC 2863 counts the
// medium in. Only where the medium is known to be gone, it is believed against
// that.
func linkOf(row *winipcfg.MibIfRow2) Link {
	states := [...]string{"", "up", "down", "testing", "unknown", "dormant", "not-present", "lower-layer-down"}
	state := "unknown"
	if int(row.OperStatus) < len(states) && row.OperStatus > 0 {
		state = states[row.OperStatus]
	}
	return Link{
		Index:       int(row.InterfaceIndex),
		Name:        row.Alias(),
		Description: row.Description(),
		Type:        uint32(row.Type),
		Up:          row.AdminStatus == winipcfg.NetIfAdminStatusUp,
		Running:     row.OperStatus == winipcfg.IfOperStatusUp && row.MediaConnectState != winipcfg.MediaConnectStateDisconnected,
		OperState:   state,
		Loopback:    row.Type == winipcfg.IfTypeSoftwareLoopback,
	}
}

// Route asks the stack which route and which source address it would take.
func (ipHelper) Route(_ context.Context, addr netip.Addr) (Route, error) {
	ask := windows.NewLazySystemDLL("iphlpapi.dll").NewProc("GetBestRoute2")
	if err := ask.Find(); err != nil {
		return Route{}, fmt.Errorf("GetBestRoute2: %w", err)
	}
	var destination, source winipcfg.RawSockaddrInet
	if err := destination.SetAddr(addr.Unmap()); err != nil {
		return Route{}, fmt.Errorf("GetBestRoute2: %w", err)
	}
	var best winipcfg.MibIPforwardRow2
	result, _, _ := ask.Call(0, 0, 0, uintptr(unsafe.Pointer(&destination)), 0,
		uintptr(unsafe.Pointer(&best)), uintptr(unsafe.Pointer(&source)))
	switch err := syscall.Errno(result); {
	case err == windows.ERROR_SUCCESS:
	case err == windows.ERROR_NETWORK_UNREACHABLE, err == windows.ERROR_HOST_UNREACHABLE,
		err == windows.ERROR_NOT_FOUND, err == windows.ERROR_FILE_NOT_FOUND,
		err == windows.ERROR_NOT_SUPPORTED && switchedOff(destination.Family):
		return Route{}, fmt.Errorf("%w: %w", ErrNoRoute, err)
	default:
		return Route{}, fmt.Errorf("GetBestRoute2: %w", err)
	}
	r := Route{LinkIndex: int(best.InterfaceIndex), Source: source.Addr().WithZone("").Unmap()}
	if gateway := best.NextHop.Addr(); gateway.IsValid() && !gateway.IsUnspecified() {
		r.Gateway = gateway.WithZone("").Unmap()
	}
	return r, nil
}

// switchedOff says whether the stack has no address of a family, not even that
// of the loopback. Then it answers questions about it with "not supported".
func switchedOff(family winipcfg.AddressFamily) bool {
	addresses, err := winipcfg.GetUnicastIPAddressTable(family)
	return errors.Is(err, windows.ERROR_NOT_FOUND) || err == nil && len(addresses) == 0
}

// IPsecPolicies is empty: Windows routes its own IPsec connections, and a
// route look-up shows them.
func (ipHelper) IPsecPolicies(context.Context) ([]IPsecPolicy, error) { return nil, nil }

func (ipHelper) WireGuard(context.Context) ([]WireGuardLink, error) {
	return wireGuardLinks()
}
