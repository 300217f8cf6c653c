package probe

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// platformTree is a Debian 12 notebook.
func platformTree(t testing.TB) fstest.MapFS {
	debian, err := os.ReadFile("testdata/distro-info/debian.csv")
	if err != nil {
		t.Fatal(err)
	}
	ubuntu, err := os.ReadFile("testdata/distro-info/ubuntu.csv")
	if err != nil {
		t.Fatal(err)
	}
	return with(layTrees(t, "apt/minimal"), fstest.MapFS{
		"proc/sys/kernel/osrelease":        file("6.1.0-50-amd64\n"),
		"proc/sys/kernel/random/boot_id":   file("3fe1ea3c-0fad-4410-9bc2-3640d95f4b92\n"),
		"sys/class/dmi/id/chassis_type":    file("10\n"),
		"usr/share/distro-info/debian.csv": file(string(debian)),
		"usr/share/distro-info/ubuntu.csv": file(string(ubuntu)),
	})
}

func readPlatform(t testing.TB, files fstest.MapFS, system SystemInfo) *posturev1.Platform {
	return observe(t, Host{Files: files, System: fakeSystem(system)}, platformProbe("1.2.3")).Platform
}

func TestPlatformOfANotebook(t *testing.T) {
	booted := testNow.Add(-3 * time.Hour)
	p := readPlatform(t, platformTree(t), SystemInfo{KernelArch: "x86_64", BootTime: booted})
	wantState(t, p.Reading, observed)
	got := strings.Join([]string{
		p.Distribution, p.Edition, p.Version, p.Codename, p.KernelRelease, p.Architecture, p.BootId, p.Hypervisor, p.AgentVersion,
		p.OperatingSystem.String(), p.FormFactor.String(), p.BootedAt.AsTime().String(),
	}, "|")
	want := "debian||12|bookworm|6.1.0-50-amd64|amd64|3fe1ea3c-0fad-4410-9bc2-3640d95f4b92||1.2.3|OPERATING_SYSTEM_LINUX|FORM_FACTOR_NOTEBOOK|" + booted.String()
	if got != want {
		t.Errorf("read %s\nwant %s", got, want)
	}
}

// ends writes ends of support as "kind last-second source".
func ends(p *posturev1.Platform) string {
	var lines []string
	for _, e := range p.SupportEnds {
		kind := strings.TrimPrefix(e.Kind.String(), "SUPPORT_KIND_")
		lines = append(lines, kind+" "+e.EndsAt.AsTime().Format(time.DateTime)+" "+e.Source)
	}
	return strings.Join(lines, "\n")
}

func TestEndsOfSupportAreKeptApart(t *testing.T) {
	for _, c := range []struct{ name, osRelease, want string }{
		{"Debian: full support, LTS and ELTS", "ID=debian\nVERSION_CODENAME=bookworm\n",
			"STANDARD 2026-07-11 23:59:59 distro-info eol\nLTS 2028-06-30 23:59:59 distro-info eol-lts\nEXTENDED 2033-06-30 23:59:59 distro-info eol-elts"},
		{"Debian testing has no end yet", "ID=debian\nVERSION_CODENAME=forky\n", ""},
		{"a release its table does not know", "ID=debian\nVERSION_CODENAME=nimmerland\n", ""},
		{"Ubuntu LTS: standard, ESM, Legacy", "ID=ubuntu\nVERSION_CODENAME=noble\n",
			"STANDARD 2029-05-31 23:59:59 distro-info eol\nEXTENDED 2034-04-25 23:59:59 distro-info eol-esm\nEXTENDED 2036-04-29 23:59:59 distro-info eol-legacy"},
		{"Ubuntu between: standard alone", "ID=ubuntu\nVERSION_CODENAME=plucky\n", "STANDARD 2026-01-15 23:59:59 distro-info eol"},
		{"os-release itself", "ID=fedora\nVARIANT_ID=workstation\nSUPPORT_END=2026-12-02\n", "STANDARD 2026-12-02 23:59:59 os-release SUPPORT_END"},
		{"nobody says", "ID=arch\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := with(platformTree(t), fstest.MapFS{"etc/os-release": file(c.osRelease)})
			p := readPlatform(t, files, SystemInfo{})
			wantState(t, p.Reading, observed)
			if got := ends(p); got != c.want {
				t.Errorf("ends:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}

func TestPlatformThatIsReadInPartFailsAndKeepsTheRest(t *testing.T) {
	for _, c := range []struct {
		name   string
		files  fstest.MapFS
		reason string
	}{
		{"no os-release", fstest.MapFS{"etc/os-release": nil}, "os-release"},
		{"os-release without an ID", fstest.MapFS{"etc/os-release": file("NAME=x\n")}, "no ID"},
		{"SUPPORT_END is no date", fstest.MapFS{"etc/os-release": file("ID=x\nSUPPORT_END=soon\n")}, "not a date"},
		{"distro-info is nonsense", fstest.MapFS{"usr/share/distro-info/debian.csv": file("a,\"b\n")}, "distro-info"},
		{"no boot id", fstest.MapFS{"proc/sys/kernel/random/boot_id": nil}, "boot_id"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := readPlatform(t, with(platformTree(t), c.files), SystemInfo{})
			wantState(t, p.Reading, failed)
			if !strings.Contains(p.Reading.Reason, c.reason) || p.KernelRelease != "6.1.0-50-amd64" {
				t.Errorf("reason %q, kernel %q", p.Reading.Reason, p.KernelRelease)
			}
		})
	}
}

func TestOSReleaseQuoting(t *testing.T) {
	fields, err := parseOSRelease(strings.NewReader("# comment\nID='debian'\nNAME=\"a \\\"b\\\" \\$c\"\nVARIANT_ID=kiosk\nnonsense\nEMPTY=\n"))
	if err != nil || fields["ID"] != "debian" || fields["NAME"] != `a "b" $c` || fields["VARIANT_ID"] != "kiosk" {
		t.Errorf("%v, %v", fields, err)
	}
}

func TestFormFactor(t *testing.T) {
	for chassis, want := range map[string]string{"8": "NOTEBOOK", "9": "NOTEBOOK", "10": "NOTEBOOK", "14": "NOTEBOOK", "31": "NOTEBOOK",
		"30": "TABLET", "32": "TABLET", "3": "DESKTOP", "13": "DESKTOP", "35": "DESKTOP", "17": "SERVER", "23": "SERVER",
		"1": "UNSPECIFIED", "2": "UNSPECIFIED", "": "UNSPECIFIED", "nonsense": "UNSPECIFIED"} {
		files := fstest.MapFS{"sys/class/dmi/id/chassis_type": file(chassis + "\n")}
		if got := formFactor(files, false).String(); got != "FORM_FACTOR_"+want {
			t.Errorf("chassis %q is %s, want %s", chassis, got, want)
		}
	}
	p := readPlatform(t, platformTree(t), SystemInfo{Virtualization: "kvm", VirtualRole: "guest"})
	if p.FormFactor != posturev1.FormFactor_FORM_FACTOR_VIRTUAL || p.Hypervisor != "kvm" {
		t.Errorf("a guest with a notebook's chassis is %s under %q", p.FormFactor, p.Hypervisor)
	}
	p = readPlatform(t, platformTree(t), SystemInfo{Virtualization: "kvm", VirtualRole: "host"})
	if p.FormFactor != posturev1.FormFactor_FORM_FACTOR_NOTEBOOK || p.Hypervisor != "" {
		t.Errorf("a notebook that hosts guests is %s under %q", p.FormFactor, p.Hypervisor)
	}
}

func TestTimeOfStartDoesNotMoveWithTheClock(t *testing.T) {
	files, probe := platformTree(t), platformProbe("")
	read := func(booted time.Time) time.Time {
		return observe(t, Host{Files: files, System: fakeSystem{BootTime: booted}}, probe).Platform.BootedAt.AsTime()
	}
	first := read(testNow)
	if second := read(testNow.Add(time.Second)); second != first {
		t.Errorf("the same boot moved from %s to %s", first, second)
	}
	files["proc/sys/kernel/random/boot_id"] = file("another\n")
	if third := read(testNow.Add(time.Hour)); third != testNow.Add(time.Hour) {
		t.Errorf("the next boot was at %s", third)
	}
}

func FuzzOSRelease(f *testing.F) {
	f.Add("ID=debian\nVERSION_ID=\"12\"\n")
	f.Add("ID='a'b\\\nX=\"")
	f.Fuzz(func(t *testing.T, content string) {
		fields, err := parseOSRelease(strings.NewReader(content))
		if err == nil && fields["ID"] == "" {
			t.Error("taken without an ID")
		}
	})
}

func FuzzDistroInfo(f *testing.F) {
	for _, name := range []string{"debian", "ubuntu"} {
		content, err := os.ReadFile("testdata/distro-info/" + name + ".csv")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(content), "bookworm")
	}
	f.Add("series,eol\nx,2026-02-30\n", "x")
	f.Fuzz(func(t *testing.T, content, codename string) {
		ends, err := parseDistroInfo(strings.NewReader(content), codename, "test")
		for _, e := range ends {
			if err == nil && (e.Kind == posturev1.SupportKind_SUPPORT_KIND_UNSPECIFIED || !e.EndsAt.IsValid()) {
				t.Errorf("an end without kind or date: %v", e)
			}
		}
	})
}
