//go:build linux

package e2e_test

import (
	"strings"
	"syscall"
	"testing"

	"pfoertner/internal/e2e"
)

// proven is a site whose policy asks for tunnel proofs, with a notebook in good
// order that gives them.
func proven(t *testing.T, within string) *site {
	t.Helper()
	s := newSite(t, setting{})
	s.provesTunnels(t, within)
	s.runAgent(t, collectorOutside, "--tunnel", collectorInside+":7601")
	s.awaitVerdict(t, admit)
	return s
}

// provesTunnels applies a policy that asks for tunnel proofs everywhere.
func (s *site) provesTunnels(t *testing.T, within string) {
	t.Helper()
	policy := s.operator(t, "policy", "show") + "\ntunnel_proof: {gateways: [\"*\"], within: " + within + "}\n"
	s.operator(t, "policy", "apply", s.write(t, "policy.yaml", policy), "--comment", "tunnels are proven")
}

func TestNotebookProvesItsTunnelAndIsAdmitted(t *testing.T) {
	t.Parallel()
	s := proven(t, "5m")
	s.admitted(t)
	if listed := s.operator(t, "sessions", "--json"); !strings.Contains(listed, "TUNNEL_PROOF_STATE_PROVEN") {
		t.Errorf("the session is admitted without a proof:\n%s", listed)
	}

	// A collector that was restarted has forgotten the proof and gets another.
	s.collector.Kill()
	s.startCollector(t)
	s.awaitProofs(t, 2)
	flows(t, s.all()...)
	if events := s.operator(t, "events"); strings.Contains(events, "not_proven") {
		t.Errorf("the session was cut:\n%s", events)
	}
}

// awaitProofs waits until so many proofs were recorded.
func (s *site) awaitProofs(t *testing.T, n int) {
	t.Helper()
	if !e2e.EventuallyEvery(t, patience, soon, func() bool { return strings.Count(s.operator(t, "events"), "tunnel.proven") == n }) {
		t.Fatalf("not %d proofs:\n%s\n%s", n, s.operator(t, "events"), s.agent.Output())
	}
}

// A client that connects anew keeps interface and address: nothing changes on
// the notebook, but the session is another one. The collector asks for its proof.
func TestNewSessionBehindTheSameTunnelIsProven(t *testing.T) {
	t.Parallel()
	s := proven(t, "5m")
	client := s.admitted(t, "persist-tun", "persist-key")
	client.Signal(syscall.SIGUSR1)
	s.awaitProofs(t, 2)
	flows(t, s.all()...)
}

// privatePC is a machine with an internet connection of its own.
func (s *site) privatePC(t *testing.T) *e2e.Namespace {
	t.Helper()
	pc := e2e.NewNamespace(t, "private")
	e2e.Cable(t, e2e.End{In: pc, Device: "eth0", Addresses: []string{"203.0.114.2/24"}},
		e2e.End{In: s.gateway, Device: "wan1", Addresses: []string{"203.0.114.1/24"}})
	pc.IP(t, "route", "add", gatewayOutside, "via", "203.0.114.1")
	s.gateway.IP(t, "route", "replace", "203.0.114.0/24", "dev", "wan1", "src", gatewayOutside)
	return pc
}

// The whole VPN profile of a notebook that is online and in good order, its key
// in a file, copied onto a private PC: quarantine at most, and cut when the
// proof does not come.
func TestCopiedVPNProfileStaysInQuarantineAndIsCut(t *testing.T) {
	t.Parallel()
	s := proven(t, "20s")
	pc := s.privatePC(t)
	administration := e2e.StartProberEvery(t, pace, pc, s.office)
	quarantined := e2e.StartProberEvery(t, pace, pc, s.collectorEcho)
	client := s.vpn.StartClient(t, pc, s.device)
	flows(t, quarantined)
	refused(t, client)
	quarantined.AwaitSilence(t, still, soon)
	never(t, administration)
	if events := s.operator(t, "events"); !strings.Contains(events, "not_proven") {
		t.Errorf("nobody is told why:\n%s", events)
	}
}
