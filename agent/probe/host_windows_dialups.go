//go:build windows

package probe

import (
	"context"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// rasConnection is RASCONNW and rasStatus RASCONNSTATUSW (ras.h, WINVER 0x601).
// The header packs them by four bytes: the handle in the first is two halves
// here, so that Go lays it out alike.
type rasConnection struct {
	size        uint32
	handle      [2]uint32
	entry       [257]uint16 // named by a person: not looked at
	deviceType  [17]uint16
	deviceName  [129]uint16
	phonebook   [windows.MAX_PATH]uint16
	subEntry    uint32
	entryID     windows.GUID
	flags       uint32
	session     [2]uint32
	correlation windows.GUID
}

type rasStatus struct {
	size        uint32
	state       uint32
	err         uint32
	deviceType  [17]uint16
	deviceName  [129]uint16
	phoneNumber [129]uint16
	endpoints   [2][5]uint32
	subState    uint32
}

const (
	rasBufferTooSmall = 603 // ERROR_BUFFER_TOO_SMALL (raserror.h)
	rasNoConnection   = 668 // ERROR_NO_CONNECTION
)

// readDialups runs in a process of its own: it calls the Remote Access Service
// and waits for it.
func readDialups(ctx context.Context) ([]Dialup, error) {
	// The question alone would start the service. Without it there is no
	// connection.
	services, err := controlManager{}.Matching(ctx, "RasMan")
	if err != nil {
		return nil, err
	}
	if len(services) == 0 || services[0].State == windows.SERVICE_STOPPED {
		return nil, nil
	}
	library := windows.NewLazySystemDLL("rasapi32.dll")
	list, ask := library.NewProc("RasEnumConnectionsW"), library.NewProc("RasGetConnectStatusW")
	for _, proc := range []*windows.LazyProc{list, ask} {
		if err := proc.Find(); err != nil {
			return nil, fmt.Errorf("asking the Remote Access Service: %w", err)
		}
	}
	connections, err := rasConnections(list)
	if err != nil {
		return nil, err
	}
	var found []Dialup
	for _, c := range connections {
		status := rasStatus{}
		status.size = uint32(unsafe.Sizeof(status))
		handle := uintptr(c.handle[0]) | uintptr(c.handle[1])<<32
		result, _, _ := ask.Call(handle, uintptr(unsafe.Pointer(&status)))
		switch {
		case result == rasNoConnection || result == uintptr(windows.ERROR_INVALID_HANDLE): // it has ended meanwhile
			continue
		case result != 0:
			return found, fmt.Errorf("asking for a connection's state: %w", syscall.Errno(result))
		}
		found = append(found, Dialup{DeviceType: windows.UTF16ToString(c.deviceType[:]), State: status.state})
	}
	return found, nil
}

func rasConnections(list *windows.LazyProc) ([]rasConnection, error) {
	const most = 256
	connections := make([]rasConnection, 8)
	for {
		entry := uint32(unsafe.Sizeof(connections[0]))
		connections[0].size = entry
		size, count := entry*uint32(len(connections)), uint32(0)
		result, _, _ := list.Call(uintptr(unsafe.Pointer(&connections[0])), uintptr(unsafe.Pointer(&size)), uintptr(unsafe.Pointer(&count)))
		switch {
		case result == rasBufferTooSmall && len(connections) < most:
			connections = make([]rasConnection, most)
		case result != 0:
			return nil, fmt.Errorf("listing connections: %w", syscall.Errno(result))
		case int(count) > len(connections):
			return nil, fmt.Errorf("%d connections were counted and not listed", count)
		default:
			return connections[:count], nil
		}
	}
}
