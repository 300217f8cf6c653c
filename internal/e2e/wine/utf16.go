//go:build linux

package wine

import (
	"encoding/binary"
	"unicode/utf16"
)

// utf16le decodes what Windows programs write as "Unicode": UTF-16, low byte
// first, with a byte order mark. Other text is returned as it is.
func utf16le(text string) string {
	if len(text) < 2 || text[0] != 0xff || text[1] != 0xfe {
		return text
	}
	units := make([]uint16, 0, len(text)/2)
	for b := []byte(text[2:]); len(b) >= 2; b = b[2:] {
		units = append(units, binary.LittleEndian.Uint16(b))
	}
	return string(utf16.Decode(units))
}
