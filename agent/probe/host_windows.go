package probe

import (
	"time"

	"golang.org/x/sys/windows"
)

// NewHost returns the machine this program runs on.
func NewHost() Host {
	w := &Windows{
		Registry:     localMachine{},
		Disks:        mountedDisks{},
		Services:     controlManager{},
		Firmware:     uefi{},
		SecurityChip: tpmBaseServices{},
		Version:      kernelVersion{},
	}
	readAsides(time.Now).into(w)
	return Host{
		System:  runningSystem{},
		Network: ipHelper{},
		Windows: w,
		Now:     time.Now,
	}
}

// kernelVersion asks ntdll, which tells every program the same, whatever its
// manifest says.
type kernelVersion struct{}

func (kernelVersion) Running() (major, minor, build uint32, err error) {
	v := windows.RtlGetVersion()
	return v.MajorVersion, v.MinorVersion, v.BuildNumber, nil
}
