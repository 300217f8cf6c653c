package probe

import (
	"errors"
	"testing"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// runningKernel is what RtlGetVersion says.
type runningKernel struct {
	build uint32
	err   error
}

func (k runningKernel) Running() (major, minor, build uint32, err error) {
	return 10, 0, k.build, k.err
}

func registeredRelease(build string, ubr int, more keys) keys {
	return merged(keys{
		currentVersionKey + `\CurrentBuild`: build, currentVersionKey + `\CurrentBuildNumber`: build,
		currentVersionKey + `\UBR`: ubr, currentVersionKey + `\DisplayVersion`: "24H2",
		currentVersionKey + `\EditionID`: "Enterprise", currentVersionKey + `\InstallationType`: "Client",
		currentVersionKey + `\ProductName`: "Windows 10 Enterprise", bootCountKey + `\BootId`: 17,
	}, more)
}

func windowsPlatform(t *testing.T, r keys, kernel runningKernel) *posturev1.Platform {
	t.Helper()
	host := Host{Windows: &Windows{Registry: r, Version: kernel}, Now: time.Now}
	return NewCollector(host, []Probe{platformProbe("1.2.3")}).Collect(t.Context()).GetPlatform()
}

func TestReleaseOfWindows(t *testing.T) {
	p := windowsPlatform(t, registeredRelease("26100", 4061, nil), runningKernel{build: 26100})
	if p.GetWindows().GetBuild() != 26100 || p.GetWindows().GetUbr() != 4061 || p.GetKernelRelease() != "10.0.26100.4061" ||
		p.GetVersion() != "24H2" || p.GetEdition() != "Enterprise" || p.GetWindows().GetInstallationType() != "Client" ||
		p.GetDistribution() != "windows" || p.GetAgentVersion() != "1.2.3" || len(p.GetContradictions()) != 0 {
		t.Errorf("platform is %v", p)
	}
}

func TestBuildThatTheKernelDeniesIsAContradiction(t *testing.T) {
	p := windowsPlatform(t, registeredRelease("26100", 4061, nil), runningKernel{build: 19045})
	if len(p.GetContradictions()) != 1 || p.GetContradictions()[0].GetSaysB() != "19045" {
		t.Errorf("contradictions: %v", p.GetContradictions())
	}
	p = windowsPlatform(t, registeredRelease("26100", 4061, keys{currentVersionKey + `\CurrentBuildNumber`: "22631"}), runningKernel{build: 26100})
	if len(p.GetContradictions()) != 1 || p.GetContradictions()[0].GetSaysB() != "22631" {
		t.Errorf("contradictions: %v", p.GetContradictions())
	}
}

func TestReleaseThatCannotBeReadFails(t *testing.T) {
	for name, c := range map[string]struct {
		registry keys
		kernel   runningKernel
	}{
		"no build":        {registeredRelease("26100", 4061, keys{currentVersionKey + `\CurrentBuild`: nil}), runningKernel{build: 26100}},
		"no number":       {registeredRelease("26100", 4061, keys{currentVersionKey + `\CurrentBuild`: "new"}), runningKernel{build: 26100}},
		"zero":            {registeredRelease("0", 4061, nil), runningKernel{build: 26100}},
		"too large":       {registeredRelease("99999999999", 4061, nil), runningKernel{build: 26100}},
		"no revision":     {registeredRelease("26100", 4061, keys{currentVersionKey + `\UBR`: nil}), runningKernel{build: 26100}},
		"revision denied": {registeredRelease("26100", 4061, keys{currentVersionKey + `\UBR`: errors.New("access is denied")}), runningKernel{build: 26100}},
		"kernel silent":   {registeredRelease("26100", 4061, nil), runningKernel{err: errors.New("not implemented")}},
	} {
		if r := windowsPlatform(t, c.registry, c.kernel).GetReading(); r.GetState() != posturev1.ReadingState_READING_STATE_FAILED {
			t.Errorf("%s: %v", name, r)
		}
	}
}

func TestWhoTakesHotpatches(t *testing.T) {
	policy := hotpatchPolicyKey + `\AllowRebootlessUpdates`
	server := keys{currentVersionKey + `\InstallationType`: "Server Core", currentVersionKey + `\EditionID`: "ServerStandard"}
	for name, c := range map[string]struct {
		build string
		more  keys
		want  posturev1.Ternary
	}{
		"client by policy":          {"26100", keys{policy: 1}, yes},
		"client without policy":     {"26100", nil, no},
		"client, policy off":        {"26100", keys{policy: 0}, no},
		"client before 24H2":        {"22631", keys{policy: 1}, no},
		"server":                    {"20348", server, no},
		"server with a table":       {"26100", merged(server, keys{memoryKey + `\HotPatchTableSize`: 0x1000}), yes},
		"Azure edition":             {"20348", merged(server, keys{currentVersionKey + `\EditionID`: "ServerTurbine"}), yes},
		"policy cannot be read":     {"26100", keys{policy: errors.New("access is denied")}, unknown},
		"kind of Windows not known": {"26100", keys{currentVersionKey + `\InstallationType`: nil}, unknown},
	} {
		if got := windowsPlatform(t, registeredRelease(c.build, 1, c.more), runningKernel{build: 26100}).GetWindows().GetHotpatch(); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestHypervisorByItsFirmware(t *testing.T) {
	for _, c := range []struct{ vendor, model, want string }{
		{"Microsoft Corporation", "Virtual Machine", "hyperv"},
		{"Microsoft Corporation", "Surface Laptop 6", ""},
		{"VMware, Inc.", "VMware20,1", "vmware"},
		{"innotek GmbH", "VirtualBox", "vbox"},
		{"QEMU", "Standard PC (Q35 + ICH9, 2009)", "kvm"},
		{"Xen", "HVM domU", "xen"},
		{"Parallels International GmbH.", "Parallels ARM Virtual Machine", "parallels"},
		{"LENOVO", "21HMCTO1WW", ""},
		{"", "", ""},
	} {
		if got := hypervisorOf(smbios{vendor: c.vendor, model: c.model}); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.vendor, c.model, got, c.want)
		}
	}
}

func TestTimeOfAStartStaysWhenTheClockIsCorrected(t *testing.T) {
	p := &platform{}
	first := time.Date(2026, 6, 19, 6, 12, 0, 0, time.UTC)
	for _, c := range []struct{ read, want time.Duration }{{0, 0}, {3 * time.Second, 0}, {-4 * time.Minute, 0}, {time.Hour, time.Hour}} {
		if got := p.sameBoot(first.Add(c.read)); !got.Equal(first.Add(c.want)) {
			t.Errorf("read %v later: %v", c.read, got)
		}
	}
}
