package identity

import (
	"io/fs"
	"strings"

	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// ReadMachine returns vendor, model and serial number as the firmware states
// them (SMBIOS, in Linux's tree: sys/class/dmi/id). They are look-up keys and
// alarms, never proof. What cannot be read stays empty: the serial number needs
// root.
func ReadMachine(files fs.FS) *agentv1.Machine {
	read := func(name string) string {
		b, err := fs.ReadFile(files, "sys/class/dmi/id/"+name)
		if err != nil || len(b) > 256 {
			return ""
		}
		return strings.ToValidUTF8(strings.TrimSpace(string(b)), "")
	}
	return &agentv1.Machine{
		Vendor: read("sys_vendor"),
		Model:  read("product_name"),
		Serial: read("product_serial"),
	}
}
