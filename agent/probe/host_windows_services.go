//go:build windows

package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// controlManager asks the service control manager, for reading only.
type controlManager struct{}

// Matching returns what could be read beside an error.
func (controlManager) Matching(ctx context.Context, names ...string) ([]Service, error) {
	manager, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT|windows.SC_MANAGER_ENUMERATE_SERVICE)
	if err != nil {
		return nil, fmt.Errorf("opening the service control manager: %w", err)
	}
	defer windows.CloseServiceHandle(manager)
	var found []Service
	var errs []error
	err = eachService(manager, func(name string, state uint32) error {
		if !serviceNamed(name, names) {
			return ctx.Err()
		}
		s := Service{Name: name, State: state}
		switch err := configuration(manager, &s); {
		case errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST): // removed meanwhile
		case err != nil:
			errs = append(errs, fmt.Errorf("reading a service's configuration: %w", err))
		default:
			found = append(found, s)
		}
		return ctx.Err()
	})
	return found, errors.Join(append(errs, err)...)
}

// eachService lists services and drivers: some clients are only a driver.
func eachService(manager windows.Handle, each func(name string, state uint32) error) error {
	const kinds = windows.SERVICE_WIN32 | windows.SERVICE_DRIVER
	buffer := make([]byte, 64<<10) // 256 KB are the most that is allowed
	var resume uint32
	for {
		var needed, returned uint32
		err := windows.EnumServicesStatusEx(manager, windows.SC_ENUM_PROCESS_INFO, kinds, windows.SERVICE_STATE_ALL,
			&buffer[0], uint32(len(buffer)), &needed, &returned, &resume, nil)
		more := errors.Is(err, windows.ERROR_MORE_DATA)
		if err != nil && !more {
			return fmt.Errorf("listing services: %w", err)
		}
		for _, s := range unsafe.Slice((*windows.ENUM_SERVICE_STATUS_PROCESS)(unsafe.Pointer(&buffer[0])), returned) {
			if err := each(windows.UTF16PtrToString(s.ServiceName), s.ServiceStatusProcess.CurrentState); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		if returned == 0 {
			return errors.New("listing services: no progress")
		}
	}
}

// configuration fills what a service's registration says.
func configuration(manager windows.Handle, s *Service) error {
	name, err := windows.UTF16PtrFromString(s.Name)
	if err != nil {
		return err
	}
	service, err := windows.OpenService(manager, name, windows.SERVICE_QUERY_CONFIG)
	if err != nil {
		return err
	}
	defer windows.CloseServiceHandle(service)
	buffer := make([]byte, 8<<10) // the most that is allowed
	config := (*windows.QUERY_SERVICE_CONFIG)(unsafe.Pointer(&buffer[0]))
	var needed uint32
	if err := windows.QueryServiceConfig(service, config, uint32(len(buffer)), &needed); err != nil {
		return err
	}
	windowsDir, err := windows.GetSystemWindowsDirectory()
	if err != nil {
		return err
	}
	s.StartType = config.StartType
	s.Program = serviceProgram(windows.UTF16PtrToString(config.BinaryPathName), windowsDir, expanded, isFile)
	return nil
}

// expanded replaces %variables% with those of the system.
func expanded(text string) string {
	if full, err := registry.ExpandString(text); err == nil {
		return full
	}
	return text
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
