//go:build linux

package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pfoertner/internal/e2e"
)

// followed is far above the few seconds that a collector takes to see a change
// of its CAs, and agents to renew after it.
const followed = time.Minute

// office is a collector on loopback whose CAs are replaced, and notebooks of
// which each is seldom or often away.
type office struct {
	*e2e.Collector
	dir string
}

// worker is one notebook with its agent.
type worker struct {
	office *office
	asset  string
	agent  *e2e.Program
}

func newOffice(t *testing.T, assets ...string) (*office, []*worker) {
	t.Helper()
	buildPrograms(t)
	o := &office{dir: t.TempDir()}
	o.Collector = e2e.StartCollector(t, filepath.Join(programs, "pfoertner-collector"), o.dir)
	inventory := "asset_number;unit\n"
	workers := make([]*worker, len(assets))
	for i, asset := range assets {
		inventory += asset + ";inneres/it\n"
		workers[i] = &worker{office: o, asset: asset}
	}
	path := filepath.Join(o.dir, "inventory.csv")
	if err := os.WriteFile(path, []byte(inventory), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Operator(t, "inventory", "import", path)
	for _, w := range workers {
		o.AllowSoftwareKey(t, w.asset)
		w.start(t, o.Operator(t, "token", w.asset))
		w.awaitReport(t, time.Time{})
	}
	return o, workers
}

// ca runs a `ca` command on the collector's machine.
func (o *office) ca(t *testing.T, args ...string) string {
	t.Helper()
	return o.Operator(t, append([]string{"ca", "--config", filepath.Join(o.dir, "collector.yaml")}, args...)...)
}

func (w *worker) path(name string) string { return filepath.Join(w.office.dir, w.asset, name) }

// start starts the agent; the token is needed once.
func (w *worker) start(t *testing.T, token ...string) {
	t.Helper()
	w.agent = e2e.Start(t, w.asset, exec.Command(filepath.Join(programs, "testagent"),
		"--tree", w.path("tree"), "--state", w.path("state"), "--collector", w.office.Agents, "--ca", w.office.CAFile,
		"--token", strings.Join(token, "")))
}

// restart is a notebook that was switched off and on.
func (w *worker) restart(t *testing.T) {
	t.Helper()
	w.agent.Kill()
	w.start(t)
}

func (w *worker) awaitReport(t *testing.T, after time.Time) {
	t.Helper()
	var device struct {
		LastSeen time.Time       `json:"last_seen_at"`
		Evidence json.RawMessage `json:"evidence"`
	}
	if !e2e.EventuallyEvery(t, 200*time.Millisecond, followed, func() bool {
		answer := json.NewDecoder(strings.NewReader(w.office.Operator(t, "devices", w.asset, "--json")))
		// A stream that has only begun is no report.
		return answer.Decode(&device) == nil && device.LastSeen.After(after) && len(device.Evidence) > len("null")
	}) {
		t.Fatalf("no report of %s after %s", w.asset, after)
	}
}

// trusted is how many CAs of collectors the notebook knows.
func (w *worker) trusted(t *testing.T) int {
	t.Helper()
	var identity struct {
		Servers [][]byte `json:"servers"`
	}
	text, err := os.ReadFile(w.path("state/identity.json"))
	if err == nil {
		err = json.Unmarshal(text, &identity)
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(identity.Servers)
}

// connection is what the agent tells the person in front of it; empty as long as
// it says nothing.
func (w *worker) connection(t *testing.T) string {
	t.Helper()
	var status struct {
		Connection string `json:"connection"`
	}
	text, err := os.ReadFile(w.path("state/status.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err == nil {
		err = json.Unmarshal(text, &status)
	}
	if err != nil {
		t.Fatal(err)
	}
	return status.Connection
}

// Real agents through the replacement of every CA of a real collector: one that
// is there, one that is away while it happens, and one that has been away for
// so long that it has never heard of the new CA.
func TestRotationOfAllCAsIsNoticedOnlyByWhoWasAwayForTooLong(t *testing.T) {
	t.Parallel()
	o, workers := newOffice(t, "NB-0001", "NB-0002", "NB-0003")
	present, away, gone := workers[0], workers[1], workers[2]
	gone.agent.Kill()

	o.ca(t, "rotate", "server", "device", "gate", "operator")
	if !e2e.EventuallyEvery(t, 200*time.Millisecond, followed, func() bool { return strings.Contains(o.Output(), "the CAs have changed") }) {
		t.Fatal("the collector does not follow")
	}
	for _, w := range []*worker{present, away} {
		// Agents connect anew twice a day; here we don't wait for it. From then
		// on everything is the agents' own doing.
		w.restart(t)
		if !e2e.EventuallyEvery(t, 200*time.Millisecond, followed, func() bool { return w.trusted(t) == 2 }) {
			t.Fatalf("%s has not heard of the next CA:\n%s", w.asset, w.agent.Output())
		}
	}
	away.agent.Kill()

	said := strings.Count(present.agent.Output(), "no connection")
	own := func() string {
		text, err := os.ReadFile(filepath.Join(o.dir, "collector", "pki", "collector.crt"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := own()
	for _, kind := range []string{"server", "device", "gate", "operator"} {
		o.ca(t, "switch", kind, "--early")
	}
	if !e2e.EventuallyEvery(t, 200*time.Millisecond, followed, func() bool { return own() != before }) {
		t.Fatal("the collector does not show a certificate by the new CA")
	}
	if now := strings.Count(present.agent.Output(), "no connection"); now != said {
		t.Errorf("who was there has noticed:\n%s", present.agent.Output())
	}
	// The operator's bundle is from the beginning: it gets a new certificate for
	// its key, and the new CAs, before it is used again.
	if out, err := exec.Command(filepath.Join(programs, "pfoertner-collector"), "bundle", "operator", "admin", "--renew",
		"--out", filepath.Join(o.dir, "operator"), "--config", filepath.Join(o.dir, "collector.yaml")).CombinedOutput(); err != nil {
		t.Fatalf("renewing the operator's bundle: %v\n%s", err, out)
	}

	back := time.Now()
	away.start(t)
	present.restart(t)
	away.awaitReport(t, back)
	present.awaitReport(t, back)

	gone.start(t)
	if !e2e.EventuallyEvery(t, 200*time.Millisecond, followed, func() bool { return gone.connection(t) == "untrusted" }) {
		t.Errorf("who was away for too long is told %q", gone.connection(t))
	}
	if !strings.Contains(gone.agent.Output(), "certificate signed by unknown authority") {
		t.Errorf("its log does not say why:\n%s", gone.agent.Output())
	}
	// And it comes back when the switch is undone.
	o.ca(t, "switch", "server", "--back")
	gone.awaitReport(t, back)
	fmt.Fprintln(t.Output(), o.ca(t, "list"))
}
