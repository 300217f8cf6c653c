//go:build linux

package wine_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pfoertner/internal/e2e/wine"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func TestSilentInstallationEnrolsStreamsAndIsJudged(t *testing.T) {
	d := newDesk(t)
	d.writeToken(t)
	log := d.install(t, older, d.settings()...)
	device := d.await(t, "evidence", reportedAs(older))

	t.Run("what cannot be read is unknown and refuses access", func(t *testing.T) {
		volumes := device.GetEvidence().GetVolumes().GetReading()
		if volumes.GetState() != posturev1.ReadingState_READING_STATE_FAILED || volumes.GetReason() == "" {
			t.Errorf("BitLocker, which Wine lacks, was read as %v", volumes)
		}
		if v := device.GetResult().GetVerdict(); v != posturev1.Verdict_VERDICT_DENY {
			t.Errorf("the verdict is %s", v)
		}
		for _, rule := range []string{"disks-encrypted", "security-updates", "firewall"} {
			i := slices.IndexFunc(device.GetResult().GetFindings(), func(f *posturev1.Finding) bool { return f.GetRule() == rule })
			if i < 0 || device.GetResult().GetFindings()[i].GetOutcome() != posturev1.Outcome_OUTCOME_UNKNOWN {
				t.Errorf("rule %s: %v", rule, device.GetResult().GetFindings())
			}
		}
		said := d.Operator(t, "explain", asset)
		for _, want := range []string{"Verdict: denied", "because unknown: All disks are encrypted", volumes.GetReason()} {
			if !strings.Contains(said, want) {
				t.Errorf("explain does not say %q:\n%s", want, said)
			}
		}
	})
	t.Run("the token is not in the log, and Windows is told to keep the settings out of it", func(t *testing.T) {
		if strings.Contains(log, d.token) {
			t.Error("the log of the installation has the token")
		}
		_, rest, _ := strings.Cut(log, "MsiHiddenProperties = ")
		hidden, _, _ := strings.Cut(rest, "\n")
		for _, setting := range d.settings() {
			name, _, _ := strings.Cut(setting, "=")
			if !slices.Contains(strings.Split(strings.TrimSpace(hidden), ";"), name) {
				t.Errorf("%s is not hidden: %q", name, hidden)
			}
		}
	})
	t.Run("the service starts with the machine, as LocalSystem", func(t *testing.T) {
		key := d.Registry(t, serviceKey)
		for _, want := range []string{`"Start"=dword:00000002`, `"ObjectName"="LocalSystem"`} {
			if !strings.Contains(key, want) {
				t.Errorf("%s is missing in the service's key:\n%s", want, key)
			}
		}
	})
}

// exists says whether there is a file or directory on drive C:.
func (d *desk) exists(t testing.TB, name string) bool {
	t.Helper()
	_, err := os.Lstat(d.File(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

const agentFile = programDir + "/Agent/pfoertner-agent.exe"

// sameAs checks that the notebook reports as the device that it was, with this
// version of the agent and the settings it had.
func (d *desk) sameAs(t testing.TB, first *fleetv1.Device, version, settings string) {
	t.Helper()
	d.runs(t)
	now := d.await(t, "evidence of version "+version, reportedAs(version))
	if now.GetId() != first.GetId() || !now.GetEnrolledAt().AsTime().Equal(first.GetEnrolledAt().AsTime()) {
		t.Errorf("it is another device: %v, before: %v", now, first)
	}
	if got := d.Registry(t, settingsKey); got != settings {
		t.Errorf("the settings have become\n%s\nfrom\n%s", got, settings)
	}
}

// An upgrade is told nothing and knows everything. In fleet#14958 the service
// did not start when a version was installed over another one, or over itself.
func TestFleet14958InstallationOverAnInstalledVersionKeepsIdentityAndSettings(t *testing.T) {
	d := newDesk(t)
	d.writeToken(t)
	d.install(t, older, d.settings()...)
	first := d.await(t, "evidence of the older version", reportedAs(older))
	settings := d.Registry(t, settingsKey)
	if !strings.Contains(settings, `"Collector"="`+d.Agents+`"`) {
		t.Fatalf("the settings are %s", settings)
	}
	for range 2 {
		d.install(t, newer)
		d.sameAs(t, first, newer, settings)
	}
}

// In wazuh#38182 an upgrade "succeeded" while a restart was pending, and the
// agent was gone.
func TestWazuh38182UpgradeWhileARestartIsPendingLeavesAWorkingAgent(t *testing.T) {
	d := newDesk(t)
	d.writeToken(t)
	d.install(t, older, d.settings()...)
	first := d.await(t, "evidence of the older version", reportedAs(older))
	settings := d.Registry(t, settingsKey)
	for _, pending := range [][]string{
		{`HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending`},
		{`HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired`},
		{`HKLM\SYSTEM\CurrentControlSet\Control\Session Manager`, "/v", "PendingFileRenameOperations", "/t", "REG_MULTI_SZ", "/d", `\??\C:\test\old\0\??\C:\test\new`},
	} {
		if e := d.Run(t, limit, "reg", append(append([]string{"add"}, pending...), "/f")...); e.Code != 0 {
			t.Fatalf("%+v", e)
		}
	}
	d.install(t, newer)
	d.sameAs(t, first, newer, settings)
}

func TestDowngradeIsRefusedAndRepairRestoresTheProgram(t *testing.T) {
	d := newDesk(t)
	d.writeToken(t)
	d.install(t, newer, d.settings()...)
	first := d.await(t, "evidence", reportedAs(newer))
	settings := d.Registry(t, settingsKey)

	if code, log := d.msiexec(t, "/i", `C:\test\`+older+".msi"); code != wine.Code(1603) { // ERROR_INSTALL_FAILURE
		t.Errorf("installing an older version over a newer one ended with %d:\n%s", code, log)
	}
	d.sameAs(t, first, newer, settings)

	// Unix lets a file be removed that is in use.
	if err := os.Remove(d.File(agentFile)); err != nil {
		t.Fatal(err)
	}
	if code, log := d.msiexec(t, "/i", `C:\test\`+newer+".msi", "REINSTALL=ALL", "REINSTALLMODE=amus"); code != 0 {
		t.Errorf("the repair ended with %d:\n%s", code, log)
	}
	if !d.exists(t, agentFile) {
		t.Error("the repair did not bring the program back")
	}
	d.sameAs(t, first, newer, settings)
}

func TestUninstallationLeavesNothingButTheIdentityWhenAsked(t *testing.T) {
	for _, c := range []struct {
		name  string
		words []string
		keeps bool
	}{
		{name: "nothing"},
		{name: "the identity with KEEPSTATE=1", words: []string{"KEEPSTATE=1"}, keeps: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDesk(t)
			d.writeToken(t)
			d.install(t, newer, d.settings()...)
			first := d.await(t, "evidence", reported)
			if code, log := d.msiexec(t, append([]string{"/x", `C:\test\` + newer + ".msi"}, c.words...)...); code != 0 {
				t.Fatalf("the uninstallation ended with %d:\n%s", code, log)
			}
			if e := d.Run(t, limit, "sc", "query", "pfoertner-agent"); e.Code != wine.Code(1060) { // ERROR_SERVICE_DOES_NOT_EXIST
				t.Errorf("the service is still there: %+v", e)
			}
			for _, key := range []string{settingsKey, serviceKey, sourceKey} {
				if left := d.Registry(t, key); left != "" {
					t.Errorf("the registry still has\n%s", left)
				}
			}
			// Wine leaves the empty directory of the vendor.
			if left := d.below(t, programDir); len(left) > 1 {
				t.Errorf("of the program there is still %q", left)
			}
			if d.exists(t, stateDir) != c.keeps {
				t.Errorf("%s has %q", stateDir, d.below(t, stateDir))
			}
			if !c.keeps {
				return
			}
			// Its token is used up: only the kept key can make it the same device.
			d.install(t, newer, d.settings()...)
			began := first.GetResult().GetAppraisedAt().AsTime()
			again := d.await(t, "evidence after the second installation", func(now *fleetv1.Device) bool {
				return reported(now) && now.GetResult().GetAppraisedAt().AsTime().After(began)
			})
			if again.GetId() != first.GetId() {
				t.Errorf("it is another device: %v", again)
			}
		})
	}
}

// below lists all files below a directory of drive C:.
func (d *desk) below(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(d.File(dir), func(name string, _ fs.DirEntry, err error) error {
		all = append(all, name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// In breeze#411 an enrolment that failed took the whole installation back.
func TestBreeze411InstallationSucceedsWhateverIsMissing(t *testing.T) {
	const anotherFingerprint = "0000000000000000000000000000000000000000000000000000000000000000"
	for _, c := range []struct {
		name     string
		breaks   func(*testing.T, *desk)
		settings func(*desk) []string
		// says is what the service tells anybody who asks.
		says string
		// cures brings what was missing, later.
		cures func(*testing.T, *desk)
	}{
		{
			name:     "no collector",
			breaks:   func(t *testing.T, d *desk) { d.writeToken(t); d.Collector.Stop() },
			settings: (*desk).settings,
			says:     "is not enrolled yet",
			cures:    func(t *testing.T, d *desk) { d.Collector.Start(t) },
		},
		{
			name:     "another fingerprint",
			breaks:   func(t *testing.T, d *desk) { d.writeToken(t) },
			settings: func(d *desk) []string { return append(d.settings(), "CAFINGERPRINT="+anotherFingerprint) },
			says:     "is not enrolled yet",
			cures:    func(t *testing.T, d *desk) { d.policy(t, "CAFingerprint", d.Fingerprint) },
		},
		{
			name:     "no token",
			breaks:   func(*testing.T, *desk) {},
			settings: (*desk).settings,
			says:     "is not enrolled yet",
			cures:    func(t *testing.T, d *desk) { d.writeToken(t) },
		},
		{
			name:     "nothing is set",
			breaks:   func(t *testing.T, d *desk) { d.writeToken(t) },
			settings: func(*desk) []string { return nil },
			says:     "is not set up yet",
			cures: func(t *testing.T, d *desk) {
				for _, setting := range [][2]string{{"Collector", d.Agents}, {"CAFingerprint", d.Fingerprint}, {"TokenFile", `C:\test\token`}, {"DeviceKey", "software"}} {
					d.policy(t, setting[0], setting[1])
				}
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			c.breaks(t, d)
			d.install(t, newer, c.settings(d)...)
			said := d.Run(t, limit, `C:\Program Files\Pfoertner\Agent\pfoertner-agent.exe`, "status", "--lang", "en")
			if said.Code != 0 || !strings.Contains(said.Output, c.says) {
				t.Errorf("status does not say %q: %+v", c.says, said)
			}
			c.cures(t, d)
			d.await(t, "evidence, after all", reported)
			d.runs(t)
		})
	}
}

// policy makes a setting as group policy does.
func (d *desk) policy(t testing.TB, name, value string) {
	t.Helper()
	if e := d.Run(t, limit, "reg", "add", `HKLM\SOFTWARE\Policies\Pfoertner\Agent`, "/v", name, "/d", value, "/f"); e.Code != 0 {
		t.Fatalf("%+v", e)
	}
}
