//go:build linux

package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/godbus/dbus/v5"
)

// systemBus asks NetworkManager and systemd over D-Bus, one connection to a
// question.
type systemBus struct{}

const (
	networkManager = "org.freedesktop.NetworkManager"
	systemd        = "org.freedesktop.systemd1"
)

func (systemBus) VPNConnections(ctx context.Context) ([]BusConnection, error) {
	bus, err := openBus(ctx)
	if err != nil {
		return nil, err
	}
	defer bus.Close()
	var there bool
	if err := bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, networkManager).Store(&there); err != nil {
		return nil, fmt.Errorf("asking the system bus: %w", err)
	}
	if !there {
		return nil, fmt.Errorf("NetworkManager: %w", ErrNotFound)
	}
	nm := object{ctx, bus, networkManager}
	active, err := property[[]dbus.ObjectPath](nm, "/org/freedesktop/NetworkManager", networkManager, "ActiveConnections")
	if err != nil {
		return nil, err
	}
	var found []BusConnection
	for _, path := range active {
		c, vpn, err := nm.connection(path)
		if isGone(err) { // it ended since the list was made
			continue
		}
		if err != nil {
			return nil, err
		}
		if vpn {
			found = append(found, c)
		}
	}
	return found, nil
}

// UnitActive takes a pattern too ("openvpn-client@*.service"): then one active
// unit is enough.
func (systemBus) UnitActive(ctx context.Context, unit string) (bool, error) {
	bus, err := openBus(ctx)
	if err != nil {
		return false, err
	}
	defer bus.Close()
	var units []struct {
		Name, Description, LoadState, ActiveState, SubState, Following string

		Path    dbus.ObjectPath
		JobID   uint32
		JobType string
		JobPath dbus.ObjectPath
	}
	err = bus.Object(systemd, "/org/freedesktop/systemd1").
		CallWithContext(ctx, systemd+".Manager.ListUnitsByPatterns", 0, []string{}, []string{unit}).Store(&units)
	if err != nil {
		return false, fmt.Errorf("asking systemd: %w", err)
	}
	found := false
	for _, u := range units {
		if u.ActiveState == "active" {
			return true, nil
		}
		found = found || u.LoadState == "loaded"
	}
	if !found {
		return false, fmt.Errorf("unit: %w", ErrNotFound)
	}
	return false, nil
}

// openBus says ErrNotFound when this machine has no system bus: then neither
// service is on it.
func openBus(ctx context.Context) (*dbus.Conn, error) {
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("system bus: %w", ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the system bus: %w", err)
	}
	return bus, nil
}

// object is a service on the bus.
type object struct {
	ctx     context.Context
	bus     *dbus.Conn
	service string
}

func (o object) connection(path dbus.ObjectPath) (c BusConnection, vpn bool, err error) {
	const (
		face      = networkManager + ".Connection.Active"
		activated = 2 // NM_ACTIVE_CONNECTION_STATE_ACTIVATED
	)
	var state uint32
	var settings dbus.ObjectPath
	c.Type, err = property[string](o, path, face, "Type")
	if err == nil {
		vpn, err = property[bool](o, path, face, "Vpn")
		vpn = vpn || c.Type == "wireguard"
	}
	if err != nil || !vpn {
		return c, vpn, err
	}
	if state, err = property[uint32](o, path, face, "State"); err != nil {
		return c, vpn, err
	}
	c.Activated = state == activated
	if c.Default4, err = property[bool](o, path, face, "Default"); err != nil {
		return c, vpn, err
	}
	if c.Default6, err = property[bool](o, path, face, "Default6"); err != nil {
		return c, vpn, err
	}
	if settings, err = property[dbus.ObjectPath](o, path, face, "Connection"); err != nil {
		return c, vpn, err
	}
	c.Service, err = o.vpnService(settings)
	return c, vpn, err
}

// vpnService takes one value out of a connection's settings and drops the
// rest, which names people and networks; secrets are never in it.
func (o object) vpnService(settings dbus.ObjectPath) (string, error) {
	var all map[string]map[string]dbus.Variant
	err := o.bus.Object(o.service, settings).
		CallWithContext(o.ctx, networkManager+".Settings.Connection.GetSettings", 0).Store(&all)
	if err != nil {
		return "", fmt.Errorf("asking NetworkManager: %w", err)
	}
	service, _ := all["vpn"]["service-type"].Value().(string)
	return service, nil
}

// isGone is true for the answers of bus libraries for an object that is not
// there.
func isGone(err error) bool {
	var answer dbus.Error
	return errors.As(err, &answer) && slices.Contains([]string{
		"org.freedesktop.DBus.Error.UnknownObject",
		"org.freedesktop.DBus.Error.UnknownInterface",
		"org.freedesktop.DBus.Error.UnknownMethod",
	}, answer.Name)
}

// property reads one property of an object.
func property[T any](o object, path dbus.ObjectPath, face, name string) (T, error) {
	var value T
	err := o.bus.Object(o.service, path).
		CallWithContext(o.ctx, "org.freedesktop.DBus.Properties.Get", 0, face, name).Store(&value)
	if err != nil {
		return value, fmt.Errorf("reading %s from the system bus: %w", name, err)
	}
	return value, nil
}
