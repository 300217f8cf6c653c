package probe

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"time"
)

var (
	// ErrNotFound is wrapped by answers that say: the thing asked for is not
	// on this machine. It is knowledge, not a failed reading.
	ErrNotFound = errors.New("not found")
	// ErrNoRoute is wrapped by Network.Route when a packet would go nowhere.
	ErrNoRoute = errors.New("no route")
)

// Host is all that a probe can see of the machine. Each field is one small
// capability; a probe uses those it needs and reports FAILED when one is nil.
// Tests fill it with prepared trees and recorded answers, host_linux.go and
// host_windows.go with the real machine.
type Host struct {
	// Files is the machine's file tree; names have no leading slash
	// ("proc/1/mountinfo"). It implements fs.ReadLinkFS and fs.ReadDirFS and
	// follows symbolic links inside the tree. Block devices are read through
	// it too: "dev/block/254:1".
	Files fs.FS
	// System is what gopsutil knows of the running system.
	System System
	// Network is links, routes and tunnels.
	Network Network
	// Firewall is the packet filter's loaded rules.
	Firewall FirewallRules
	// Processes lists names of running programs of interest.
	Processes Processes
	// Bus asks the system message bus.
	Bus Bus
	// Mappings asks device-mapper; nil where it is not there to ask.
	Mappings Mappings
	// Commands runs one of the allow-listed programs.
	Commands Commands
	// Windows is what only Windows has; nil on other systems.
	Windows *Windows
	// Now is the wall clock.
	Now func() time.Time
}

// System is the running system (gopsutil/v3 host). What could be read is
// returned beside an error.
type System interface {
	// Info returns what could be read, also with an error.
	Info(ctx context.Context) (SystemInfo, error)
}

// SystemInfo is gopsutil's view, reduced to what Evidence needs.
type SystemInfo struct {
	OS             string    `json:"os"`                 // "linux", "windows"
	Platform       string    `json:"platform,omitempty"` // Windows only, as are PlatformFamily and Version
	PlatformFamily string    `json:"platform_family,omitempty"`
	Version        string    `json:"version,omitempty"`
	KernelVersion  string    `json:"kernel_version,omitempty"`
	KernelArch     string    `json:"kernel_arch"`
	BootTime       time.Time `json:"boot_time,omitzero"`
	Virtualization string    `json:"virtualization,omitempty"` // "kvm", empty when none
	VirtualRole    string    `json:"virtual_role,omitempty"`   // "guest", "host", empty
}

// Network is what the kernel says of links, routes and tunnels.
type Network interface {
	Links(ctx context.Context) ([]Link, error)
	// Route looks up where a packet to addr would go, as the kernel decides
	// (all tables and rules). ErrNoRoute when nowhere.
	Route(ctx context.Context, addr netip.Addr) (Route, error)
	// IPsecPolicies lists the kernel's XFRM policies that apply whatever the
	// route is; never states: they hold keys.
	IPsecPolicies(ctx context.Context) ([]IPsecPolicy, error)
	// WireGuard lists devices without keys.
	WireGuard(ctx context.Context) ([]WireGuardLink, error)
}

// Link is one network interface.
type Link struct {
	Index int    `json:"index"`
	Name  string `json:"name"`           // stays on the notebook
	Kind  string `json:"kind,omitempty"` // rtnl kind: "tun", "wireguard", "xfrm"; empty for hardware
	// Description is the adapter's on Windows, where links have no kind:
	// "TAP-Windows Adapter V9 #2". Empty elsewhere.
	Description string `json:"description,omitempty"`
	// Type is IF_TYPE on Windows (IANA ifType): 6 Ethernet, 23 PPP, 53 virtual.
	Type    uint32 `json:"type,omitempty"`
	Up      bool   `json:"up"`      // IFF_UP
	Running bool   `json:"running"` // IFF_RUNNING: has carrier
	// OperState is RFC 2863: "up", "down", "unknown".
	OperState string         `json:"oper_state"`
	Loopback  bool           `json:"loopback,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
}

// Route is the answer of one route look-up.
type Route struct {
	LinkIndex int        `json:"link_index"`
	Table     int        `json:"table,omitempty"`
	Gateway   netip.Addr `json:"gateway,omitzero"` // zero when on link
	Source    netip.Addr `json:"source,omitzero"`
}

// IPsecPolicy is one XFRM policy.
type IPsecPolicy struct {
	Direction   string       `json:"direction"` // "in", "out", "fwd"
	Destination netip.Prefix `json:"destination"`
	Source      netip.Prefix `json:"source"`
	Tunnel      bool         `json:"tunnel"`
}

// WireGuardLink is one WireGuard device; zero LastHandshake means never.
type WireGuardLink struct {
	LinkIndex     int            `json:"link_index"`
	Peers         int            `json:"peers"`
	LastHandshake time.Time      `json:"last_handshake,omitzero"`
	AllowedIPs    []netip.Prefix `json:"allowed_ips,omitempty"`
}

// FirewallRules is the packet filter as it is loaded.
type FirewallRules interface {
	// InputChains lists the base chains hooked to input, with their policy.
	InputChains(ctx context.Context) ([]FilterChain, error)
}

// FilterChain is one nftables base chain.
type FilterChain struct {
	Family string // "inet", "ip", "ip6"
	Table  string
	Name   string
	Drop   bool // policy drop
	Rules  int
	// Rejects is true when its last rule drops or rejects everything left.
	Rejects bool
}

// Processes lists running programs.
type Processes interface {
	// Running returns those of the given names that run now.
	Running(ctx context.Context, names ...string) ([]string, error)
}

// Bus is the system D-Bus.
type Bus interface {
	// VPNConnections lists NetworkManager's active connections that are VPNs.
	// ErrNotFound when NetworkManager is not on the bus.
	VPNConnections(ctx context.Context) ([]BusConnection, error)
	// UnitActive says whether a systemd unit is active, or one of those that a
	// pattern matches ("openvpn-client@*.service"); ErrNotFound when there is
	// no such unit.
	UnitActive(ctx context.Context, unit string) (bool, error)
}

// BusConnection is one NetworkManager active connection.
type BusConnection struct {
	Type      string // "vpn", "wireguard"
	Service   string // "org.freedesktop.NetworkManager.openvpn"
	Activated bool
	Default4  bool
	Default6  bool
}

// Mappings is what the kernel's device-mapper says of its devices.
type Mappings interface {
	// Segments returns one text for each segment of the mapping with a device
	// number "254:1": what the kernel would measure of it, which is its table
	// without the key (Documentation/admin-guide/device-mapper/dm-ima.rst).
	// Kernels before 5.15 answer with empty texts.
	Segments(ctx context.Context, number string) ([]string, error)
}

// Commands runs allow-listed programs by absolute path.
type Commands interface {
	// ZFSEncryption runs `zfs get -H -o name,value encryption DATASET`.
	ZFSEncryption(ctx context.Context, dataset string) (string, error)
}
