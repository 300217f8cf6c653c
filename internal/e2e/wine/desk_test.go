//go:build linux

package wine_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"pfoertner/internal/e2e"
	"pfoertner/internal/e2e/wine"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Two versions of the agent, the second one newer.
const (
	older = "1.0.1"
	newer = "1.0.2"
)

const (
	asset = "NB-0815"
	// often is how often the collector or the service manager is asked.
	often = 250 * time.Millisecond
	// settingsKey is where the installer puts what it was told, stateDir where the
	// agent keeps what it learned.
	settingsKey = `HKLM\SOFTWARE\Pfoertner`
	serviceKey  = `HKLM\SYSTEM\CurrentControlSet\Services\pfoertner-agent`
	sourceKey   = `HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\pfoertner-agent`
	programDir  = "Program Files/Pfoertner"
	stateDir    = "ProgramData/Pfoertner"
)

// programs is the directory of what all tests share, built once: a collector,
// and packages of two versions of the agent.
var (
	programs string
	built    sync.Once
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "pfoertner-wine-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(programs)
		return m.Run()
	}())
}

func program(name string) string { return filepath.Join(programs, name) }

// buildPackages builds the agent as it is released, but for one build tag: the
// library that tells a service from a program in a terminal does not know Wine
// (agent/service/host_winetest.go).
func buildPackages(t testing.TB) {
	t.Helper()
	for _, needed := range []string{"wixl", "msibuild", "faketime"} {
		if _, err := exec.LookPath(needed); err != nil {
			t.Skipf("SKIPPED: this test needs the program %q: %v", needed, err)
		}
	}
	built.Do(func() {
		e2e.BuildProgram(t, program("pfoertner-collector"), "pfoertner/collector")
		run(t, top+"/installer/tools", "go", "build", "-o", program("go-winres"), "github.com/tc-hib/go-winres")
		for _, version := range []string{older, newer} {
			exe := program("agent-" + version + ".exe")
			e2e.Build{System: "windows", Version: version, Tags: []string{"winetest"}}.Program(t, exe, "pfoertner/agent")
			// The Windows Installer compares versions that are in the files.
			run(t, top, program("go-winres"), "patch", "--no-backup", "--in", "installer/windows/winres.json",
				"--file-version", version+".0", "--product-version", version, exe)
			run(t, top, "installer/windows/build", exe, "x64", version, version, program(version+".msi"))
		}
	})
	if _, err := os.Stat(program(newer + ".msi")); err != nil {
		t.Fatalf("the packages were not built: %v", err)
	}
}

// top is where the module begins.
const top = "../../.."

// run runs a program of the build in dir.
func run(t testing.TB, dir, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1763726400")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
}

// desk is a notebook with Windows and the collector that waits for it.
type desk struct {
	*wine.Machine
	*e2e.Collector
	token string // what was written into the token file
}

// newDesk starts both. The notebook is in the inventory, its token and the
// packages lie on its disk.
func newDesk(t testing.TB) *desk {
	t.Helper()
	m := wine.New(t)
	buildPackages(t)
	d := &desk{Machine: m, Collector: e2e.StartCollector(t, program("pfoertner-collector"), t.TempDir())}
	inventory := filepath.Join(t.TempDir(), "inventory.csv")
	if err := os.WriteFile(inventory, []byte("asset_number;unit\n"+asset+";inneres/it\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Operator(t, "inventory", "import", inventory)
	d.AllowSoftwareKey(t, asset)
	for _, version := range []string{older, newer} {
		d.Copy(t, program(version+".msi"))
	}
	return d
}

// writeToken puts a one-time token where the installation is told to look.
func (d *desk) writeToken(t testing.TB) {
	t.Helper()
	d.token = d.Operator(t, "token", asset)
	d.Write(t, "token", []byte(d.token+"\n"))
}

// settings are the properties of an installation that knows everything.
func (d *desk) settings() []string {
	return []string{"COLLECTOR=" + d.Agents, "CAFINGERPRINT=" + d.Fingerprint, `TOKENFILE=C:\test\token`, "UNIT=inneres/it", "DEVICEKEY=software"}
}

// msiexec runs the installer silently and returns its exit status and its log.
func (d *desk) msiexec(t testing.TB, args ...string) (code int, log string) {
	t.Helper()
	d.Write(t, "msi.log", nil)
	ended := d.Run(t, limit, "msiexec", append([]string{"/qn", "/norestart", "/l*v", `C:\test\msi.log`}, args...)...)
	content, err := os.ReadFile(d.File("test/msi.log"))
	if err != nil {
		t.Fatal(err)
	}
	return ended.Code, string(content) + ended.Output
}

// install installs a version and waits until its service runs.
func (d *desk) install(t testing.TB, version string, properties ...string) (log string) {
	t.Helper()
	code, log := d.msiexec(t, append([]string{"/i", `C:\test\` + version + ".msi"}, properties...)...)
	switch code {
	case 0:
	case wine.Code(3010): // ERROR_SUCCESS_REBOOT_REQUIRED: on a busy machine the old program was still ending
		t.Logf("the installation of %s waits for a restart", version)
		d.Machine.Stop(t)
		d.Machine.Start(t)
	default:
		t.Fatalf("the installation of %s ended with %d:\n%s", version, code, log)
	}
	d.runs(t)
	return log
}

// runs waits until the service runs. The service manager waits no longer than
// ten seconds for a service to answer: on a busy machine it is asked again.
func (d *desk) runs(t testing.TB) {
	t.Helper()
	running := func() bool {
		said := d.Run(t, limit, "sc", "query", "pfoertner-agent").Output
		return strings.Contains(said, "STATE") && strings.Contains(said, "RUNNING")
	}
	if e2e.EventuallyEvery(t, often, 15*time.Second, running) {
		return
	}
	started := d.Run(t, limit, "sc", "start", "pfoertner-agent")
	if !e2e.EventuallyEvery(t, often, limit, running) {
		t.Fatalf("the service does not run: %+v\n%s", started, d.Run(t, limit, "sc", "query", "pfoertner-agent").Output)
	}
}

// device is what the collector knows of the notebook.
func (d *desk) device(t testing.TB) *fleetv1.Device {
	t.Helper()
	device := &fleetv1.Device{}
	if err := protojson.Unmarshal([]byte(d.Operator(t, "devices", asset, "--json")), device); err != nil {
		t.Fatal(err)
	}
	return device
}

// await waits until the collector knows of the notebook what is asked for.
func (d *desk) await(t testing.TB, what string, is func(*fleetv1.Device) bool) *fleetv1.Device {
	t.Helper()
	var device *fleetv1.Device
	if !e2e.EventuallyEvery(t, often, limit, func() bool { device = d.device(t); return is(device) }) {
		t.Fatalf("%s: the collector has %v", what, device)
	}
	return device
}

func reported(d *fleetv1.Device) bool { return d.GetEvidence() != nil && d.GetResult() != nil }

// reportedAs waits for evidence that this version of the agent has made.
func reportedAs(version string) func(*fleetv1.Device) bool {
	return func(d *fleetv1.Device) bool {
		return reported(d) && d.GetEvidence().GetPlatform().GetAgentVersion() == version
	}
}
