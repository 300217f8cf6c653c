//go:build windows

package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
)

// mountedDisks asks the mount manager and the file systems.
type mountedDisks struct{}

func (mountedDisks) Volumes(ctx context.Context) ([]DiskVolume, error) {
	system, err := systemVolume()
	if err != nil {
		return nil, err
	}
	var name [windows.MAX_PATH + 1]uint16
	find, err := windows.FindFirstVolume(&name[0], uint32(len(name)))
	if err != nil {
		return nil, fmt.Errorf("listing volumes: %w", err)
	}
	defer windows.FindVolumeClose(find)
	var found []DiskVolume
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		volume := windows.UTF16ToString(name[:])
		v := diskVolume(volume)
		v.System = strings.EqualFold(volume, system)
		found = append(found, v)
		err = windows.FindNextVolume(find, &name[0], uint32(len(name)))
		if errors.Is(err, windows.ERROR_NO_MORE_FILES) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("listing volumes: %w", err)
		}
	}
}

// systemVolume is the GUID path of the volume that Windows runs from.
func systemVolume() (string, error) {
	dir, err := windows.GetSystemWindowsDirectory()
	if err != nil {
		return "", fmt.Errorf("asking where Windows is: %w", err)
	}
	path, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return "", fmt.Errorf("asking where Windows is: %w", err)
	}
	var mount, name [windows.MAX_PATH + 1]uint16
	if err := windows.GetVolumePathName(path, &mount[0], uint32(len(mount))); err != nil {
		return "", fmt.Errorf("asking for the volume of Windows: %w", err)
	}
	if err := windows.GetVolumeNameForVolumeMountPoint(&mount[0], &name[0], uint32(len(name))); err != nil {
		return "", fmt.Errorf("asking for the volume of Windows: %w", err)
	}
	return windows.UTF16ToString(name[:]), nil
}

// diskVolume reads one volume. What is known to be no fixed disk is not touched
// beyond its type: an empty drive answers after seconds or not at all. What a
// volume that just goes away does not tell is its problem alone.
func diskVolume(volume string) DiskVolume {
	v := DiskVolume{Volume: volume}
	path, err := windows.UTF16PtrFromString(volume)
	if err != nil {
		v.Problem = fmt.Sprintf("naming the volume: %v", err)
		return v
	}
	v.DriveType = windows.GetDriveType(path)
	var errMounts, errSystem, errType error
	v.Letters, errMounts = mountPoints(path)
	switch v.DriveType {
	case windows.DRIVE_REMOVABLE, windows.DRIVE_REMOTE, windows.DRIVE_CDROM, windows.DRIVE_RAMDISK:
	default:
		v.FileSystem, errSystem = fileSystem(path)
		v.PartitionType, errType = partitionType(volume)
	}
	if err := errors.Join(errMounts, errSystem, errType); err != nil {
		v.Problem = oneLine(err.Error())
	}
	return v
}

func fileSystem(volume *uint16) (string, error) {
	var name [windows.MAX_PATH + 1]uint16
	if err := windows.GetVolumeInformation(volume, nil, 0, nil, nil, nil, &name[0], uint32(len(name))); err != nil {
		return "", fmt.Errorf("reading the file system's type: %w", err)
	}
	return windows.UTF16ToString(name[:]), nil
}

// mountPoints counts the letters and folders that lead to a volume.
func mountPoints(volume *uint16) (int, error) {
	names := make([]uint16, windows.MAX_PATH+1)
	for {
		var needed uint32
		err := windows.GetVolumePathNamesForVolumeName(volume, &names[0], uint32(len(names)), &needed)
		if errors.Is(err, windows.ERROR_MORE_DATA) && int(needed) > len(names) {
			names = make([]uint16, needed)
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("listing the mount points: %w", err)
		}
		return countTexts(names), nil
	}
}

// countTexts counts the texts of a list that ends with an empty one.
func countTexts(list []uint16) (n int) {
	for len(list) > 0 && list[0] != 0 {
		n++
		for len(list) > 0 && list[0] != 0 {
			list = list[1:]
		}
		list = list[min(1, len(list)):]
	}
	return n
}

const ioctlDiskGetPartitionInfoEx = 0x00070048 // needs no access to the data

// partitionInformationEx is PARTITION_INFORMATION_EX (winioctl.h).
type partitionInformationEx struct {
	style  uint32 // 0 MBR, 1 GPT
	_      uint32
	offset int64
	length int64
	number uint32
	_      [4]byte // two flags
	kind   windows.GUID
	_      [24]byte   // identifier, attributes
	_      [36]uint16 // name
}

// partitionType opens the volume without asking for access to its data.
func partitionType(volume string) (string, error) {
	path, err := windows.UTF16PtrFromString(strings.TrimSuffix(volume, `\`))
	if err != nil {
		return "", fmt.Errorf("naming a volume: %w", err)
	}
	h, err := windows.CreateFile(path, 0, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE, nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		return "", fmt.Errorf("opening the volume: %w", err)
	}
	defer windows.CloseHandle(h)
	var info partitionInformationEx
	var returned uint32
	err = windows.DeviceIoControl(h, ioctlDiskGetPartitionInfoEx, nil, 0,
		(*byte)(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)), &returned, nil)
	if err != nil {
		return "", fmt.Errorf("reading the partition's type: %w", err)
	}
	switch info.style {
	case 0:
		return fmt.Sprintf("mbr-%02x", byte(info.kind.Data1)), nil // the type is the first byte there
	case 1:
		return strings.ToLower(strings.Trim(info.kind.String(), "{}")), nil
	}
	return "", fmt.Errorf("partition style %d has no type", info.style)
}
