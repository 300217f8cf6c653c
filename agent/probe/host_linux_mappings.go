//go:build linux

package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernelMappings asks the kernel's device-mapper through its control device.
type kernelMappings struct{}

// Segments implements Mappings. It asks for the text that the kernel measures
// (DM_IMA_MEASUREMENT_FLAG), and never for the table: that holds the key.
func (kernelMappings) Segments(_ context.Context, number string) ([]string, error) {
	device, err := deviceNumber(number)
	if err != nil {
		return nil, err
	}
	control, err := os.Open("/dev/mapper/control")
	if err != nil {
		return nil, fmt.Errorf("opening device-mapper: %w", cause(err))
	}
	defer control.Close()
	for size := 16 << 10; size <= maxSegments; size *= 4 {
		answer, err := tableStatus(control, device, size)
		if errors.Is(err, errBufferFull) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return segments(answer)
	}
	return nil, errors.New("device-mapper says too much of a mapping")
}

// maxSegments is far above what the kernel says of a mapping, in bytes.
const maxSegments = 1 << 20

var errBufferFull = errors.New("device-mapper needs a larger buffer")

// tableStatus makes the ioctl DM_TABLE_STATUS (linux/dm-ioctl.h) with a buffer
// of size bytes and returns it with the kernel's answer.
func tableStatus(control *os.File, device uint64, size int) ([]byte, error) {
	request := unix.DmIoctl{
		Version:    [3]uint32{4, 0, 0},
		Data_size:  uint32(size),
		Data_start: uint32(binary.Size(unix.DmIoctl{})),
		Flags:      unix.DM_IMA_MEASUREMENT_FLAG | unix.DM_NOFLUSH_FLAG,
		Dev:        device,
	}
	buffer := make([]byte, size)
	if _, err := binary.Encode(buffer, binary.NativeEndian, &request); err != nil {
		return nil, err
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), unix.DM_TABLE_STATUS, uintptr(unsafe.Pointer(&buffer[0])))
	if errno != 0 {
		return nil, fmt.Errorf("asking device-mapper: %w", errno)
	}
	return buffer, nil
}

// segments takes the texts out of an answer to DM_TABLE_STATUS: a DmIoctl, and
// from its Data_start on a DmTargetSpec with a C string for each segment.
func segments(answer []byte) ([]string, error) {
	var head unix.DmIoctl
	if _, err := binary.Decode(answer, binary.NativeEndian, &head); err != nil {
		return nil, fmt.Errorf("device-mapper's answer: %w", err)
	}
	if head.Flags&unix.DM_BUFFER_FULL_FLAG != 0 {
		return nil, errBufferFull
	}
	if int64(head.Data_start) > int64(len(answer)) {
		return nil, errors.New("device-mapper's answer is cut off")
	}
	data := answer[head.Data_start:]
	var texts []string
	for at := uint32(0); len(texts) < int(head.Target_count); {
		var spec unix.DmTargetSpec
		if int64(at) > int64(len(data)) {
			return nil, errors.New("device-mapper's answer is cut off")
		}
		n, err := binary.Decode(data[at:], binary.NativeEndian, &spec)
		if err != nil {
			return nil, fmt.Errorf("device-mapper's answer: %w", err)
		}
		text, _, ok := bytes.Cut(data[int(at)+n:], []byte{0})
		if !ok || spec.Next <= at {
			return nil, errors.New("device-mapper's answer is cut off")
		}
		texts = append(texts, string(text))
		at = spec.Next
	}
	return texts, nil
}

// deviceNumber turns "254:1" into the kernel's encoding (makedev(3)).
func deviceNumber(number string) (uint64, error) {
	major, minor, _ := strings.Cut(number, ":")
	high, errHigh := strconv.ParseUint(major, 10, 12)
	low, errLow := strconv.ParseUint(minor, 10, 20)
	if errHigh != nil || errLow != nil {
		return 0, errors.New("no device number")
	}
	return unix.Mkdev(uint32(high), uint32(low)), nil
}
