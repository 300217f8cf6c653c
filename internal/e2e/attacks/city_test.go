//go:build linux

// Package attacks_test lets private PCs, copied disks and copied virtual
// machines try to get in: released collector, the agent over a prepared file
// tree, and a real software TPM for every machine. docs/threat-model.md says
// which test stands for which attack.
package attacks_test

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
	"pfoertner/internal/e2e/swtpm"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

const (
	// soon is far above what anything takes that happens at once.
	soon = time.Minute
	// patience is the interval of questions to the collector.
	patience = 100 * time.Millisecond
	// asset is the service notebook of most tests.
	asset = "NB-0001"
)

var (
	programs string
	built    sync.Once
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "pfoertner-attacks-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(programs)
		return m.Run()
	}())
}

func program(name string) string { return filepath.Join(programs, name) }

// city is an administration: its collector with two operators, and the maker
// whose TPMs are in its notebooks and in private PCs alike.
type city struct {
	*e2e.Collector
	dir   string
	maker *e2e.TPMMaker
}

func newCity(t *testing.T, lines ...string) *city {
	t.Helper()
	built.Do(func() {
		e2e.BuildProgram(t, program("pfoertner-collector"), "pfoertner/collector")
		e2e.BuildProgram(t, program("testagent"), "pfoertner/agent/testagent")
	})
	c := &city{dir: t.TempDir(), maker: e2e.NewTPMMaker(t)}
	// The maker's authorities exist from its first TPM on.
	c.maker.NewTPM(t).Off()
	c.Collector = e2e.StartCollector(t, program("pfoertner-collector"), c.dir,
		append([]string{"enrolments_per_minute: 1000", e2e.VirtualRoots(c.maker)}, lines...)...)
	return c
}

// deliver takes an asset into the inventory; pc is the machine that the
// delivery list says it is, nil when the list does not name its TPM.
func (c *city) deliver(t *testing.T, asset string, pc *pc) {
	t.Helper()
	columns, line := "asset_number;unit;vendor;model", asset+";inneres/it;Muster;Notebook 14"
	if pc != nil {
		columns, line = columns+";endorsement_key_sha256", line+";"+pc.endorsementKey
	}
	c.importCSV(t, columns+"\n"+line+"\n")
}

func (c *city) importCSV(t *testing.T, text string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "inventory.csv")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Operator(t, "inventory", "import", path)
}

func (c *city) token(t *testing.T, asset string) string {
	t.Helper()
	return c.Operator(t, "token", asset)
}

// device is what operators are told of an asset.
func (c *city) device(t *testing.T, asset string) *fleetv1.Device {
	t.Helper()
	d := &fleetv1.Device{}
	if err := protojson.Unmarshal([]byte(c.Operator(t, "devices", asset, "--json")), d); err != nil {
		t.Fatal(err)
	}
	return d
}

// await waits until an asset is as asked.
func (c *city) await(t *testing.T, asset, what string, is func(*fleetv1.Device) bool) *fleetv1.Device {
	t.Helper()
	var d *fleetv1.Device
	if !e2e.EventuallyEvery(t, patience, soon, func() bool { d = c.device(t, asset); return is(d) }) {
		t.Fatalf("%s is not %s: online %t, key %v, pending %v, verdict %v, %v\n%s", asset, what,
			d.GetOnline(), d.GetKey(), d.GetPending(), d.GetResult().GetVerdict(), d.GetAsset(), c.Operator(t, "events"))
	}
	return d
}

func (c *city) awaitState(t *testing.T, asset string, want fleetv1.AssetState) *fleetv1.Device {
	t.Helper()
	return c.await(t, asset, want.String(), func(d *fleetv1.Device) bool { return d.GetAsset().GetState() == want })
}

// awaitReport waits until a notebook is online and has reported after a moment.
func (c *city) awaitReport(t *testing.T, asset string, after time.Time) *fleetv1.Device {
	t.Helper()
	return c.await(t, asset, "reporting", func(d *fleetv1.Device) bool {
		return d.GetOnline() && d.GetResult() != nil && d.GetLastSeenAt().AsTime().After(after)
	})
}

// events are all audit records of a kind.
func (c *city) events(t *testing.T, kind string) (found []*fleetv1.Event) {
	t.Helper()
	all := &fleetv1.ListEventsResponse{}
	if err := protojson.Unmarshal([]byte(c.Operator(t, "events", "--json")), all); err != nil {
		t.Fatal(err)
	}
	for _, e := range all.GetEvents() {
		if e.GetKind() == kind {
			found = append(found, e)
		}
	}
	return found
}

// awaitEvent waits for a record of this kind with this reason; an empty reason
// is any.
func (c *city) awaitEvent(t *testing.T, kind, reason string) *fleetv1.Event {
	t.Helper()
	var found *fleetv1.Event
	if !e2e.EventuallyEvery(t, patience, soon, func() bool {
		for _, e := range c.events(t, kind) {
			if reason == "" || e.GetDetails()["reason"] == reason {
				found = e
				return true
			}
		}
		return false
	}) {
		t.Fatalf("no %s with the reason %q:\n%s", kind, reason, c.Operator(t, "events"))
	}
	return found
}

// pc is a machine: a TPM, a disk with the agent's state, and what the agent
// reads of it.
type pc struct {
	city        *city
	name        string
	tree, state string
	tpm         *swtpm.TPM
	agent       *e2e.Program
	// fingerprint is what `pfoertner-agent id` shows of its TPM, and
	// endorsementKey what a delivery list says.
	fingerprint, endorsementKey string
}

// newPC is a machine fresh from a shop: a private PC as good as a service
// notebook. Without a maker it has no TPM.
func (c *city) newPC(t *testing.T, name string, maker *e2e.TPMMaker) *pc {
	t.Helper()
	p := &pc{city: c, name: name, tree: t.TempDir(), state: t.TempDir()}
	if err := os.Chmod(p.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if maker != nil {
		p.tpm = maker.NewTPM(t)
		p.fingerprint, p.endorsementKey = e2e.Endorsement(t, p.tpm)
		p.tpm.Off()
	}
	return p
}

// start switches it on, with its agent. What that has to say about not getting
// in is on its output.
func (p *pc) start(t *testing.T, token string) {
	t.Helper()
	if p.tpm != nil {
		p.tpm.On(t)
	}
	p.agent = e2e.Start(t, p.name, exec.Command(program("testagent"), append(p.arguments(),
		"--collector", p.city.Agents, "--ca", p.city.CAFile, "--token", token)...))
}

func (p *pc) arguments() []string {
	args := []string{"--tree", p.tree, "--state", p.state}
	if p.tpm != nil {
		args = append(args, "--tpm", p.tpm.Socket)
	}
	return args
}

// stop switches it off.
func (p *pc) stop() {
	if p.agent != nil {
		p.agent.Kill()
		p.agent = nil
	}
	if p.tpm != nil {
		p.tpm.Off()
	}
}

// copyDisk puts another machine's agent state onto this one.
func (p *pc) copyDisk(t *testing.T, from *pc) {
	t.Helper()
	if err := os.RemoveAll(p.state); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", from.state, p.state).CombinedOutput(); err != nil {
		t.Fatalf("copying the disk: %v\n%s", err, out)
	}
}

// says waits until its agent has said something.
func (p *pc) says(t *testing.T, text string) {
	t.Helper()
	if !e2e.EventuallyEvery(t, 20*time.Millisecond, soon, func() bool { return strings.Contains(p.agent.Output(), text) }) {
		t.Fatalf("%s does not say %q:\n%s", p.name, text, p.agent.Output())
	}
}
