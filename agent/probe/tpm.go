package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// tpmProbe reads whether the system drives a TPM, and of which version.
// Present does not mean used: that shows in volumes and at enrolment.
func tpmProbe() Probe {
	return Probe{Section: "tpm", Collect: collectTPM}
}

func collectTPM(_ context.Context, h Host, ev *posturev1.Evidence) error {
	const class = "sys/class/tpm"
	out := &posturev1.Tpm{Reading: &posturev1.Reading{Source: "/" + class}}
	ev.Tpm = out
	if h.Windows != nil {
		return windowsTPM(h.Windows, out)
	}
	if h.Files == nil {
		return errors.New("this machine's files are not readable")
	}
	// Without this directory sysfs is not there, and nothing follows from it.
	if _, err := fs.Stat(h.Files, "sys/class"); err != nil {
		return err
	}
	devices, err := fs.ReadDir(h.Files, class)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, device := range devices {
		if !strings.HasPrefix(device.Name(), "tpm") {
			continue
		}
		out.Present = posturev1.Ternary_TERNARY_YES
		out.Version, err = tpmVersion(h.Files, class+"/"+device.Name())
		return err
	}
	out.Present = posturev1.Ternary_TERNARY_NO
	return nil
}

func tpmVersion(files fs.FS, device string) (string, error) {
	major, err := readLine(files, device+"/tpm_version_major")
	switch {
	case err != nil:
		return "", fmt.Errorf("version of the TPM: %w", err)
	case major == "2":
		return "2.0", nil
	case major == "1":
		return "1.2", nil
	default:
		return "", fmt.Errorf("version of the TPM: %.20q is not known", major)
	}
}
