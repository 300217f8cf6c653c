package probe

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func TestTPM(t *testing.T) {
	device := "sys/class/tpm/tpm0/tpm_version_major"
	for _, c := range []struct {
		name    string
		files   fs.FS
		state   posturev1.ReadingState
		present posturev1.Ternary
		version string
		reason  string
	}{
		{"TPM 2.0", fstest.MapFS{device: file("2\n")}, observed, yes, "2.0", ""},
		{"TPM 1.2", fstest.MapFS{device: file("1\n")}, observed, yes, "1.2", ""},
		{"none", fstest.MapFS{"sys/class/net/lo/mtu": file("65536\n")}, observed, no, "", ""},
		{"driver without a device", fstest.MapFS{"sys/class/tpm": {Mode: fs.ModeDir}}, observed, no, "", ""},
		{"sysfs is hidden", fstest.MapFS{}, failed, unknown, "", "not exist"},
		{"kernel too old to tell the version", fstest.MapFS{"sys/class/tpm/tpm0/dev": file("10:224\n")}, failed, yes, "", "version of the TPM"},
		{"version of nonsense", fstest.MapFS{device: file("9\n")}, failed, yes, "", "not known"},
		{"no rights", denied{fstest.MapFS{device: file("2\n")}, []string{"sys/class/tpm"}}, failed, unknown, "", "permission denied"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := observe(t, Host{Files: c.files}, tpmProbe()).Tpm
			wantState(t, got.Reading, c.state)
			if got.Present != c.present || got.Version != c.version {
				t.Errorf("present %s, version %q", got.Present, got.Version)
			}
			if !strings.Contains(got.Reading.Reason, c.reason) {
				t.Errorf("reason %q does not say %q", got.Reading.Reason, c.reason)
			}
		})
	}
}
