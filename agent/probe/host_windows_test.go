package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// These tests run on Windows and under Wine. Where Wine lacks a part, the test
// demands the answer that says so: an error that a person understands.

// underWine is what only Wine's ntdll has (wine_get_version).
func underWine() bool {
	return windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil
}

func TestWindowsShowsItsRegistry(t *testing.T) {
	r := NewHost().Windows.Registry
	v, err := r.Value(`SOFTWARE\Microsoft\Windows NT\CurrentVersion`, "CurrentBuild")
	if err != nil || v.Type != "SZ" || !regexp.MustCompile(`^\d{4,6}$`).MatchString(v.Text) {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := r.Value(`SOFTWARE\Microsoft\Windows NT\CurrentVersion`, "NoSuchValue"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a value that is not there: %v", err)
	}
	if _, err := r.Value(`SOFTWARE\NoSuchKey`, "X"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a key that is not there: %v", err)
	}
	for key, want := range map[string]bool{`SOFTWARE\Microsoft`: true, `SOFTWARE\NoSuchKey`: false} {
		if there, err := r.Exists(key); err != nil || there != want {
			t.Errorf("%s: %v, %v", key, there, err)
		}
	}
}

func TestWindowsRegistryValuesKeepTheirTypes(t *testing.T) {
	k, name := scratchKey(t)
	for _, err := range []error{
		k.SetStringValue("text", "Größe"), k.SetExpandStringValue("expand", `%SystemRoot%\x`),
		k.SetStringsValue("lines", []string{"a", "b"}), k.SetDWordValue("dword", 0xFFFFFFFF),
		k.SetQWordValue("qword", 1<<40), k.SetBinaryValue("binary", []byte{0, 1, 2}),
		k.SetStringValue("empty", ""), k.SetBinaryValue("huge", make([]byte, maxRegistryValue+1)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for value, want := range map[string]RegistryValue{
		"text":   {Type: "SZ", Text: "Größe"},
		"expand": {Type: "EXPAND_SZ", Text: `%SystemRoot%\x`},
		"lines":  {Type: "MULTI_SZ", Lines: []string{"a", "b"}},
		"dword":  {Type: "DWORD", Number: 0xFFFFFFFF},
		"qword":  {Type: "QWORD", Number: 1 << 40},
		"binary": {Type: "BINARY", Bytes: []byte{0, 1, 2}},
		"empty":  {Type: "SZ"},
	} {
		got, err := localMachine{}.Value(name, value)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %+v, %v", value, got, err)
		}
	}
	if _, err := (localMachine{}).Value(name, "huge"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("a value without bound: %v", err)
	}
}

// scratchKey is a key of HKEY_LOCAL_MACHINE that ends with the test.
func scratchKey(t *testing.T) (registry.Key, string) {
	t.Helper()
	name := `SOFTWARE\Pfoertner test ` + strings.NewReplacer("/", " ", `\`, " ").Replace(t.Name())
	const access = registry.ALL_ACCESS | registry.WOW64_64KEY
	k, _, err := registry.CreateKey(registry.LOCAL_MACHINE, name, access)
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		t.Skip("NOT TESTED: writing to HKEY_LOCAL_MACHINE needs an administrator")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Close()
		if err := registry.DeleteKey(registry.LOCAL_MACHINE, name); err != nil && !errors.Is(err, registry.ErrNotExist) {
			t.Error(err)
		}
	})
	return k, name
}

func TestWindowsShowsItsVolumes(t *testing.T) {
	volumes, err := NewHost().Windows.Disks.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	isVolume := regexp.MustCompile(`^\\\\\?\\Volume\{[0-9A-Fa-f-]{36}\}\\$`)
	system := 0
	for _, v := range volumes {
		t.Logf("drive type %d, file system %q, letters %d, system %v, partition %q, problem %q",
			v.DriveType, v.FileSystem, v.Letters, v.System, v.PartitionType, v.Problem)
		if !isVolume.MatchString(v.Volume) {
			t.Errorf("%q is no GUID path", v.Volume)
		}
		if (v.DriveType == windows.DRIVE_FIXED || v.System) && (v.FileSystem == "" || v.PartitionType == "") && v.Problem == "" {
			t.Errorf("%s: nothing read and no reason", v.Volume)
		}
		if v.System {
			system++
			if v.DriveType != windows.DRIVE_FIXED && !underWine() || v.Letters == 0 {
				t.Errorf("the system volume: %+v", v)
			}
		}
	}
	if system != 1 {
		t.Errorf("%d system volumes among %d", system, len(volumes))
	}
}

func TestWindowsListsWhatIsMountedWhere(t *testing.T) {
	for list, want := range map[string]int{
		"\x00": 0, "\x00\x00": 0, "C:\\\x00\x00": 1, "C:\\\x00D:\\mount\\\x00\x00": 2, "C:\\": 1, "": 0,
	} {
		if got := countTexts(utf16(list)); got != want {
			t.Errorf("%q: %d", list, got)
		}
	}
}

func utf16(s string) []uint16 {
	var list []uint16
	for _, r := range s {
		list = append(list, uint16(r))
	}
	return list
}

func TestWindowsFindsServices(t *testing.T) {
	s := NewHost().Windows.Services
	found, err := s.Matching(t.Context(), "rpcss", "NoSuchService", "Plug*")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, service := range found {
		names = append(names, strings.ToLower(service.Name))
		if service.State == 0 || service.State > 7 || service.StartType > 4 || !isFile(service.Program) {
			t.Errorf("%+v", service)
		}
	}
	if !slices.Contains(names, "rpcss") || !slices.Contains(names, "plugplay") || slices.Contains(names, "nosuchservice") {
		t.Errorf("found %v", names)
	}
}

func TestWindowsAnswersWhoMadeAProgram(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := readProgram(t.Context(), self)
	if err != nil || p.Trust != uint32(windows.TRUST_E_NOSIGNATURE) || p.Publisher != "" || p.FileVersion != "" {
		t.Errorf("this program, which nobody signed: %+v, %v", p, err)
	}
	dir, err := windows.GetSystemDirectory()
	if err != nil {
		t.Fatal(err)
	}
	p, err = readProgram(t.Context(), filepath.Join(dir, "kernel32.dll"))
	if err != nil || !regexp.MustCompile(`^\d+\.\d+\.\d+\.\d+$`).MatchString(p.FileVersion) || p.ProductName == "" {
		t.Errorf("a part of Windows: %+v, %v", p, err)
	}
	t.Logf("kernel32.dll: %+v", p)
	if _, err := readProgram(t.Context(), filepath.Join(t.TempDir(), "none.exe")); !errors.Is(err, ErrNotFound) || strings.Contains(err.Error(), "none.exe") {
		t.Errorf("a program that is not there: %v", err)
	}
	if _, err := readProgram(t.Context(), t.TempDir()); err == nil {
		t.Error("a directory is a program")
	}
}

// testdata/programs/signed.exe is a program of three bytes, signed by a
// certificate of an authority that nobody trusts (openssl, osslsigncode). Wine
// trusts it.
func TestWindowsNamesThePublisherWhomItDoesNotTrust(t *testing.T) {
	const signed = "testdata/programs/signed.exe"
	p, err := readProgram(t.Context(), signed)
	if err != nil || p.Publisher != "Pförtner test publisher" || p.Trust == uint32(windows.TRUST_E_NOSIGNATURE) {
		t.Errorf("%+v, %v", p, err)
	}
	if p.Trust != uint32(windows.CERT_E_UNTRUSTEDROOT) && !underWine() {
		t.Errorf("trust 0x%08X", p.Trust)
	}

	program, err := os.ReadFile(signed)
	if err != nil {
		t.Fatal(err)
	}
	program[0x200]++ // in its code
	changed := filepath.Join(t.TempDir(), "changed.exe")
	if err := os.WriteFile(changed, program, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err = readProgram(t.Context(), changed)
	t.Logf("changed afterwards: trust 0x%08X, %v", p.Trust, err)
	if p.Trust != uint32(windows.TRUST_E_BAD_DIGEST) {
		t.Errorf("changed afterwards: trust 0x%08X", p.Trust)
	}
}

func TestWindowsAnswersWhichDialupsThereAre(t *testing.T) {
	connections, err := readDialups(t.Context())
	if err != nil {
		t.Errorf("%v", err)
	}
	t.Logf("%+v", connections)
	list, err := rasConnections(windows.NewLazySystemDLL("rasapi32.dll").NewProc("RasEnumConnectionsW"))
	t.Logf("asked whether the service runs or not: %d connections, %v", len(list), err)
}

func TestWindowsShowsItsFirmware(t *testing.T) {
	f := NewHost().Windows.Firmware
	value, err := f.Variable("SecureBoot", "{8be4df61-93ca-11d2-aa0d-00e098032b8c}")
	t.Logf("SecureBoot: % x, %v", value, err)
	if err == nil && len(value) != 1 {
		t.Errorf("SecureBoot is % x", value)
	}
	if _, err := f.Variable("NoSuchVariable", "{8be4df61-93ca-11d2-aa0d-00e098032b8c}"); err == nil {
		t.Error("a variable that is not there has a value")
	}
	table, err := f.SMBIOS()
	if err != nil {
		t.Fatalf("SMBIOS: %v", err)
	}
	// RawSMBIOSData: calling method, major, minor, revision, then the length.
	if len(table) < 8 || int(binary.LittleEndian.Uint32(table[4:])) > len(table)-8 || table[1] < 2 {
		t.Errorf("SMBIOS: %d bytes, % x", len(table), table[:min(8, len(table))])
	}
}

func TestWindowsPrivilegesEndWithTheirCall(t *testing.T) {
	err := withPrivilege("SeSystemEnvironmentPrivilege", func() error {
		var token windows.Token
		if err := windows.OpenThreadToken(windows.CurrentThread(), windows.TOKEN_QUERY, true, &token); err != nil {
			return fmt.Errorf("no token of its own: %w", err)
		}
		return token.Close()
	})
	if err != nil {
		t.Error(err)
	}
	if err := withPrivilege("SeNoSuchPrivilege", func() error { return nil }); err == nil {
		t.Error("a privilege that does not exist was switched on")
	}
}

func TestWindowsTellsOfItsTPM(t *testing.T) {
	answer, err := NewHost().Windows.SecurityChip.Device()
	t.Logf("%#x version %d, %v", answer.Result, answer.Version, err)
	if err == nil && answer.Result == 0 && answer.Version != 1 && answer.Version != 2 {
		t.Errorf("a TPM of version %d", answer.Version)
	}
	if err == nil && answer.Result == 0 && underWine() {
		t.Error("Wine has a TPM")
	}
}

func TestWindowsShowsItsLinks(t *testing.T) {
	links, err := NewHost().Network.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	loopback := false
	for _, l := range links {
		t.Logf("%+v", l)
		if l.Index == 0 || l.OperState == "" || l.Kind != "" {
			t.Errorf("%+v", l)
		}
		if l.Loopback {
			loopback = slices.Contains(l.Addresses, netip.MustParsePrefix("127.0.0.1/8")) && l.Up && l.Running
		}
	}
	if !loopback {
		t.Error("no loopback that works")
	}
}

func TestWindowsLooksUpRoutes(t *testing.T) {
	n := NewHost().Network
	for _, address := range []string{"127.0.0.1", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"} {
		r, err := n.Route(t.Context(), netip.MustParseAddr(address))
		t.Logf("%s: %+v, %v", address, r, err)
		if underWine() {
			if err == nil || errors.Is(err, ErrNoRoute) {
				t.Errorf("%s: Wine cannot look up routes, and that is no knowledge: %v", address, err)
			}
			continue
		}
		if err != nil && !errors.Is(err, ErrNoRoute) {
			t.Errorf("%s: %v", address, err)
		}
	}
	if _, err := n.Route(t.Context(), netip.Addr{}); err == nil || errors.Is(err, ErrNoRoute) {
		t.Errorf("no address at all: %v", err)
	}
}

func TestWindowsShowsWireGuardWithoutKeys(t *testing.T) {
	links, err := NewHost().Network.WireGuard(t.Context())
	t.Logf("%+v, %v", links, err)
	if err != nil && !underWine() {
		t.Error(err)
	}
}

func TestWindowsSaysWhichVersionRuns(t *testing.T) {
	major, minor, build, err := NewHost().Windows.Version.Running()
	if err != nil || major < 10 || build < 10240 {
		t.Errorf("%d.%d.%d, %v", major, minor, build, err)
	}
}

// Structures that Go lays out by itself; sizes and offsets from the headers of
// the Windows SDK, the same on amd64 and arm64.
func TestWindowsStructuresAreLaidOutAsItsHeadersSay(t *testing.T) {
	for name, c := range map[string]struct{ got, want uintptr }{
		"PARTITION_INFORMATION_EX":       {unsafe.Sizeof(partitionInformationEx{}), 144},
		"PARTITION_INFORMATION_EX.Gpt":   {unsafe.Offsetof(partitionInformationEx{}.kind), 32},
		"TPM_DEVICE_INFO":                {unsafe.Sizeof(tpmDeviceInfo{}), 16},
		"RASCONNW":                       {unsafe.Sizeof(rasConnection{}), 1388},
		"RASCONNW.hrasconn":              {unsafe.Offsetof(rasConnection{}.handle), 4},
		"RASCONNW.szDeviceType":          {unsafe.Offsetof(rasConnection{}.deviceType), 526},
		"RASCONNW.szPhonebook":           {unsafe.Offsetof(rasConnection{}.phonebook), 818},
		"RASCONNW.dwSubEntry":            {unsafe.Offsetof(rasConnection{}.subEntry), 1340},
		"RASCONNSTATUSW":                 {unsafe.Sizeof(rasStatus{}), 608},
		"RASCONNSTATUSW.rasconnstate":    {unsafe.Offsetof(rasStatus{}.state), 4},
		"RASCONNSTATUSW.szPhoneNumber":   {unsafe.Offsetof(rasStatus{}.phoneNumber), 304},
		"RASCONNSTATUSW.localEndPoint":   {unsafe.Offsetof(rasStatus{}.endpoints), 564},
		"RASCONNSTATUSW.rasconnsubstate": {unsafe.Offsetof(rasStatus{}.subState), 604},
		"WINTRUST_DATA":                  {unsafe.Sizeof(windows.WinTrustData{}), 88},
		"ENUM_SERVICE_STATUS_PROCESSW":   {unsafe.Sizeof(windows.ENUM_SERVICE_STATUS_PROCESS{}), 56},
		"VS_FIXEDFILEINFO":               {unsafe.Sizeof(windows.VS_FIXEDFILEINFO{}), 52},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", name, c.got, c.want)
		}
	}
}

// The firewall and the Security Center are asked in a process of their own;
// here their reading alone is tried.
func TestWindowsAnswersAboutFirewallAndAntivirusOrSaysWhyNot(t *testing.T) {
	for name, read := range map[string]func(context.Context) error{
		"firewall":  func(ctx context.Context) error { a, err := readFirewall(ctx); t.Logf("%+v", a); return err },
		"antivirus": func(ctx context.Context) error { a, err := readAntivirus(ctx); t.Logf("%+v", a); return err },
	} {
		t.Run(name, func(t *testing.T) {
			err := read(t.Context())
			t.Log(err)
			if err != nil && !underWine() {
				t.Error(err)
			}
		})
	}
}
