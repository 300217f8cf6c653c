package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

const (
	// rawHeader stands before the table that GetSystemFirmwareTable('RSMB')
	// returns: calling method, version, revision, and the length of the table.
	rawHeader = 8
	// maxFirmwareText is above any name that a maker gives; what is longer is
	// no name.
	maxFirmwareText = 256
)

// smbios is what is used of the firmware's own description of the machine
// (DMTF DSP0134). Strings are as the firmware states them, trimmed; empty when
// it states none.
type smbios struct {
	vendor, model, serial string // type 1, System Information
	// chassis is type 3's kind of enclosure: 10 is a notebook. Zero: not stated.
	chassis uint8
}

var errTruncatedSMBIOS = errors.New("SMBIOS table ends within a structure")

// parseSMBIOS reads the raw table with its 8-byte header. Of several structures
// of a type the first counts, as it does for Linux. What was read before the
// table turned out to be broken is returned beside the error.
func parseSMBIOS(table []byte) (smbios, error) {
	if len(table) < rawHeader {
		return smbios{}, fmt.Errorf("SMBIOS table of %d bytes has no header", len(table))
	}
	size := binary.LittleEndian.Uint32(table[4:])
	table = table[rawHeader:]
	if uint64(size) > uint64(len(table)) {
		return smbios{}, fmt.Errorf("SMBIOS table of %d bytes says that it has %d", len(table), size)
	}
	table = table[:size]

	var out smbios
	system, enclosure := false, false
	for len(table) > 0 {
		s, rest, err := nextStructure(table)
		if err != nil {
			return out, err
		}
		switch {
		case s.kind() == 1 && !system:
			system = true
			out.vendor, out.model, out.serial = s.text(4), s.text(5), s.text(7)
		case s.kind() == 3 && !enclosure:
			enclosure = true
			out.chassis = s.at(5) &^ 0x80 // the top bit says: can be locked
		case s.kind() == 127: // end of table
			return out, nil
		}
		table = rest
	}
	return out, nil
}

// structure is one SMBIOS structure: its formatted area, which begins with type
// and length, and the texts behind it.
type structure struct {
	area  []byte
	texts [][]byte
}

func (s structure) kind() byte { return s.area[0] }

// at is a byte of the formatted area; older firmware has shorter ones.
func (s structure) at(offset int) byte {
	if offset >= len(s.area) {
		return 0
	}
	return s.area[offset]
}

// text is the string whose number stands at an offset; zero means none.
func (s structure) text(offset int) string {
	number := int(s.at(offset))
	if number == 0 || number > len(s.texts) || len(s.texts[number-1]) > maxFirmwareText {
		return ""
	}
	return firmwareText(s.texts[number-1])
}

// nextStructure cuts the first structure off: a formatted area of the length
// that it states, then strings that end with a zero byte each, then one more
// zero byte; two of them where there are no strings (DSP0134, 6.1.3).
func nextStructure(table []byte) (s structure, rest []byte, err error) {
	if len(table) < 4 || table[1] < 4 || int(table[1]) > len(table) {
		return structure{}, nil, errTruncatedSMBIOS
	}
	s.area, rest = table[:table[1]], table[table[1]:]
	if len(rest) >= 2 && rest[0] == 0 && rest[1] == 0 {
		return s, rest[2:], nil
	}
	for {
		end := bytes.IndexByte(rest, 0)
		switch {
		case end < 0:
			return structure{}, nil, errTruncatedSMBIOS
		case end == 0:
			return s, rest[1:], nil
		}
		s.texts = append(s.texts, rest[:end])
		rest = rest[end+1:]
	}
}

func firmwareText(text []byte) string {
	return strings.ToValidUTF8(strings.TrimSpace(string(text)), "")
}

// Machine returns vendor, model and serial number as the firmware states them.
// They are look-up keys and alarms, never proof. What cannot be read stays
// empty: on Linux the serial number needs root.
func Machine(h Host) (vendor, model, serial string) {
	if h.Windows != nil {
		s, err := readSMBIOS(h.Windows)
		if err != nil {
			return "", "", ""
		}
		return s.vendor, s.model, s.serial
	}
	if h.Files == nil {
		return "", "", ""
	}
	read := func(name string) string {
		content, err := fs.ReadFile(h.Files, "sys/class/dmi/id/"+name)
		if err != nil || len(content) > maxFirmwareText {
			return ""
		}
		return firmwareText(content)
	}
	return read("sys_vendor"), read("product_name"), read("product_serial")
}

// readSMBIOS asks Windows for the table and reads it.
func readSMBIOS(w *Windows) (smbios, error) {
	if w.Firmware == nil {
		return smbios{}, errors.New("the firmware is not readable on this machine")
	}
	table, err := w.Firmware.SMBIOS()
	if err != nil {
		return smbios{}, fmt.Errorf("SMBIOS: %w", err)
	}
	return parseSMBIOS(table)
}
