//go:build linux

package probe

import (
	"bufio"
	"errors"
	"os/exec"
	"slices"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

func TestNetworkManagersVPNConnections(t *testing.T) {
	bus := ownBus(t)
	if _, err := (systemBus{}).VPNConnections(t.Context()); !errors.Is(err, ErrNotFound) {
		t.Errorf("before NetworkManager is there: %v", err)
	}

	const active = networkManager + ".Connection.Active"
	for path, c := range map[dbus.ObjectPath]struct {
		kind     string
		vpn      bool
		state    uint32
		default4 bool
		settings dbus.ObjectPath
	}{
		"/active/1": {"802-11-wireless", false, 2, false, "/settings/1"},
		"/active/2": {"vpn", true, 2, true, "/settings/2"},
		"/active/3": {"wireguard", false, 1, false, "/settings/3"},
	} {
		export(t, bus, path, prop.Map{active: {
			"Type": {Value: c.kind}, "Vpn": {Value: c.vpn}, "State": {Value: c.state},
			"Default": {Value: c.default4}, "Default6": {Value: false}, "Connection": {Value: c.settings},
		}})
	}
	export(t, bus, "/org/freedesktop/NetworkManager", prop.Map{networkManager: {
		"ActiveConnections": {Value: []dbus.ObjectPath{"/active/1", "/active/2", "/active/3", "/active/ended"}},
	}})
	for path, service := range map[dbus.ObjectPath]string{"/settings/2": networkManager + ".openvpn", "/settings/3": ""} {
		if err := bus.Export(settings(service), path, networkManager+".Settings.Connection"); err != nil {
			t.Fatal(err)
		}
	}
	own(t, bus, networkManager)

	got, err := systemBus{}.VPNConnections(t.Context())
	want := []BusConnection{
		{Type: "vpn", Service: networkManager + ".openvpn", Activated: true, Default4: true},
		{Type: "wireguard"},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestUnitsOfSystemd(t *testing.T) {
	bus := ownBus(t)
	if _, err := (systemBus{}).UnitActive(t.Context(), "openvpn.service"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("without systemd nothing is known of units: %v", err)
	}
	if err := bus.Export(units{}, "/org/freedesktop/systemd1", systemd+".Manager"); err != nil {
		t.Fatal(err)
	}
	own(t, bus, systemd)
	for _, test := range []struct {
		unit   string
		active bool
		err    error
	}{
		{"one-active", true, nil},
		{"loaded", false, nil},
		{"not-found", false, ErrNotFound},
		{"none", false, ErrNotFound},
	} {
		if active, err := (systemBus{}).UnitActive(t.Context(), test.unit); active != test.active || !errors.Is(err, test.err) {
			t.Errorf("%s: %v, %v", test.unit, active, err)
		}
	}
}

func TestAMachineWithoutASystemBus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socketPath(t))
	if _, err := (systemBus{}).VPNConnections(t.Context()); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := (systemBus{}).UnitActive(t.Context(), "a.service"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// settings answers as a connection does, with names that must stay unread.
type settings string

func (s settings) GetSettings() (map[string]map[string]dbus.Variant, *dbus.Error) {
	all := map[string]map[string]dbus.Variant{"connection": {"id": dbus.MakeVariant("Max Mustermann")}}
	if s != "" {
		all["vpn"] = map[string]dbus.Variant{"service-type": dbus.MakeVariant(string(s)), "user-name": dbus.MakeVariant("max")}
	}
	return all, nil
}

// unit is one row of systemd's ListUnitsByPatterns.
type unit struct {
	Name, Description, LoadState, ActiveState, SubState, Following string

	Path    dbus.ObjectPath
	JobID   uint32
	JobType string
	JobPath dbus.ObjectPath
}

type units struct{}

func (units) ListUnitsByPatterns(_, patterns []string) ([]unit, *dbus.Error) {
	row := func(load, active string) unit {
		return unit{LoadState: load, ActiveState: active, Path: "/u", JobPath: "/"}
	}
	return map[string][]unit{
		"one-active": {row("loaded", "failed"), row("loaded", "active")},
		"loaded":     {row("loaded", "inactive")},
		"not-found":  {row("not-found", "inactive")},
	}[patterns[0]], nil
}

// ownBus starts a message bus, makes it the system bus of this test and
// returns a connection for the services that are to be on it.
func ownBus(t *testing.T) *dbus.Conn {
	t.Helper()
	address := "unix:path=" + socketPath(t)
	daemon := exec.CommandContext(t.Context(), "dbus-daemon", "--session", "--nofork", "--nopidfile", "--address="+address, "--print-address")
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	t.Cleanup(func() { daemon.Wait() }) // killed when the test's context ends
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the bus does not start: %v", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	bus, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bus.Close() })
	return bus
}

func export(t *testing.T, bus *dbus.Conn, path dbus.ObjectPath, properties prop.Map) {
	t.Helper()
	if _, err := prop.Export(bus, path, properties); err != nil {
		t.Fatal(err)
	}
}

func own(t *testing.T, bus *dbus.Conn, name string) {
	t.Helper()
	if reply, err := bus.RequestName(name, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("taking the name %s: %v, %v", name, reply, err)
	}
}
