//go:build linux

package probe

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// mapperAnswer is an answer to DM_TABLE_STATUS with the given texts.
func mapperAnswer(t testing.TB, flags uint32, texts ...string) []byte {
	t.Helper()
	add := func(answer []byte, part any) []byte {
		answer, err := binary.Append(answer, binary.NativeEndian, part)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	head := unix.DmIoctl{Flags: flags, Target_count: uint32(len(texts))}
	head.Data_start = uint32(binary.Size(head))
	answer := add(nil, &head)
	for _, text := range texts {
		end := len(answer) - int(head.Data_start) + binary.Size(unix.DmTargetSpec{}) + len(text) + 1
		answer = add(answer, &unix.DmTargetSpec{Next: uint32(end)})
		answer = append(append(answer, text...), 0)
	}
	return answer
}

func TestDeviceMapperAnswers(t *testing.T) {
	texts := []string{cryptSegment("aes-xts-plain64", 64), linearSegment}
	whole := mapperAnswer(t, 0, texts...)
	if got, err := segments(whole); err != nil || !slices.Equal(got, texts) {
		t.Errorf("segments %q, %v", got, err)
	}
	if got, err := segments(mapperAnswer(t, 0)); err != nil || len(got) != 0 {
		t.Errorf("a mapping without a table: %q, %v", got, err)
	}
	if _, err := segments(mapperAnswer(t, unix.DM_BUFFER_FULL_FLAG)); !errors.Is(err, errBufferFull) {
		t.Errorf("a buffer that is too small: %v", err)
	}
	for cut := range len(whole) {
		if got, err := segments(whole[:cut]); err == nil {
			t.Fatalf("cut off after %d bytes: %q", cut, got)
		}
	}
}

func TestDeviceNumbersForDeviceMapper(t *testing.T) {
	if got, err := deviceNumber("254:1"); err != nil || got != unix.Mkdev(254, 1) {
		t.Errorf("%d, %v", got, err)
	}
	for _, bad := range []string{"", "254", ":1", "254:", "4096:1", "254:1048576", "a:b", "-1:1"} {
		if got, err := deviceNumber(bad); err == nil {
			t.Errorf("%q: %d", bad, got)
		}
	}
}

func FuzzDeviceMapperAnswer(f *testing.F) {
	f.Add(mapperAnswer(f, 0, cryptSegment("aes-xts-plain64", 64), linearSegment))
	f.Add(mapperAnswer(f, unix.DM_BUFFER_FULL_FLAG))
	f.Fuzz(func(t *testing.T, answer []byte) {
		texts, err := segments(answer)
		if err == nil && len(texts) > len(answer) {
			t.Errorf("%d texts out of %d bytes", len(texts), len(answer))
		}
	})
}
