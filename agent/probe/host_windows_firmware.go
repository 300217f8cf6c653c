//go:build windows

package probe

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/windows"
)

// uefi asks the firmware through the kernel.
type uefi struct{}

// maxVariable is far above the one byte of the variables that a probe reads.
const maxVariable = 4 << 10

func (uefi) Variable(name, vendor string) ([]byte, error) {
	name16, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return nil, fmt.Errorf("naming a firmware variable: %w", err)
	}
	vendor16, err := windows.UTF16PtrFromString(vendor)
	if err != nil {
		return nil, fmt.Errorf("naming a firmware variable: %w", err)
	}
	read := windows.NewLazySystemDLL("kernel32.dll").NewProc("GetFirmwareEnvironmentVariableW")
	if err := read.Find(); err != nil {
		return nil, fmt.Errorf("asking the firmware: %w", err)
	}
	value := make([]byte, maxVariable)
	var n uintptr
	err = withPrivilege("SeSystemEnvironmentPrivilege", func() (errCall error) {
		n, _, errCall = read.Call(uintptr(unsafe.Pointer(name16)), uintptr(unsafe.Pointer(vendor16)),
			uintptr(unsafe.Pointer(&value[0])), uintptr(len(value)))
		return errCall
	})
	switch {
	case n > 0 && n <= uintptr(len(value)):
		return value[:n], nil
	case errors.Is(err, windows.ERROR_INVALID_FUNCTION):
		return nil, fmt.Errorf("started by a legacy BIOS: %w", ErrNotApplicable)
	case errors.Is(err, windows.ERROR_ENVVAR_NOT_FOUND):
		return nil, fmt.Errorf("firmware variable %s: %w", name, ErrNotFound)
	}
	return nil, fmt.Errorf("asking the firmware: %w", err)
}

// withPrivilege runs do with a privilege that the process holds but has not
// switched on. It is switched on for one thread and the time of one call.
func withPrivilege(name string, do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := windows.ImpersonateSelf(windows.SecurityImpersonation); err != nil {
		return fmt.Errorf("taking a thread's own token: %w", err)
	}
	defer windows.RevertToSelf()
	if err := switchOn(name); err != nil {
		return fmt.Errorf("switching on %s: %w", name, err)
	}
	return do()
}

// switchOn changes the calling thread's token. A privilege that the token does
// not hold is no error here: the call that needs it will say so.
func switchOn(privilege string) error {
	name, err := windows.UTF16PtrFromString(privilege)
	if err != nil {
		return err
	}
	wanted := windows.Tokenprivileges{PrivilegeCount: 1}
	wanted.Privileges[0].Attributes = windows.SE_PRIVILEGE_ENABLED
	if err := windows.LookupPrivilegeValue(nil, name, &wanted.Privileges[0].Luid); err != nil {
		return err
	}
	var token windows.Token
	if err := windows.OpenThreadToken(windows.CurrentThread(), windows.TOKEN_ADJUST_PRIVILEGES|windows.TOKEN_QUERY, true, &token); err != nil {
		return err
	}
	defer token.Close()
	return windows.AdjustTokenPrivileges(token, false, &wanted, 0, nil, nil)
}

func (uefi) SMBIOS() ([]byte, error) {
	const provider = 'R'<<24 | 'S'<<16 | 'M'<<8 | 'B'
	read := windows.NewLazySystemDLL("kernel32.dll").NewProc("GetSystemFirmwareTable")
	if err := read.Find(); err != nil {
		return nil, fmt.Errorf("asking for the SMBIOS table: %w", err)
	}
	table := make([]byte, 16<<10)
	for range 3 { // it does not grow while the system runs
		n, _, err := read.Call(provider, 0, uintptr(unsafe.Pointer(&table[0])), uintptr(len(table)))
		switch {
		case n == 0:
			return nil, fmt.Errorf("asking for the SMBIOS table: %w", err)
		case n <= uintptr(len(table)):
			return table[:n], nil
		case n > 1<<20:
			return nil, fmt.Errorf("the SMBIOS table cannot have %d bytes", n)
		}
		table = make([]byte, n)
	}
	return nil, errors.New("the SMBIOS table changes its size")
}
