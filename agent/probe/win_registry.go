package probe

import (
	"errors"
	"fmt"
)

// registryNumber reads a DWORD or QWORD of HKEY_LOCAL_MACHINE. set is false when
// key or value is not there; a value of another type is an error.
func registryNumber(r Registry, key, name string) (number uint64, set bool, err error) {
	v, set, err := registryValue(r, key, name)
	if err == nil && set && v.Type != "DWORD" && v.Type != "QWORD" {
		err = fmt.Errorf(`registry %s\%s: is %s, not a number`, key, name, v.Type)
	}
	if err != nil || !set {
		return 0, false, err
	}
	return v.Number, true, nil
}

// registryText reads a string of HKEY_LOCAL_MACHINE, as registryNumber does.
func registryText(r Registry, key, name string) (text string, set bool, err error) {
	v, set, err := registryValue(r, key, name)
	if err == nil && set && v.Type != "SZ" && v.Type != "EXPAND_SZ" {
		err = fmt.Errorf(`registry %s\%s: is %s, not a text`, key, name, v.Type)
	}
	if err != nil || !set {
		return "", false, err
	}
	return v.Text, true, nil
}

func registryValue(r Registry, key, name string) (RegistryValue, bool, error) {
	if r == nil {
		return RegistryValue{}, false, errors.New("the registry is not readable on this machine")
	}
	v, err := r.Value(key, name)
	if errors.Is(err, ErrNotFound) {
		return RegistryValue{}, false, nil
	}
	if err != nil {
		return RegistryValue{}, false, fmt.Errorf(`registry %s\%s: %w`, key, name, err)
	}
	return v, true, nil
}
