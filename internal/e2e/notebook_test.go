//go:build linux

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"pfoertner/internal/e2e"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	asset = "NB-4711"

	deny       = posturev1.Verdict_VERDICT_DENY
	quarantine = posturev1.Verdict_VERDICT_QUARANTINE
	admit      = posturev1.Verdict_VERDICT_ADMIT
)

// register takes the notebook into the inventory, with its VPN certificate.
func (s *site) register(t testing.TB) {
	t.Helper()
	s.device = s.vpn.Authority.Issue(t, e2e.Subject{CommonName: asset, Client: true})
	csv := fmt.Sprintf("asset_number;unit;vpn_certificate_sha256\n%s;inneres/it;%x\n", asset, s.device.Fingerprint())
	s.operator(t, "inventory", "import", s.write(t, "inventory.csv", csv))
	s.allowSoftwareKey(t, asset)
	s.prepare(t)
}

// prepare makes a notebook in good order for agents to read.
func (s *site) prepare(t testing.TB) {
	t.Helper()
	s.tree = s.path("notebook")
	s.change(t, "compliant")
}

// allowSoftwareKey lets two operators allow an asset a key outside a TPM: the
// notebook of this network has none.
func (s *site) allowSoftwareKey(t testing.TB, asset string) {
	t.Helper()
	order := e2e.SoftwareKeyOrder(asset)
	s.operator(t, order...)
	s.secondOperator(t, order...)
}

// token makes a one-time token for an asset.
func (s *site) token(t testing.TB, asset string) string {
	t.Helper()
	return strings.TrimSpace(s.operator(t, "token", asset))
}

// change changes what the agent will read of the notebook.
func (s *site) change(t testing.TB, name string) {
	t.Helper()
	s.run(t, s.notebook, "testagent", "--tree", s.tree, "--change", name)
}

// startAgent starts the notebook's agent, which enrols when it is the first
// time, and waits for the verdict.
func (s *site) startAgent(t testing.TB, want posturev1.Verdict) {
	t.Helper()
	s.runAgent(t, collectorOutside)
	s.awaitVerdict(t, want)
}

func (s *site) runAgent(t testing.TB, collector string, more ...string) {
	t.Helper()
	s.agent = e2e.Start(t, "agent", s.notebook.Command(context.Background(), filepath.Join(programs, "testagent"),
		append([]string{"--tree", s.tree, "--state", s.path("agent"), "--collector", collector + ":7601",
			"--ca", s.path("operator", "server-ca.crt"), "--token", s.token(t, asset)}, more...)...))
}

// inventory is what the collector tells operators of its devices.
func (s *site) inventory(t testing.TB) map[string]*fleetv1.Device {
	t.Helper()
	devices := map[string]*fleetv1.Device{}
	answer := json.NewDecoder(strings.NewReader(s.operator(t, "devices", "--json")))
	for answer.More() {
		var one json.RawMessage
		if err := answer.Decode(&one); err != nil {
			t.Fatal(err)
		}
		d := &fleetv1.Device{}
		if err := protojson.Unmarshal(one, d); err != nil {
			t.Fatal(err)
		}
		devices[d.GetAsset().GetAssetNumber()] = d
	}
	return devices
}

func (s *site) result(t testing.TB) *posturev1.Result {
	t.Helper()
	return s.inventory(t)[asset].GetResult()
}

// awaitResult waits until the notebook was judged so.
func (s *site) awaitResult(t testing.TB, what string, is func(*posturev1.Result) bool) *posturev1.Result {
	t.Helper()
	var r *posturev1.Result
	if !e2e.EventuallyEvery(t, patience, 2*soon, func() bool { r = s.result(t); return r != nil && is(r) }) {
		t.Fatalf("%s: the result is %v", what, r)
	}
	return r
}

func (s *site) awaitVerdict(t testing.TB, want posturev1.Verdict) *posturev1.Result {
	t.Helper()
	return s.awaitResult(t, want.String(), func(r *posturev1.Result) bool { return r.GetVerdict() == want })
}

// dialVPN starts a VPN client with the notebook's certificate.
func (s *site) dialVPN(t testing.TB, lines ...string) *e2e.Program {
	t.Helper()
	return s.vpn.StartClient(t, s.notebook, s.device, lines...)
}

// admitted starts a VPN client and waits until it reaches everything.
func (s *site) admitted(t testing.TB, lines ...string) *e2e.Program {
	t.Helper()
	client := s.dialVPN(t, lines...)
	flows(t, s.all()...)
	return client
}

// refused waits until a client was told that it is refused.
func refused(t testing.TB, client *e2e.Program) {
	t.Helper()
	says(t, client, "AUTH_FAILED,Kein Zugang")
}

// connections is how often a client has been let in.
func connections(client *e2e.Program) int {
	return strings.Count(client.Output(), "Initialization Sequence Completed")
}
