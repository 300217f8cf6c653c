package capture

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pfoertner/agent/probe"
)

// methods are all that can be asked, each with an argument that a probe gives.
func questions() []question {
	return []question{
		ask(askSystem), ask(askLinks), ask(askRoute, "9.9.9.9"), ask(askIPsec), ask(askWireGuard),
		ask(askValue, `SYSTEM\CurrentControlSet\Control\ComputerName\ComputerName\ComputerName`),
		ask(askValue, `SOFTWARE\Microsoft\Windows NT\CurrentVersion\EditionID`),
		ask(askValue, `SYSTEM\CurrentControlSet\Control\Session Manager\PendingFileRenameOperations`),
		ask(askExists, `SOFTWARE\Policies`), ask(askBitLocker), ask(askDisks), ask(askUpdates),
		ask(askServices, "PanGPS"), ask(askServices, "WireGuardTunnel$*"), ask(askServices, "OpenVPN*"),
		ask(askProgram, `C:\Users\anna.schmidt\x\vpn.exe`), ask(askDialups),
		ask(askVariable, "SecureBoot {8be4df61-93ca-11d2-aa0d-00e098032b8c}"), ask(askSMBIOS),
		ask(askChip), ask(askFirewall), ask(askAntivirus), ask(askVersion),
	}
}

// plant fills every text, list, byte and address of a value.
func plant(v reflect.Value, text string) {
	switch v.Interface().(type) {
	case time.Time:
		return
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.MustParseAddr("100.64.7.23")))
		return
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.MustParsePrefix("100.64.7.23/28")))
		return
	case []byte:
		v.Set(reflect.ValueOf([]byte(text)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Struct:
		for i := range v.NumField() {
			plant(v.Field(i), text)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			plant(v.Index(i), text)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		plant(v.Elem(), text)
	}
}

// carriers are the places of a value that hold any of the texts.
func carriers(v reflect.Value, place string, texts []string) []string {
	holds := func(s string) bool {
		return slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(strings.ToLower(s), t) })
	}
	var found []string
	switch x := v.Interface().(type) {
	case []byte:
		if holds(string(x)) {
			found = append(found, place)
		}
		return found
	case fmt.Stringer: // times and addresses
		if holds(x.String()) {
			found = append(found, place)
		}
		return found
	}
	switch v.Kind() {
	case reflect.String:
		if holds(v.String()) {
			found = append(found, place)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			found = append(found, carriers(v.Field(i), place+"."+v.Type().Field(i).Name, texts)...)
		}
	case reflect.Slice:
		for i := range v.Len() {
			found = append(found, carriers(v.Index(i), place, texts)...)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			found = append(found, carriers(v.Elem(), place, texts)...)
		}
	}
	return found
}

// planted is a recording in which every field of every answer holds text.
func planted(t *testing.T, text string, problem error) *Recording {
	t.Helper()
	r := &Recording{at: time.Date(2026, 6, 20, 8, 0, 0, 0, time.UTC), replies: map[question]reply{}}
	for _, q := range questions() {
		k, ok := kindOf(q.method())
		if !ok {
			t.Fatalf("no kind of question %s", q)
		}
		zero, err := k.decode(nil)
		if err != nil {
			t.Fatal(err)
		}
		value := reflect.New(reflect.TypeOf(zero)).Elem()
		plant(value, text)
		r.replies[q] = reply{value.Interface(), problem}
	}
	r.replies[askSMBIOS] = reply{table(text), problem}
	return r
}

// written writes a recording and reads it back.
func written(t *testing.T, r *Recording) (string, *Capture) {
	t.Helper()
	var file bytes.Buffer
	if err := r.Write(&file); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "capture.json"), file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Read(os.DirFS(dir), "capture.json")
	if err != nil {
		t.Fatalf("what was written is not read: %v\n%s", err, file.String())
	}
	return file.String(), c
}

func placesIn(c *Capture, texts []string) []string {
	var found []string
	for _, q := range slices.Sorted(maps.Keys(c.replies)) {
		r := c.replies[q]
		found = append(found, carriers(reflect.ValueOf(question(q)), "question", texts)...)
		if r.err != nil && strings.Contains(strings.ToLower(r.err.Error()), texts[0]) {
			found = append(found, question(q).method()+" error")
		}
		found = append(found, carriers(reflect.ValueOf(r.value), question(q).method(), texts)...)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func TestNothingPersonalReachesACapture(t *testing.T) {
	texts := []string{"anna", "schmidt", "users", "deadbeef", "100.64.7"}
	for _, text := range []string{
		`anna.schmidt@amt.example`,
		`C:\Users\anna.schmidt\AppData\vpn.exe`,
		`\\?\Volume{deadbeef-0000-4000-8000-00805f9b34fb}\anna`,
		"Anna\nSchmidt",
		`C:\Program Files\..\Users\anna\vpn.exe`,
	} {
		file, c := written(t, planted(t, text, fmt.Errorf("opening %s: %w", text, probe.ErrNotFound)))
		if found := placesIn(c, texts); len(found) > 0 {
			t.Errorf("%q: reaches %v", text, found)
		}
		for _, personal := range texts {
			if strings.Contains(strings.ToLower(file), personal) {
				t.Errorf("%q: %q stands in the file:\n%s", text, personal, file)
			}
		}
	}
}

// Makers name themselves and their products; these fields, which the collection
// list names, take any name that looks like one, and no others do.
func TestOnlyMakersNamesAreFreeText(t *testing.T) {
	_, c := written(t, planted(t, "Anna Schmidt", nil))
	want := []string{
		"firmware.smbios", // vendor and model
		"programs.identify.ProductName",
		"programs.identify.Publisher",
		"registry.value.Text", // EditionID, which Windows sets
		"security_center.antivirus.Products.Name",
	}
	if got := placesIn(c, []string{"anna"}); !slices.Equal(got, want) {
		t.Errorf("free text is kept in %v, want %v", got, want)
	}
}

func TestAnUnsignedProgramNamesNoProduct(t *testing.T) {
	r := newRedactor(nil)
	if p := r.program(probe.Program{Trust: 0x800B0100, ProductName: "Anna Tunnel"}); p.ProductName != "" {
		t.Errorf("kept %q of an unsigned program", p.ProductName)
	}
}

func TestWhatIsReplacedKeepsItsIdentity(t *testing.T) {
	const volume, other = `\\?\Volume{1}\`, `\\?\Volume{2}\`
	const program = `D:\Tools\anna\vpn.exe`
	host := probe.Host{Now: time.Now, Windows: &probe.Windows{}}
	_, r := Record(host)
	r.replies[askBitLocker] = reply{[]probe.EncryptableVolume{{Volume: other}, {Volume: volume}}, nil}
	r.replies[askDisks] = reply{[]probe.DiskVolume{{Volume: volume}, {Volume: other}}, nil}
	r.replies[ask(askServices, "vpn")] = reply{[]probe.Service{{Name: "vpn", Program: program}}, nil}
	r.replies[ask(askProgram, program)] = reply{probe.Program{FileVersion: "1.2.3"}, nil}
	const name = `SYSTEM\CurrentControlSet\Control\ComputerName\`
	r.replies[ask(askValue, name+`ActiveComputerName\ComputerName`)] = reply{probe.RegistryValue{Type: "SZ", Text: "NB-ANNA"}, nil}
	r.replies[ask(askValue, name+`ComputerName\ComputerName`)] = reply{probe.RegistryValue{Type: "SZ", Text: "NB-ANNA"}, nil}
	_, c := written(t, r)
	h := c.Host()

	locked, err := h.Windows.BitLocker.Volumes(t.Context())
	disks, errDisks := h.Windows.Disks.Volumes(t.Context())
	if err != nil || errDisks != nil || locked[0].Volume != disks[1].Volume || locked[1].Volume != disks[0].Volume || locked[0].Volume == locked[1].Volume {
		t.Errorf("volumes %v and %v, %v, %v", locked, disks, err, errDisks)
	}
	services, err := h.Windows.Services.Matching(t.Context(), "vpn")
	if err != nil || len(services) != 1 {
		t.Fatalf("services %v, %v", services, err)
	}
	p, err := h.Windows.Programs.Identify(t.Context(), services[0].Program)
	if err != nil || p.FileVersion != "1.2.3" {
		t.Errorf("the service's program is %v, %v", p, err)
	}
	active, err := h.Windows.Registry.Value(name+"ActiveComputerName", "ComputerName")
	coming, errComing := h.Windows.Registry.Value(name+"ComputerName", "ComputerName")
	if err != nil || errComing != nil || active.Text == "" || active.Text != coming.Text {
		t.Errorf("equal names became %v and %v", active, coming)
	}
}

func TestWhereProgramsMayLie(t *testing.T) {
	r := newRedactor(nil)
	for path, kept := range map[string]bool{
		`C:\Program Files\OpenVPN\bin\openvpnserv.exe`:            true,
		`c:\program files (x86)\Fortinet\FortiClient\sched.exe`:   true,
		`C:\WINDOWS\system32\svchost.exe`:                         true,
		`\SystemRoot\System32\drivers\ndis.sys`:                   true,
		`%ProgramFiles%\WireGuard\wireguard.exe`:                  true,
		`C:\ProgramData\Microsoft\Windows Defender\MsMpEng.exe`:   true,
		`C:\Users\anna\AppData\Local\vpn.exe`:                     false,
		`C:\Program Files\..\Users\anna\vpn.exe`:                  false,
		`D:\anna\vpn.exe`:                                         false,
		`\\server\anna$\vpn.exe`:                                  false,
		`C:\Program Files\OpenVPN\bin\openvpn.exe --config anna@`: false,
	} {
		if got := r.path(path); (got == path) != kept {
			t.Errorf("%s became %s", path, got)
		}
	}
	if a, again, b := r.path(`D:\a.exe`), r.path(`D:\a.exe`), r.path(`D:\b.exe`); a != again || a == b {
		t.Error("replaced paths lose their identity")
	}
}

func TestErrorsKeepWhatProbesKnowOfThem(t *testing.T) {
	r := newRedactor(nil)
	for _, tt := range []struct {
		err      error
		text, is string
	}{
		{nil, "", ""},
		{fmt.Errorf("anna: %w", probe.ErrNotFound), "", "not_found"},
		{fmt.Errorf("anna: %w", probe.ErrNotApplicable), "", "not_applicable"},
		{fmt.Errorf("anna: %w", probe.ErrNoRoute), "", "no_route"},
		{fmt.Errorf("anna: 0x80041003 and 0x8004100E"), "0x80041003, 0x8004100E", ""},
		{fmt.Errorf("opening anna: %w", syscall.EACCES), syscall.EACCES.Error(), ""},
		{errors.New("anna"), "the reason is not kept in captures", ""},
	} {
		if text, is := r.problem(tt.err); text != tt.text || is != tt.is {
			t.Errorf("%v became %q, %q", tt.err, text, is)
		}
	}
}

func TestAddressesMoveAndKeepTheirNetworks(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	r := &Recording{replies: map[question]reply{
		ask(askRoute, "9.9.9.9"): {probe.Route{LinkIndex: 4, Gateway: addr("100.64.7.1"), Source: addr("100.64.7.23")}, nil},
		ask(askRoute, "2a00::1"): {probe.Route{LinkIndex: 4, Source: addr("2a02:8108::1234")}, nil},
		question(askLinks): {[]probe.Link{{Addresses: []netip.Prefix{
			prefix("100.64.7.23/20"), prefix("127.0.0.1/8"), prefix("fe80::aabb:ccff:fedd:eeff/64"), prefix("2a02:8108::1234/64"), prefix("169.254.3.4/16"),
		}}}, nil},
		question(askIPsec): {[]probe.IPsecPolicy{
			{Direction: "out", Source: prefix("100.64.7.23/32"), Destination: prefix("0.0.0.0/1")},
			{Direction: "out", Source: prefix("100.64.0.0/20"), Destination: prefix("9.9.9.0/24")},
			{Direction: "out", Source: prefix("10.1.2.0/24"), Destination: prefix("::/0")},
		}, nil},
	}}
	file, c := written(t, &Recording{at: time.Now(), replies: r.replies})
	for _, personal := range []string{"100.64", "2a02", "ccff", "10.1.2"} {
		if strings.Contains(file, personal) {
			t.Errorf("%s stands in the file", personal)
		}
	}
	h := c.Host()
	route, err := h.Network.Route(t.Context(), addr("9.9.9.9"))
	if err != nil || route.Gateway.IsValid() || !route.Source.Is4() || route.LinkIndex != 4 {
		t.Errorf("route %v, %v", route, err)
	}
	policies, err := h.Network.IPsecPolicies(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !policies[0].Source.Contains(route.Source) || !policies[1].Source.Contains(route.Source) || policies[2].Source.Contains(route.Source) {
		t.Errorf("%s lies in other networks than before: %v", route.Source, policies)
	}
	if policies[0].Destination != prefix("0.0.0.0/1") || policies[1].Destination != prefix("9.9.9.0/24") || policies[2].Destination != prefix("::/0") {
		t.Errorf("destinations that tell nothing about anybody moved: %v", policies)
	}
	links, err := h.Network.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kinds := ""
	for _, p := range links[0].Addresses {
		switch a := p.Addr(); {
		case a.IsLoopback():
			kinds += "loopback "
		case a.IsLinkLocalUnicast():
			kinds += "link-local "
		case a.Is4():
			kinds += "v4 "
		default:
			kinds += "v6 "
		}
	}
	if kinds != "v4 loopback link-local v6 link-local " {
		t.Errorf("addresses became %s: %v", kinds, links[0].Addresses)
	}
	v6, err := h.Network.Route(t.Context(), addr("2a00::1"))
	if err != nil || !links[0].Addresses[3].Contains(v6.Source) {
		t.Errorf("%s left its network %s, %v", v6.Source, links[0].Addresses[3], err)
	}
}

// table is an SMBIOS table with text in each of its strings and bytes.
func table(text string) []byte {
	text = strings.ReplaceAll(text, "\x00", "")
	texts := bytes.Repeat(append([]byte(text), 0), 6)
	structure := func(kind byte, length int) []byte {
		area := bytes.Repeat([]byte("anna"), length)[:length]
		copy(area, []byte{kind, byte(length), 0, byte(kind), 1, 2, 3, 4})
		if kind == 1 {
			area[25], area[26] = 5, 6
		}
		if kind == 3 {
			area[5], area[8] = 10, 5
		}
		return append(append(area, texts...), 0)
	}
	var body []byte
	for _, s := range [][]byte{structure(0, 24), structure(1, 27), structure(2, 15), structure(3, 21), structure(11, 5), structure(127, 4)} {
		body = append(body, s...)
	}
	return append([]byte{0, 3, 2, 0, byte(len(body)), byte(len(body) >> 8), 0, 0}, body...)
}

func TestOfTheFirmwareOnlyMakerModelAndShapeAreKept(t *testing.T) {
	kept := newRedactor(nil).smbios(table("LENOVO"))
	if n := bytes.Count(kept, []byte("LENOVO")); n != 3 { // maker and model, maker of the enclosure
		t.Errorf("%d texts are kept in %q", n, kept)
	}
	if bytes.Contains(kept, []byte("anna")) {
		t.Errorf("bytes of UUID or further fields are kept in %q", kept)
	}
	for _, broken := range [][]byte{nil, []byte("abc"), table("x")[:40], append(make([]byte, 8), 1, 255, 0, 0), append(make([]byte, 8), 1, 2)} {
		newRedactor(nil).smbios(broken)
	}
}
