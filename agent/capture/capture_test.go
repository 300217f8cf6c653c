package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"pfoertner/agent/probe"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const head = `{"version": 1, "captured_at": "2026-06-20T08:00:00Z", `

func dir(files map[string]string) fstest.MapFS {
	tree := fstest.MapFS{}
	for name, content := range files {
		tree[name] = &fstest.MapFile{Data: []byte(content)}
	}
	return tree
}

func TestACaptureAnswersAsItWasRecorded(t *testing.T) {
	c, err := Read(dir(map[string]string{"a.json": head + `"about": "one", "answers": {
		"registry.value K\\N": {"value": {"type": "DWORD", "number": 7}},
		"registry.value K\\Denied": {"error": "Access is denied."},
		"registry.value K\\None": {"is": "not_found"},
		"registry.exists K": {"value": true},
		"network.route 9.9.9.9": {"error": "unreachable", "is": "no_route"},
		"firmware.variable SecureBoot {x}": {"is": "not_applicable"},
		"bitlocker.volumes": {"error": "no answer within 20s", "is": "timeout"},
		"version.running": {"value": {"major": 10, "minor": 0, "build": 26100}},
		"system.info": {"value": {"os": "windows", "kernel_arch": "x86_64"}, "error": "half of it"}
	}}`}), "a.json")
	if err != nil {
		t.Fatal(err)
	}
	h, ctx := c.Host(), t.Context()
	if c.About != "one" || !h.Now().Equal(time.Date(2026, 6, 20, 8, 0, 0, 0, time.UTC)) {
		t.Errorf("%q at %s", c.About, h.Now())
	}
	if v, err := h.Windows.Registry.Value("K", "N"); err != nil || v.Number != 7 {
		t.Errorf("value %v, %v", v, err)
	}
	if _, err := h.Windows.Registry.Value("K", "Denied"); err == nil || err.Error() != "Access is denied." || errors.Is(err, probe.ErrNotFound) {
		t.Errorf("denied: %v", err)
	}
	if _, err := h.Windows.Registry.Value("K", "None"); !errors.Is(err, probe.ErrNotFound) {
		t.Errorf("none: %v", err)
	}
	if is, err := h.Windows.Registry.Exists("K"); err != nil || !is {
		t.Errorf("exists %v, %v", is, err)
	}
	if _, err := h.Network.Route(ctx, netip.MustParseAddr("9.9.9.9")); !errors.Is(err, probe.ErrNoRoute) {
		t.Errorf("route: %v", err)
	}
	if _, err := h.Windows.Firmware.Variable("SecureBoot", "{x}"); !errors.Is(err, probe.ErrNotApplicable) {
		t.Errorf("variable: %v", err)
	}
	if _, err := h.Windows.BitLocker.Volumes(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("bitlocker: %v", err)
	}
	if _, _, build, err := h.Windows.Version.Running(); err != nil || build != 26100 {
		t.Errorf("build %d, %v", build, err)
	}
	if info, err := h.System.Info(ctx); err == nil || info.KernelArch != "x86_64" {
		t.Errorf("system %v, %v", info, err)
	}
}

func TestWhatWasNotRecordedHasNoAnswer(t *testing.T) {
	c, err := Read(dir(map[string]string{"a.json": head + `"answers": {"registry.exists K": {"value": true}}}`}), "a.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range everyAnswer(t.Context(), c.Host()) {
		if !errors.Is(err, errNotRecorded) || errors.Is(err, probe.ErrNotFound) || errors.Is(err, probe.ErrNotApplicable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// everyAnswer asks a host everything and returns the errors.
func everyAnswer(ctx context.Context, h probe.Host) map[string]error {
	errs := map[string]error{}
	_, errs["system"] = h.System.Info(ctx)
	_, errs["links"] = h.Network.Links(ctx)
	_, errs["route"] = h.Network.Route(ctx, netip.MustParseAddr("9.9.9.9"))
	_, errs["ipsec"] = h.Network.IPsecPolicies(ctx)
	_, errs["wireguard"] = h.Network.WireGuard(ctx)
	w := h.Windows
	_, errs["value"] = w.Registry.Value("a", "b")
	_, errs["exists"] = w.Registry.Exists("a")
	_, errs["bitlocker"] = w.BitLocker.Volumes(ctx)
	_, errs["disks"] = w.Disks.Volumes(ctx)
	_, errs["updates"] = w.Updates.Search(ctx)
	_, errs["services"] = w.Services.Matching(ctx, "a")
	_, errs["programs"] = w.Programs.Identify(ctx, "a")
	_, errs["dialups"] = w.Dialups.Connections(ctx)
	_, errs["variable"] = w.Firmware.Variable("a", "b")
	_, errs["smbios"] = w.Firmware.SMBIOS()
	_, errs["chip"] = w.SecurityChip.Device()
	_, errs["firewall"] = w.Firewall.Profiles(ctx)
	_, errs["antivirus"] = w.SecurityCenter.Antivirus(ctx)
	_, _, _, errs["version"] = w.Version.Running()
	return errs
}

func TestAHandMadeCaptureMaySayWhatIsNotThere(t *testing.T) {
	c, err := Read(dir(map[string]string{"a.json": head + `
		"absent": ["registry.value", "registry.exists", "services.matching", "programs.identify", "firmware.variable", "network.route"],
		"answers": {"services.matching A": {"value": [{"name": "A", "state": 4, "start_type": 2}]},
		            "services.matching A*": {"value": [{"name": "A", "state": 4, "start_type": 2}]}}}`}), "a.json")
	if err != nil {
		t.Fatal(err)
	}
	errs := everyAnswer(t.Context(), c.Host())
	for name, want := range map[string]error{
		"value": probe.ErrNotFound, "exists": nil, "services": nil, "programs": probe.ErrNotFound,
		"variable": probe.ErrNotFound, "route": probe.ErrNoRoute, "bitlocker": errNotRecorded,
	} {
		if !errors.Is(errs[name], want) {
			t.Errorf("%s: %v, want %v", name, errs[name], want)
		}
	}
	if is, err := c.Host().Windows.Registry.Exists("x"); is || err != nil {
		t.Errorf("an absent key exists: %v, %v", is, err)
	}
	services, err := c.Host().Windows.Services.Matching(t.Context(), "B", "A", "A*")
	if err != nil || len(services) != 1 {
		t.Errorf("services %v, %v", services, err)
	}
}

func TestACaptureLiesOverItsBase(t *testing.T) {
	files := map[string]string{
		"base.json": head + `"about": "base", "absent": ["registry.value"], "answers": {
			"registry.exists A": {"value": true}, "registry.exists B": {"value": true}, "registry.exists C": {"value": true}}}`,
		"middle.json": `{"version": 1, "base": "base.json", "answers": {"registry.exists A": {"value": false}}}`,
		"top.json": `{"version": 1, "about": "top", "base": "middle.json", "captured_at": "2026-07-01T00:00:00Z",
			"answers": {"registry.exists B": null}}`,
	}
	c, err := Read(dir(files), "top.json")
	if err != nil {
		t.Fatal(err)
	}
	r := c.Host().Windows.Registry
	a, errA := r.Exists("A")
	_, errB := r.Exists("B")
	b, errC := r.Exists("C")
	_, errValue := r.Value("x", "y")
	if a || errA != nil || !errors.Is(errB, errNotRecorded) || !b || errC != nil || !errors.Is(errValue, probe.ErrNotFound) {
		t.Errorf("answers %v %v, %v, %v %v, %v", a, errA, errB, b, errC, errValue)
	}
	if c.About != "top" || c.At.Month() != time.July {
		t.Errorf("%q at %s", c.About, c.At)
	}
}

func TestACaptureMayShowTheMachineOfAnother(t *testing.T) {
	files := map[string]string{
		"may.json":  `{"version": 1, "captured_at": "2026-05-01T00:00:00Z", "answers": {"registry.exists A": {"value": true}}}`,
		"june.json": `{"version": 1, "captured_at": "2026-06-01T00:00:00Z", "before": "may.json", "answers": {"registry.exists A": {"value": false}}}`,
		"july.json": `{"version": 1, "captured_at": "2026-07-01T00:00:00Z", "before": "june.json", "base": "june.json", "answers": {}}`,
		"over.json": `{"version": 1, "base": "june.json", "answers": {}}`,
		"late.json": `{"version": 1, "captured_at": "2026-05-01T00:00:00Z", "before": "june.json", "base": "may.json", "answers": {}}`,
	}
	var saw []string
	looks := probe.Probe{Section: "patch", Collect: func(_ context.Context, h probe.Host, ev *posturev1.Evidence) error {
		a, err := h.Windows.Registry.Exists("A")
		saw = append(saw, fmt.Sprint(h.Now().Month(), " ", a, " ", err))
		ev.Patch = &posturev1.Patch{Reading: &posturev1.Reading{}}
		return nil
	}}
	for name, want := range map[string]string{
		"july.json": "May true <nil>, June false <nil>, July false <nil>",
		"over.json": "June false <nil>", // a base lends its answers, not its past
	} {
		c, err := Read(dir(files), name)
		if err != nil {
			t.Fatal(err)
		}
		saw = nil
		c.Evidence(t.Context(), []probe.Probe{looks})
		if got := strings.Join(saw, ", "); got != want {
			t.Errorf("%s: the probe saw %s, want %s", name, got, want)
		}
	}
	if _, err := Read(dir(files), "late.json"); err == nil || !strings.Contains(err.Error(), "june.json is not before it") {
		t.Errorf("a past that is later: %v", err)
	}
}

func TestFilesAreReadStrictly(t *testing.T) {
	loop := dir(map[string]string{"a.json": `{"version": 1, "base": "b.json", "answers": {}}`, "b.json": `{"version": 1, "base": "a.json", "answers": {}}`})
	if _, err := Read(loop, "a.json"); err == nil || !strings.Contains(err.Error(), "bases") {
		t.Errorf("a base that lies over itself: %v", err)
	}
	for name, tt := range map[string]struct{ file, want string }{
		"no file":                 {"", "EOF"},
		"no JSON":                 {"x", "invalid"},
		"another version":         {`{"version": 2, "answers": {}}`, "format version 2"},
		"no version":              {`{"answers": {}}`, "format version 0"},
		"an unknown key":          {head + `"anwsers": {}}`, "anwsers"},
		"something behind":        {head + `"answers": {"registry.exists K": {"value": true}}} {}`, "follows"},
		"no time":                 {`{"version": 1, "answers": {"registry.exists K": {"value": true}}}`, "captured_at"},
		"no answers":              {head + `"answers": {}}`, "no answers"},
		"a key twice":             {head + `"answers": {"registry.exists K": {"value": true}, "registry.exists K": {"value": false}}}`, "twice"},
		"a key twice, deep":       {head + `"answers": {"registry.value K\\N": {"value": {"type": "SZ", "text": "a", "text": "b"}}}}`, "twice"},
		"a question of nobody":    {head + `"answers": {"registry.delete K": {"value": true}}}`, "no such question"},
		"no argument":             {head + `"answers": {"registry.exists": {"value": true}}}`, "argument"},
		"an argument too many":    {head + `"answers": {"bitlocker.volumes C:": {"value": []}}}`, "argument"},
		"a value of other shape":  {head + `"answers": {"registry.exists K": {"value": 1}}}`, "bool"},
		"a key of no struct":      {head + `"answers": {"bitlocker.volumes": {"value": [{"protection": 1}]}}}`, "protection"},
		"null as value":           {head + `"answers": {"security_chip.device": {"value": null}}}`, "null"},
		"neither value nor error": {head + `"answers": {"security_chip.device": {}}}`, "neither"},
		"a class of no error":     {head + `"answers": {"security_chip.device": {"is": "fine"}}}`, "fine"},
		"nothing to take away":    {head + `"answers": {"security_chip.device": null}}`, "null"},
		"absent BitLocker":        {head + `"absent": ["bitlocker.volumes"], "answers": {"registry.exists K": {"value": true}}}`, "absent"},
		"no base there":           {head + `"base": "none.json", "answers": {}}`, "none.json"},
		"a base elsewhere":        {head + `"base": "../none.json", "answers": {}}`, "beside it"},
		"a base below":            {head + `"base": "x/none.json", "answers": {}}`, "beside it"},
		"nothing before it":       {head + `"before": "none.json", "answers": {"registry.exists K": {"value": true}}}`, "none.json"},
		"before it elsewhere":     {head + `"before": "../a.json", "answers": {"registry.exists K": {"value": true}}}`, "beside it"},
		"before itself":           {head + `"before": "a.json", "answers": {"registry.exists K": {"value": true}}}`, "before one another"},
		"too large":               {head + `"about": "` + strings.Repeat("x", maxBytes) + `", "answers": {}}`, "larger"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read(dir(map[string]string{"a.json": tt.file}), "a.json")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one about %q", err, tt.want)
			}
		})
	}
	var many strings.Builder
	for i := range maxAnswers + 1 {
		many.WriteString(`,"registry.exists ` + strings.Repeat("k", i%50+1) + string(rune('a'+i%26)) + time.Duration(i).String() + `":{"value":true}`)
	}
	if _, err := Read(dir(map[string]string{"a.json": head + `"answers": {` + many.String()[1:] + "}}"}), "a.json"); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too many answers: %v", err)
	}
}

// A machine that answers everything is recorded, and its recording gives the
// same answers: those of the notebook that meets every rule, which hold nothing
// that would be replaced.
func TestRecordedAnswersAreReplayed(t *testing.T) {
	c, err := Read(os.DirFS("testdata"), "windows-11-24h2.json")
	if err != nil {
		t.Fatal(err)
	}
	real := c.Host()
	host, r := Record(real)
	var asking sync.WaitGroup
	for range 4 { // probes ask at the same time
		asking.Go(func() { everyAnswer(t.Context(), host) })
	}
	asking.Wait()
	first, again := written(t, r)
	second, _ := written(t, r)
	if first != second {
		t.Error("written twice, it differs")
	}
	for _, ask := range []func(probe.Host) (any, error){
		func(h probe.Host) (any, error) { return h.System.Info(t.Context()) },
		func(h probe.Host) (any, error) { return h.Network.Links(t.Context()) },
		func(h probe.Host) (any, error) { return h.Network.Route(t.Context(), netip.MustParseAddr("9.9.9.9")) },
		func(h probe.Host) (any, error) { return h.Windows.BitLocker.Volumes(t.Context()) },
		func(h probe.Host) (any, error) { return h.Windows.Disks.Volumes(t.Context()) },
		func(h probe.Host) (any, error) { return h.Windows.Updates.Search(t.Context()) },
		func(h probe.Host) (any, error) { return h.Windows.SecurityChip.Device() },
		func(h probe.Host) (any, error) { return h.Windows.Firewall.Profiles(t.Context()) },
		func(h probe.Host) (any, error) { return h.Windows.SecurityCenter.Antivirus(t.Context()) },
		func(h probe.Host) (any, error) { return h.Windows.Firmware.SMBIOS() },
	} {
		want, err := ask(real)
		got, errGot := ask(again.Host())
		if err != nil || errGot != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("replayed %v, %v; recorded %v, %v", got, errGot, want, err)
		}
	}
}

// What a probe did not get to know is not recorded as an answer either.
func TestARecordedHostKeepsMissingCapabilitiesMissing(t *testing.T) {
	host, r := Record(probe.Host{Now: time.Now, Windows: &probe.Windows{}})
	if host.Network != nil || host.System != nil || !reflect.DeepEqual(*host.Windows, probe.Windows{}) {
		t.Errorf("a capability came from nowhere: %+v", host)
	}
	if err := r.Write(&bytes.Buffer{}); err != nil {
		t.Error(err)
	}
}

func TestServicesAreRecordedNameByName(t *testing.T) {
	real := probe.Host{Now: time.Now, Windows: &probe.Windows{Services: someServices{
		{Name: "pangps", State: 4}, {Name: "WireGuardTunnel$anna", State: 4}, {Name: "WireGuardTunnel$home", State: 1},
	}}}
	host, r := Record(real)
	if found, err := host.Windows.Services.Matching(t.Context(), "PanGPS", "WireGuardTunnel$*", "vpnagent"); err != nil || len(found) != 3 {
		t.Fatalf("services %v, %v", found, err)
	}
	file, c := written(t, r)
	if strings.Contains(file, "anna") || strings.Contains(file, "home") {
		t.Errorf("a tunnel's name stands in the file:\n%s", file)
	}
	found, err := c.Host().Windows.Services.Matching(t.Context(), "WireGuardTunnel$*", "vpnagent")
	if err != nil || len(found) != 2 || found[0].Name != "WireGuardTunnel$" || found[1].State != 1 {
		t.Errorf("replayed %v, %v", found, err)
	}
}

type someServices []probe.Service

func (s someServices) Matching(context.Context, ...string) ([]probe.Service, error) { return s, nil }

func FuzzRead(f *testing.F) {
	base, err := os.ReadFile("testdata/windows-11-24h2.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, answers := range []string{
		`"registry.value K\\N": {"value": {"type": "MULTI_SZ", "lines": ["a"]}}`,
		`"bitlocker.volumes": {"value": [{"volume": "v", "get_lock_status": {"return": 1}}]}`,
		`"disks.volumes": {"is": "not_found"}, "security_chip.device": null`,
		`"services.matching A*": {"value": [{"name": "A$b", "program": "C:\\x.exe"}]}`,
		`"network.links": {"value": [{"addresses": ["100.64.7.1/20", "fe80::2/64"]}]}`,
		`"network.route 9.9.9.9": {"value": {"source": "100.64.7.1"}, "error": "x"}`,
		`"firmware.smbios": {"value": "AAMCAAYAAAABBAEAAAA="}`,
	} {
		f.Add([]byte(head + `"base": "windows-11-24h2.json", "answers": {` + answers + `}}`))
		f.Add([]byte(head + `"absent": ["network.route"], "answers": {` + answers + `}}`))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		if len(content) > 4<<10 { // as little as a fault needs
			return
		}
		c, err := Read(fstest.MapFS{"fuzz.json": {Data: content}, "windows-11-24h2.json": {Data: base}}, "fuzz.json")
		if err != nil {
			return
		}
		// What can be read can be replayed, recorded and read again.
		host, r := Record(c.Host())
		for q := range c.replies { // whatever the probes may come to ask
			repeat(t.Context(), host, question(q))
		}
		var file bytes.Buffer
		if err := r.Write(&file); err != nil {
			t.Fatal(err)
		}
		if _, err := parse(file.Bytes()); err != nil {
			t.Fatalf("%v:\n%s", err, file.String())
		}
	})
}

// repeat asks a host one question of a capture.
func repeat(ctx context.Context, h probe.Host, q question) {
	w, first, second := h.Windows, q.argument(), ""
	switch q.method() {
	case askRoute:
		if addr, err := netip.ParseAddr(first); err == nil {
			_, _ = h.Network.Route(ctx, addr)
		}
	case askValue:
		if i := strings.LastIndexByte(first, '\\'); i >= 0 {
			first, second = first[:i], first[i+1:]
		}
		_, _ = w.Registry.Value(first, second)
	case askExists:
		_, _ = w.Registry.Exists(first)
	case askServices:
		_, _ = w.Services.Matching(ctx, first)
	case askProgram:
		_, _ = w.Programs.Identify(ctx, first)
	case askVariable:
		first, second, _ = strings.Cut(first, " ")
		_, _ = w.Firmware.Variable(first, second)
	default:
		everyAnswer(ctx, h)
	}
}
