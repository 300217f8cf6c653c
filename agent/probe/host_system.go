package probe

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/shirou/gopsutil/v3/host"
)

// runningSystem asks gopsutil, part by part: its own summary counts processes
// and, on some Linux systems, starts a program.
type runningSystem struct{}

// Info returns what could be read, and the errors of what could not. On Linux
// the distribution is left out: os-release tells more.
func (runningSystem) Info(ctx context.Context) (SystemInfo, error) {
	info := SystemInfo{OS: runtime.GOOS}
	var errKernel, errArch, errBoot, errVirtual, errPlatform error
	info.KernelVersion, errKernel = host.KernelVersionWithContext(ctx)
	info.KernelArch, errArch = host.KernelArch()
	boot, errBoot := host.BootTimeWithContext(ctx)
	if errBoot == nil {
		info.BootTime = time.Unix(int64(boot), 0)
	}
	info.Virtualization, info.VirtualRole, errVirtual = host.VirtualizationWithContext(ctx)
	if runtime.GOOS == "windows" {
		errVirtual = nil // gopsutil cannot tell there
		info.Platform, info.PlatformFamily, info.Version, errPlatform = host.PlatformInformationWithContext(ctx)
	}
	if err := errors.Join(errKernel, errArch, errBoot, errVirtual, errPlatform); err != nil {
		return info, fmt.Errorf("gopsutil: %w", err)
	}
	return info, nil
}
