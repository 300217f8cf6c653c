package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// recordedServices are the services of a machine.
type recordedServices []Service

func (r recordedServices) Matching(_ context.Context, names ...string) ([]Service, error) {
	return slices.DeleteFunc(slices.Clone(r), func(s Service) bool { return !serviceNamed(s.Name, names) }), nil
}

// recordedPrograms are programs by path; asked counts how often one was looked
// at.
type recordedPrograms struct {
	programs map[string]Program
	asked    *int
}

func (r recordedPrograms) Identify(_ context.Context, path string) (Program, error) {
	*r.asked++
	p, ok := r.programs[path]
	if !ok {
		return Program{}, ErrNotFound
	}
	return p, nil
}

type recordedDialups []Dialup

func (r recordedDialups) Connections(context.Context) ([]Dialup, error) { return r, nil }

const examplePath = `C:\Program Files\Example\vpn.exe`

// windowsWithExample has a VPN client that the shipped catalogue does not know.
func windowsWithExample(asked *int, links ...Link) Host {
	return Host{
		Network: fakeNetwork{links: append([]Link{ethernet}, links...), routes: office()},
		Windows: &Windows{
			Services: recordedServices{{Name: "ExampleVPN", State: serviceRunning, Program: examplePath}},
			Programs: recordedPrograms{map[string]Program{examplePath: {Publisher: "Example GmbH", FileVersion: "4.2.0.0"}}, asked},
			Dialups:  recordedDialups{},
		},
	}
}

const exampleCatalogue = `{"format": 1, "sequence": 7, "clients": [{"product": "example",
	"windows": {"services": ["ExampleVPN"], "adapters": ["Example Virtual Adapter"], "publishers": ["Example GmbH"]}}]}`

func TestCollectorExtendsTheCatalogue(t *testing.T) {
	catalogue, asked := &VPNCatalogue{}, 0
	adapter := Link{Index: 9, Description: "Example Virtual Adapter #3", Type: 6, Up: true, Running: true, OperState: "up", Addresses: prefixes("10.1.0.2/24")}
	h := windowsWithExample(&asked, adapter)
	products := func() string {
		var list []string
		for _, c := range observe(t, h, vpnProbe(catalogue)).Vpn.Clients {
			list = append(list, c.Product)
		}
		return strings.Join(list, " ")
	}
	if got := products(); got != "" {
		t.Errorf("without the extension there is %q", got)
	}
	if err := catalogue.Extend([]byte(exampleCatalogue)); err != nil {
		t.Fatal(err)
	}
	client := clientOf(t, observe(t, h, vpnProbe(catalogue)).Vpn, "example")
	if got := facts(client); got != "yes/yes/yes/? SPLIT NONE" || client.Publisher != "Example GmbH" || client.Version != "4.2.0.0" {
		t.Errorf("example is %s, %v", got, client)
	}
	if err := catalogue.Extend([]byte("nonsense")); err == nil || products() != "example" {
		t.Errorf("after nonsense (%v) there is %q", err, products())
	}
	if err := catalogue.Extend(nil); err != nil || products() != "" {
		t.Errorf("after a withdrawal (%v) there is %q", err, products())
	}
}

func TestCollectorsCatalogueStandsOverTheAdministrators(t *testing.T) {
	catalogue := &VPNCatalogue{}
	content := `{"format": 1, "sequence": 1, "clients": [{"product": "example", "programs": ["opt/example/new"]}]}`
	if err := catalogue.Extend([]byte(content)); err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{catalogueFile: file(`[{"product": "example", "programs": ["opt/example/old"]}, {"product": "own", "programs": ["opt/own"]}]`)}
	products, err := loadCatalogue(files, catalogue)
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{}
	for _, p := range products {
		programs[p.Product] = strings.Join(p.Programs, " ")
	}
	if programs["example"] != "opt/example/new" || programs["own"] != "opt/own" || programs["openvpn"] == "" {
		t.Errorf("programs %q", programs)
	}
}

func TestCatalogueThatIsRefused(t *testing.T) {
	content := func(clients string) string {
		return fmt.Sprintf(`{"format": 1, "sequence": 1, "clients": [%s]}`, clients)
	}
	long := strings.Repeat("x", maxCatalogueText+1)
	for name, c := range map[string]string{
		"empty":                          ``,
		"a list":                         `[]`,
		"no sequence":                    `{"format": 1, "clients": []}`,
		"a later format":                 `{"format": 2, "sequence": 1, "clients": []}`,
		"an unknown key":                 `{"format": 1, "sequence": 1, "client": []}`,
		"something behind it":            content("") + "{}",
		"no name":                        content(`{"programs": ["usr/bin/a"]}`),
		"a name that is none":            content(`{"product": "A b"}`),
		"one name twice":                 content(`{"product": "a"}, {"product": "a"}`),
		"every service":                  content(`{"product": "a", "windows": {"services": ["*"]}}`),
		"a service with a path":          content(`{"product": "a", "windows": {"services": ["..\\\\x"]}}`),
		"no service":                     content(`{"product": "a", "windows": {"adapters": ["TAP"]}}`),
		"every adapter":                  content(`{"product": "a", "windows": {"services": ["abc"], "adapters": [""]}}`),
		"every adapter, spaces":          content(`{"product": "a", "windows": {"services": ["abc"], "adapters": ["    "]}}`),
		"a publisher without a name":     content(`{"product": "a", "windows": {"services": ["abc"], "publishers": ["..., "]}}`),
		"every publisher":                content(`{"product": "a", "windows": {"services": ["abc"], "publishers": [""]}}`),
		"a program in somebody's home":   content(`{"product": "a", "programs": ["home/user/vpn"]}`),
		"a program outside of the tree":  content(`{"product": "a", "programs": ["usr/../../etc/shadow"]}`),
		"a link of any kind":             content(`{"product": "a", "links": [{"prefix": "tun"}]}`),
		"a long text":                    content(`{"product": "a", "comment": "` + long + `"}`),
		"a text with control characters": content(`{"product": "a", "processes": ["a\u0000b"]}`),
		"a long list":                    content(`{"product": "a", "packages": [` + strings.TrimSuffix(strings.Repeat(`"a",`, maxProductItems+1), ",") + `]}`),
		"many clients":                   content(strings.TrimSuffix(strings.Repeat(`{"product": "a"},`, maxProducts+1), ",")),
	} {
		if sequence, err := (&VPNCatalogue{}).Sequence([]byte(c)); err == nil || sequence != 0 {
			t.Errorf("%s: taken, sequence %d", name, sequence)
		}
		if err := (&VPNCatalogue{}).Extend([]byte(c)); err == nil {
			t.Errorf("%s: used", name)
		}
	}
	if sequence, err := (&VPNCatalogue{}).Sequence([]byte(exampleCatalogue)); err != nil || sequence != 7 {
		t.Errorf("sequence %d, %v", sequence, err)
	}
}

// OpenVPN and OpenVPN Connect call their adapters almost alike.
func TestLongestBeginningOfADescriptionWins(t *testing.T) {
	connect := Link{Index: 9, Description: "TAP-Windows Adapter V9 for OpenVPN Connect #2", Type: 53, Up: true, Running: true, OperState: "up", Addresses: prefixes("10.8.0.6/24")}
	own := `C:\Program Files\OpenVPN\bin\openvpnserv.exe`
	other := `C:\Program Files\OpenVPN Connect\agent_ovpnconnect.exe`
	asked := 0
	h := Host{
		Network: fakeNetwork{links: []Link{ethernet, connect}, routes: through(9, office(), "0.0.0.0/0")},
		Windows: &Windows{
			Services: recordedServices{{Name: "openvpnserviceINTERACTIVE", State: serviceRunning, Program: own}, {Name: "agent_ovpnconnect_1594367036109", State: serviceRunning, Program: other}},
			Programs: recordedPrograms{map[string]Program{own: {Publisher: "OpenVPN Inc."}, other: {Publisher: "OpenVPN Inc."}}, &asked},
			Dialups:  recordedDialups{},
		},
	}
	got := observe(t, h, vpnProbe(nil)).Vpn
	if f := facts(clientOf(t, got, "openvpn-connect")); f != "yes/yes/yes/? FULL NONE" {
		t.Errorf("OpenVPN Connect is %s", f)
	}
	if f := facts(clientOf(t, got, "openvpn")); f != "yes/yes/no/no NONE NONE" {
		t.Errorf("OpenVPN is %s", f)
	}
}

// Links change often, programs seldom.
func TestProgramIsLookedAtOnceInAWhile(t *testing.T) {
	catalogue, asked := &VPNCatalogue{}, 0
	if err := catalogue.Extend([]byte(exampleCatalogue)); err != nil {
		t.Fatal(err)
	}
	h := windowsWithExample(&asked)
	now := testNow
	h.Now = func() time.Time { return now }
	p := vpnProbe(catalogue)
	for range 3 {
		observe(t, h, p)
	}
	if asked != 1 {
		t.Errorf("looked at %d times within a moment", asked)
	}
	now = now.Add(identityLife)
	observe(t, h, p)
	if asked != 2 {
		t.Errorf("looked at %d times after %s", asked, identityLife)
	}
}

// A dial-up line below a VPN has an interface of the same kind.
func TestVPNOverADialUpLineCannotBeToldApart(t *testing.T) {
	asked := 0
	h := windowsWithExample(&asked, Link{Index: 9, Type: ifTypePPP, Up: true, Running: true, OperState: "up", Addresses: prefixes("10.1.0.2/32")})
	h.Windows.Dialups = recordedDialups{{DeviceType: "PPPoE", State: dialupConnected}, {DeviceType: "vpn", State: dialupConnected}}
	got := observe(t, h, vpnProbe(nil)).Vpn
	wantState(t, got.RoutingReading, failed)
	if got.ScopeV4 != noAnswer || got.ScopeV6 != noAnswer {
		t.Errorf("scopes %s, %s", got.ScopeV4, got.ScopeV6)
	}
}

// A Windows that answers nothing is unknown, in every section that this and
// the next files read: never off, and never on.
func TestWindowsThatShowsNothingIsUnknown(t *testing.T) {
	ev := NewCollector(Host{Windows: &Windows{}, Now: func() time.Time { return testNow }}, Probes(Options{})).Collect(t.Context())
	for section, r := range map[string]*posturev1.Reading{
		"vpn": ev.Vpn.Reading, "tpm": ev.Tpm.Reading, "secure_boot": ev.SecureBoot.Reading,
		"firewall": ev.Firewall.Reading, "antivirus": ev.Antivirus.Reading, "screen_lock": ev.ScreenLock.Reading,
	} {
		if r.State != failed || r.Reason == "" {
			t.Errorf("%s is %v", section, r)
		}
	}
	if ev.Tpm.Present != unknown || ev.SecureBoot.Enabled != unknown || ev.ScreenLock.Enforced != unknown || len(ev.Firewall.Engines)+len(ev.Antivirus.Products) != 0 {
		t.Errorf("something is known: %v", ev)
	}
}

func FuzzCollectorsCatalogue(f *testing.F) {
	f.Add([]byte(exampleCatalogue))
	f.Add([]byte(`{"format":1,"sequence":1,"clients":[{"product":"a","windows":null}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		c := &VPNCatalogue{}
		sequence, err := c.Sequence(content)
		if (err == nil) != (sequence > 0) || (c.Extend(content) == nil) != (err == nil && content != nil) && content != nil {
			t.Errorf("sequence %d, %v", sequence, err)
		}
		for _, p := range c.extension() {
			if p.Windows != nil && p.Windows.adapterMatch(Link{Description: ""}) != 0 {
				t.Error("an adapter without a name matches")
			}
		}
	})
}

// docs/vpn-clients.md describes every shipped client, and its example is taken.
func TestDocumentedCatalogue(t *testing.T) {
	content, err := os.ReadFile("../../docs/vpn-clients.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(content)
	_, example, _ := strings.Cut(page, "```json\n")
	example, _, _ = strings.Cut(example, "```")
	if sequence, err := (&VPNCatalogue{}).Sequence([]byte(example)); err != nil || sequence != 2026112101 {
		t.Errorf("the example is refused: %v", err)
	}
	shipped, err := parseCatalogue(shippedCatalogue)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range shipped {
		_, row, ok := strings.Cut(page, "\n| `"+p.Product+"` |")
		row, _, _ = strings.Cut(row, "\n")
		if !ok {
			t.Errorf("%s is not described", p.Product)
		}
		if p.Windows == nil {
			continue
		}
		if len(p.Windows.Paths) > 0 { // its services are described with those of the other
			continue
		}
		for _, s := range p.Windows.Services {
			if !strings.Contains(row, s) {
				t.Errorf("%s: its service %s is not described", p.Product, s)
			}
		}
	}
}

// A maker that writes its name a little differently is still that maker; one
// that only contains the name is another.
// unreadablePrograms cannot be looked at.
type unreadablePrograms struct{}

func (unreadablePrograms) Identify(context.Context, string) (Program, error) {
	return Program{}, errors.New("sharing violation")
}

// Anybody can give a service the name of an approved client.
func TestClientThatNobodyLookedAtIsNotInstalled(t *testing.T) {
	catalogue, asked := &VPNCatalogue{}, 0
	if err := catalogue.Extend([]byte(exampleCatalogue)); err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(*Windows){
		"its program cannot be read":    func(w *Windows) { w.Programs = unreadablePrograms{} },
		"programs cannot be identified": func(w *Windows) { w.Programs = nil },
		"its service names no program":  func(w *Windows) { w.Services = recordedServices{{Name: "ExampleVPN", State: serviceRunning}} },
	} {
		h := windowsWithExample(&asked)
		spoil(h.Windows)
		client := clientOf(t, observe(t, h, vpnProbe(catalogue)).Vpn, "example")
		if client.Installed != unknown || client.SignatureValid != unknown {
			t.Errorf("%s: installed %s, signature valid %s", what, client.Installed, client.SignatureValid)
		}
		wantState(t, client.Reading, failed)
	}
}

func TestPublisherIsComparedByLettersAlone(t *testing.T) {
	catalogue := &VPNCatalogue{}
	if err := catalogue.Extend([]byte(exampleCatalogue)); err != nil {
		t.Fatal(err)
	}
	for publisher, fits := range map[string]bool{
		"Example GmbH": true, "EXAMPLE, GmbH.": true,
		"Example": false, "Example GmbH & Co. KG": false, "Not Example GmbH": false, "": false,
	} {
		asked := 0
		h := windowsWithExample(&asked)
		h.Windows.Programs = recordedPrograms{map[string]Program{examplePath: {Publisher: publisher}}, &asked}
		client := clientOf(t, observe(t, h, vpnProbe(catalogue)).Vpn, "example")
		if (len(client.Contradictions) == 0) != fits {
			t.Errorf("%q: %v", publisher, client.Contradictions)
		}
	}
}

// netbird#1803 went on with an old state after a client had come back.
func TestRecoveryShowsAtOnceNetbird1803(t *testing.T) {
	catalogue, asked := &VPNCatalogue{}, 0
	if err := catalogue.Extend([]byte(exampleCatalogue)); err != nil {
		t.Fatal(err)
	}
	p := vpnProbe(catalogue)
	adapter := Link{Index: 9, Description: "Example Virtual Adapter", Type: 6, Up: true, Addresses: prefixes("10.1.0.2/24")}
	for _, step := range []struct {
		running bool
		state   string
		want    string
	}{
		{true, "up", "yes/yes/yes/? SPLIT NONE"},
		{false, "down", "yes/yes/no/no NONE NONE"},
		{true, "up", "yes/yes/yes/? SPLIT NONE"},
	} {
		adapter.Running, adapter.OperState = step.running, step.state
		if got := facts(clientOf(t, observe(t, windowsWithExample(&asked, adapter), p).Vpn, "example")); got != step.want {
			t.Errorf("adapter %s: %s, want %s", step.state, got, step.want)
		}
	}
}

// A question that is asked in another process ends there first: otherwise the
// reading would say that a probe hangs, and not what does.
func TestProbesOutwaitTheProcessesTheyAsk(t *testing.T) {
	for _, p := range Probes(Options{}) {
		names := map[string][]string{
			"firewall": {asideFirewall}, "antivirus": {asideAntivirus}, "vpn": {asideDialups, asideProgram},
		}[p.Section]
		var longest time.Duration
		for _, name := range names {
			longest += asideLimitsOf(name).timeout
		}
		if p.Timeout <= longest && len(names) > 0 {
			t.Errorf("%s waits %s, and the processes it asks take up to %s", p.Section, p.Timeout, longest)
		}
	}
}
