//go:build windows

package probe

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

// tpmBaseServices asks which TPM there is, without talking to it.
type tpmBaseServices struct{}

// tpmDeviceInfo is TPM_DEVICE_INFO (tbs.h).
type tpmDeviceInfo struct {
	structVersion  uint32
	version        uint32
	interfaceType  uint32
	implementation uint32
}

func (tpmBaseServices) Device() (ChipAnswer, error) {
	ask := windows.NewLazySystemDLL("tbs.dll").NewProc("Tbsi_GetDeviceInfo")
	if err := ask.Find(); err != nil {
		return ChipAnswer{}, fmt.Errorf("this Windows has no TPM Base Services: %w", err)
	}
	info := tpmDeviceInfo{structVersion: 1}
	result, _, _ := ask.Call(unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)))
	return ChipAnswer{Result: uint32(result), Version: info.version}, nil
}
