package probe

import (
	"encoding/binary"
	"strings"
	"testing"
	"testing/fstest"
)

// rawTable puts the header of GetSystemFirmwareTable before structures.
func rawTable(structures ...string) []byte {
	body := strings.Join(structures, "")
	table := binary.LittleEndian.AppendUint32([]byte{0, 3, 4, 0}, uint32(len(body)))
	return append(table, body...)
}

// A notebook's structures as DSP0134 lays them out.
const (
	systemStructure = "\x01\x1b\x01\x00" + "\x01\x02\x03\x04" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + "\x06\x05\x06" +
		"LENOVO\x00" + "21HES00000\x00" + "ThinkPad T14 Gen 4\x00" + " PF-TEST-1 \x00" + "SKU\x00" + "ThinkPad\x00" + "\x00"
	enclosureStructure = "\x03\x16\x02\x00" + "\x01\x8a\x02\x03\x04" + "\x03\x03\x03\x03\x00\x00\x00\x00\x00\x01\x00\x00\x00" +
		"LENOVO\x00None\x00PF-TEST-1\x00No Asset\x00" + "\x00"
	emptyStructure = "\x20\x0b\x03\x00\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00"
	endStructure   = "\x7f\x04\x04\x00" + "\x00\x00"
)

type fakeFirmware struct {
	variables map[string][]byte
	err       error // of every variable
	table     []byte
	tableErr  error
}

func (f fakeFirmware) Variable(name, vendor string) ([]byte, error) {
	if f.err != nil {
		return nil, f.err
	}
	value, ok := f.variables[name]
	if !ok || vendor != "{"+efiGlobalGUID+"}" {
		return nil, ErrNotFound
	}
	return value, nil
}

func (f fakeFirmware) SMBIOS() ([]byte, error) { return f.table, f.tableErr }

func TestSMBIOS(t *testing.T) {
	notebook := smbios{vendor: "LENOVO", model: "21HES00000", serial: "PF-TEST-1", chassis: 10}
	for _, c := range []struct {
		name    string
		table   []byte
		want    smbios
		wantErr bool
	}{
		{name: "a notebook", table: rawTable(systemStructure, enclosureStructure, endStructure), want: notebook},
		{name: "structures without texts between", table: rawTable(emptyStructure, systemStructure, emptyStructure, enclosureStructure, endStructure), want: notebook},
		{name: "no end marker", table: rawTable(systemStructure, enclosureStructure), want: notebook},
		{name: "nothing behind the end counts", table: rawTable(systemStructure, endStructure, enclosureStructure),
			want: smbios{vendor: "LENOVO", model: "21HES00000", serial: "PF-TEST-1"}},
		{name: "the first enclosure counts, not the dock's", table: rawTable(enclosureStructure, strings.Replace(enclosureStructure, "\x8a", "\x0c", 1), endStructure),
			want: smbios{chassis: 10}},
		{name: "old firmware with a short structure", table: rawTable("\x01\x08\x01\x00\x01\x02\x00\x00Maker\x00Model\x00\x00", endStructure),
			want: smbios{vendor: "Maker", model: "Model"}},
		{name: "the number of a text that is not there", table: rawTable("\x01\x08\x01\x00\x01\x09\x00\xffMaker\x00\x00", endStructure), want: smbios{vendor: "Maker"}},
		{name: "not UTF-8", table: rawTable("\x01\x08\x01\x00\x01\x00\x00\x00M\xffaker\x00\x00", endStructure), want: smbios{vendor: "Maker"}},
		{name: "a text too long for a name", table: rawTable("\x01\x08\x01\x00\x01\x00\x00\x00" + strings.Repeat("x", 300) + "\x00\x00")},
		{name: "empty", wantErr: true},
		{name: "header alone", table: rawTable()},
		{name: "shorter than it says", table: rawTable(systemStructure)[:40], wantErr: true},
		{name: "a structure shorter than its head", table: rawTable("\x01\x03\x00\x00\x00\x00"), wantErr: true},
		{name: "a structure longer than the table", table: rawTable("\x01\xff\x00\x00\x00\x00"), wantErr: true},
		{name: "texts without an end", table: rawTable(enclosureStructure, "\x01\x08\x01\x00\x01\x00\x00\x00Maker"), want: smbios{chassis: 10}, wantErr: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseSMBIOS(c.table)
			if got != c.want || (err != nil) != c.wantErr {
				t.Errorf("got %+v, %v; want %+v, error %v", got, err, c.want, c.wantErr)
			}
		})
	}
}

func FuzzSMBIOS(f *testing.F) {
	f.Add(rawTable(systemStructure, enclosureStructure, emptyStructure, endStructure))
	f.Add(rawTable("\x01\xff\x00\x00\x00\x00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, table []byte) {
		s, err := parseSMBIOS(table)
		if err == nil && len(s.vendor) > maxFirmwareText {
			t.Errorf("a vendor of %d bytes", len(s.vendor))
		}
	})
}

func TestMachineOnEitherSystem(t *testing.T) {
	linux := Host{Files: fstest.MapFS{
		"sys/class/dmi/id/sys_vendor": file("LENOVO\n"), "sys/class/dmi/id/product_name": file("21HES00000\n"),
		"sys/class/dmi/id/product_serial": file("PF-TEST-1\n"),
	}}
	windows := Host{Windows: &Windows{Firmware: fakeFirmware{table: rawTable(systemStructure, endStructure)}}}
	for name, h := range map[string]Host{"Linux": linux, "Windows": windows} {
		if vendor, model, serial := Machine(h); vendor != "LENOVO" || model != "21HES00000" || serial != "PF-TEST-1" {
			t.Errorf("%s: %q %q %q", name, vendor, model, serial)
		}
	}
	for name, h := range map[string]Host{
		"nothing to read":   {},
		"no capability":     {Windows: &Windows{}},
		"unreadable table":  {Windows: &Windows{Firmware: fakeFirmware{tableErr: errNoRights}}},
		"table of nonsense": {Windows: &Windows{Firmware: fakeFirmware{table: []byte("nonsense")}}},
	} {
		if vendor, model, serial := Machine(h); vendor+model+serial != "" {
			t.Errorf("%s: %q %q %q", name, vendor, model, serial)
		}
	}
}
