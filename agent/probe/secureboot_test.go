package probe

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// efiTree is the firmware directory with two variables, as bytes after the
// four of their attributes.
func efiTree(secureBoot, setupMode string) fstest.MapFS {
	attributes := "\x06\x00\x00\x00"
	return fstest.MapFS{
		"sys/firmware/acpi/tables/DSDT":             file(""),
		efivarsDir + "/SecureBoot-" + efiGlobalGUID: file(attributes + secureBoot),
		efivarsDir + "/SetupMode-" + efiGlobalGUID:  file(attributes + setupMode),
		efivarsDir + "/BootOrder-" + efiGlobalGUID:  file("\x07\x00\x00\x00\x01\x00"),
	}
}

func TestSecureBoot(t *testing.T) {
	for _, c := range []struct {
		name           string
		files          fs.FS
		state          posturev1.ReadingState
		enabled, setup posturev1.Ternary
		reason         string
	}{
		{"on", efiTree("\x01", "\x00"), observed, yes, no, ""},
		{"off", efiTree("\x00", "\x00"), observed, no, no, ""},
		{"keys may be replaced", efiTree("\x00", "\x01"), observed, no, yes, ""},
		{"firmware without it", fstest.MapFS{efivarsDir + "/BootOrder-" + efiGlobalGUID: file("\x07\x00\x00\x00\x01\x00")}, observed, no, no, ""},
		{"legacy BIOS", fstest.MapFS{"sys/firmware/acpi/tables/DSDT": file("")}, notApplicable, unknown, unknown, "legacy BIOS"},
		{"container", fstest.MapFS{"sys/firmware": {Mode: fs.ModeDir}}, failed, unknown, unknown, "hidden"},
		{"no sysfs", fstest.MapFS{}, failed, unknown, unknown, "not exist"},
		{"efivarfs is not mounted", fstest.MapFS{efivarsDir: {Mode: fs.ModeDir}}, failed, unknown, unknown, "not mounted"},
		{"no directory for it", fstest.MapFS{"sys/firmware/efi/systab": file("")}, failed, unknown, unknown, "not exist"},
		{"value without attributes", with(efiTree("\x01", "\x00"), fstest.MapFS{efivarsDir + "/SecureBoot-" + efiGlobalGUID: file("\x01")}), failed, unknown, no, "SecureBoot"},
		{"value of nonsense", efiTree("\x02", "\x00"), failed, unknown, no, "SecureBoot"},
		{"no rights", denied{efiTree("\x01", "\x00"), []string{efivarsDir + "/SecureBoot-" + efiGlobalGUID}}, failed, unknown, no, "permission denied"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := observe(t, Host{Files: c.files}, secureBootProbe()).SecureBoot
			wantState(t, got.Reading, c.state)
			if got.Enabled != c.enabled || got.SetupMode != c.setup {
				t.Errorf("enabled %s, setup mode %s", got.Enabled, got.SetupMode)
			}
			if !strings.Contains(got.Reading.Reason, c.reason) {
				t.Errorf("reason %q does not say %q", got.Reading.Reason, c.reason)
			}
		})
	}
}

func FuzzEFISwitch(f *testing.F) {
	f.Add([]byte{6, 0, 0, 0, 1})
	f.Add([]byte{6, 0, 0, 0})
	f.Fuzz(func(t *testing.T, content []byte) {
		on, err := parseEFISwitch(content)
		if on && (err != nil || len(content) != 5 || content[4] != 1) {
			t.Errorf("% x counts as on", content)
		}
	})
}
