package capture

import (
	"slices"
	"strings"
)

// smbios keeps of the firmware's description who made the machine, which model
// it is, and the kind of enclosure (DMTF DSP0134, structures 1 and 3). A serial
// number becomes a text that is none; UUID, asset tag and the rest are left
// out.
func (r *redactor) smbios(table []byte) []byte {
	const header, uuid, uuidEnds = 8, 0x08, 0x18
	if len(table) < header {
		return []byte{}
	}
	var kept []byte
	for rest := table[header:]; len(rest) >= 4; {
		length := int(rest[1])
		if length < 4 || length > len(rest) {
			break
		}
		formatted := slices.Clone(rest[:length])
		end := strings.Index(string(rest[length:]), "\x00\x00")
		if end < 0 {
			break
		}
		texts := strings.Split(string(rest[length:length+end]), "\x00")
		rest = rest[length+end+2:]
		switch formatted[0] {
		case 1:
			clear(formatted[min(uuid, length):min(uuidEnds, length)])
			kept = append(kept, described(formatted, texts, map[int]bool{4: true, 5: true, 6: false, 7: false, 25: false, 26: false})...)
		case 3:
			kept = append(kept, described(formatted, texts, map[int]bool{4: true, 6: false, 7: false, 8: false})...)
		}
	}
	kept = append(kept, 127, 4, 0xfe, 0xff, 0, 0)
	out := slices.Clone(table[:header])
	for i := range 4 {
		out[4+i] = byte(len(kept) >> (8 * i))
	}
	return append(out, kept...)
}

// described is a structure cut to the fields that are known here, its texts
// rebuilt: those that may stay are kept, of any other only that it is stated.
func described(formatted []byte, texts []string, keep map[int]bool) []byte {
	var kept []string
	for _, field := range []int{4, 5, 6, 7, 8, 25, 26} {
		stays, isText := keep[field]
		if !isText || field >= len(formatted) {
			continue
		}
		n := int(formatted[field])
		formatted[field] = 0
		if n == 0 || n > len(texts) || texts[n-1] == "" {
			continue
		}
		text := "redacted"
		if stays {
			text = word(strings.TrimSpace(texts[n-1]), shapeName)
		}
		kept = append(kept, text)
		formatted[field] = byte(len(kept))
	}
	area := formatted
	if ends := map[byte]int{1: 27, 3: 9}[formatted[0]]; len(area) > ends {
		area = area[:ends]
		area[1] = byte(ends)
	}
	tail := "\x00\x00"
	if len(kept) > 0 {
		tail = strings.Join(kept, "\x00") + "\x00\x00"
	}
	return append(slices.Clone(area), tail...)
}
