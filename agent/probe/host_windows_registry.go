//go:build windows

package probe

import (
	"errors"
	"fmt"

	"golang.org/x/sys/windows/registry"
)

// localMachine reads HKEY_LOCAL_MACHINE, always in its 64-bit view.
type localMachine struct{}

// maxRegistryValue is far above everything that a probe reads.
const maxRegistryValue = 1 << 20

func (localMachine) open(key string) (registry.Key, error) {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, key, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if errors.Is(err, registry.ErrNotExist) {
		return 0, fmt.Errorf("registry key %s: %w", key, ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("opening registry key %s: %w", key, err)
	}
	return k, nil
}

func (m localMachine) Value(key, name string) (RegistryValue, error) {
	k, err := m.open(key)
	if err != nil {
		return RegistryValue{}, err
	}
	defer k.Close()
	v, err := rawValue(k, name)
	if errors.Is(err, registry.ErrNotExist) {
		return v, fmt.Errorf("registry value %s of %s: %w", name, key, ErrNotFound)
	}
	if err != nil {
		return v, fmt.Errorf("reading registry value %s of %s: %w", name, key, err)
	}
	return v, nil
}

func (m localMachine) Exists(key string) (bool, error) {
	k, err := m.open(key)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, k.Close()
}

// rawValue leaves variables in a text unexpanded.
func rawValue(k registry.Key, name string) (v RegistryValue, err error) {
	size, kind, err := k.GetValue(name, nil)
	if err != nil {
		return v, err
	}
	if size > maxRegistryValue {
		return v, fmt.Errorf("%d bytes are too many", size)
	}
	switch kind {
	case registry.SZ, registry.EXPAND_SZ:
		v.Type = "SZ"
		if kind == registry.EXPAND_SZ {
			v.Type = "EXPAND_SZ"
		}
		v.Text, _, err = k.GetStringValue(name)
	case registry.MULTI_SZ:
		v.Type = "MULTI_SZ"
		v.Lines, _, err = k.GetStringsValue(name)
	case registry.DWORD, registry.QWORD:
		v.Type = "DWORD"
		if kind == registry.QWORD {
			v.Type = "QWORD"
		}
		v.Number, _, err = k.GetIntegerValue(name)
	case registry.BINARY:
		v.Type = "BINARY"
		v.Bytes, _, err = k.GetBinaryValue(name)
	default:
		err = fmt.Errorf("type %d is of no use here", kind)
	}
	return v, err
}
