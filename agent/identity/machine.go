package identity

import (
	"slices"
	"strings"

	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// Stated returns what the firmware states of a machine (SMBIOS) without what
// makers leave behind who state nothing. It is for look-up and alarms, never
// proof: thousands of machines have the serial number "To be filled by O.E.M.".
func Stated(vendor, model, serial string) *agentv1.Machine {
	return &agentv1.Machine{Vendor: stated(vendor), Model: stated(model), Serial: stated(serial)}
}

func stated(text string) string {
	text = strings.TrimSpace(text)
	if placeholder(text) {
		return ""
	}
	return text
}

// placeholder knows what firmware says when nobody has told it anything better.
func placeholder(text string) bool {
	plain := strings.Trim(strings.ToLower(text), " .!")
	// "0", "00000000", "........", "xxxxxx"
	if strings.Trim(plain, "0x.-_ f") == "" {
		return true
	}
	return slices.Contains([]string{
		"to be filled by o.e.m", "to be filled by oem", "tbd by oem", "o.e.m", "oem",
		"default string", "default_string", "default",
		"system serial number", "system product name", "system manufacturer", "system name", "serial number",
		"not specified", "not applicable", "not available", "not settable", "unknown", "undefined", "none", "null", "n/a", "na",
		"invalid", "empty", "123456789", "1234567890", "0123456789", "01234567",
	}, plain)
}

// TraitsOf puts together what tells machines apart.
func TraitsOf(m *agentv1.Machine, install string) Traits {
	t := Traits{Serial: m.GetSerial(), Install: install}
	if m.GetVendor() != "" && m.GetModel() != "" {
		t.Model = m.GetVendor() + "\x00" + m.GetModel()
	}
	return t
}
