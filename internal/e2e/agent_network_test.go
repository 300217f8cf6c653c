//go:build linux

package e2e_test

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"pfoertner/internal/e2e"
)

const (
	// keepalive is when the agent has noticed at the latest that nothing comes
	// back: 15 s without a word until it asks, 5 s for the answer.
	keepalive = 20 * time.Second
	// unasked is how soon it has to notice what the kernel tells it: long
	// before a keepalive could have found out.
	unasked = 8 * time.Second
	// mobile and mobileCollector are the ends of a second way to the collector.
	mobile, mobileCollector = "198.51.100.2", "198.51.100.1"
)

// released builds the agent as it is released: the one for tests does not
// watch the network.
func released(t *testing.T) string {
	t.Helper()
	e2e.Require(t, "go", "ss")
	agent := filepath.Join(t.TempDir(), "pfoertner-agent")
	e2e.BuildProgram(t, agent, "pfoertner/agent")
	return agent
}

// newOnlineAgent starts an agent in the notebook's network and waits until it
// has reported.
func newOnlineAgent(t *testing.T, agent string) *site {
	t.Helper()
	s := newNetwork(t)
	s.initCollector(t, setting{})
	s.startCollector(t)
	s.operator(t, "inventory", "import", s.write(t, "inventory.csv", "asset_number;unit\n"+asset+";inneres/it\n"))
	s.allowSoftwareKey(t, asset)
	s.write(t, "token", s.token(t, asset))
	s.agent = e2e.Start(t, "agent", s.notebook.Command(context.Background(), agent, "run",
		"--device-key", "software", "--collector", collectorOutside+":7601", "--ca-file", s.path("operator", "server-ca.crt"), "--token-file", s.path("token"),
		"--state-dir", s.path("agent"), "--status-file", s.path("agent", "status.json")))
	s.awaitReport(t, time.Time{})
	return s
}

// awaitReport waits until a report has arrived after a moment.
func (s *site) awaitReport(t testing.TB, after time.Time) {
	t.Helper()
	if !e2e.Eventually(t, soon, func() bool {
		seen := s.inventory(t)[asset].GetLastSeenAt()
		return seen != nil && seen.AsTime().After(after)
	}) {
		t.Fatalf("no report after %s", after)
	}
}

// agentAt lists the notebook's addresses from which it has a connection to the
// collector, as its kernel sees it.
func (s *site) agentAt(t testing.TB) (addresses []string) {
	t.Helper()
	sockets := s.notebook.Run(t, "ss", "-Htn", "state", "established", "dst", collectorOutside+":7601")
	for line := range strings.Lines(sockets) {
		local := strings.Fields(line)[2]
		addresses = append(addresses, local[:strings.LastIndexByte(local, ':')])
	}
	return addresses
}

// awaitQuiet waits until the agent and the collector have nothing left to say:
// what is on its way when a path dies gives it away sooner.
func (s *site) awaitQuiet(t testing.TB) {
	t.Helper()
	if !e2e.Eventually(t, soon, func() bool {
		sockets := s.notebook.Run(t, "ss", "-Htni", "state", "established", "dst", collectorOutside+":7601")
		silent := regexp.MustCompile(`lastsnd:(\d+) lastrcv:(\d+)`).FindStringSubmatch(sockets)
		return silent != nil && len(silent[1]) > 3 && len(silent[2]) > 3 // milliseconds: a second or more
	}) {
		t.Fatal("the stream does not fall silent")
	}
}

// A way that swallows every packet and tells nobody, as a NAT box that has
// forgotten its connections does.
func TestAgentLeavesADeadPathAndComesBack(t *testing.T) {
	t.Parallel()
	s := newOnlineAgent(t, released(t))
	s.awaitQuiet(t)
	s.inside.Run(t, "nft", `add table inet hole
add chain inet hole in { type filter hook input priority 0; policy accept; }
add rule inet hole in iifname internet0 drop
add chain inet hole out { type filter hook output priority 0; policy accept; }
add rule inet hole out oifname internet0 drop`)
	dead := time.Now()
	if !e2e.Eventually(t, keepalive+soon, func() bool { return s.agentAt(t) == nil }) {
		t.Fatal("the agent holds on to a dead path")
	}
	noticed := time.Since(dead)
	if noticed > keepalive+5*time.Second {
		t.Errorf("noticed only after %s", noticed)
	}

	s.inside.Run(t, "nft", "delete table inet hole")
	restored := time.Now()
	s.awaitReport(t, restored)
	t.Logf("the dead path was noticed after %s; back %s after it was restored",
		noticed.Round(time.Millisecond), time.Since(restored).Round(time.Millisecond))
}

// The old connection would never be heard of again; nothing says so.
func TestAgentFollowsTheNotebookIntoAnotherNetwork(t *testing.T) {
	agent := released(t)
	for name, roam := range map[string]struct {
		move func(t *testing.T, s *site)
		to   string
	}{
		"another address": {
			move: func(t *testing.T, s *site) {
				s.notebook.IP(t, "address", "del", "192.0.2.2/24", "dev", "eth1")
				s.notebook.IP(t, "address", "add", "192.0.2.3/24", "dev", "eth1")
			},
			to: "192.0.2.3",
		},
		"from WLAN to mobile": {
			move: func(t *testing.T, s *site) { s.notebook.IP(t, "link", "set", "eth1", "down") },
			to:   mobile,
		},
		// Both stay up: only the routing table prefers the other.
		"another route": {
			move: func(t *testing.T, s *site) {
				s.notebook.IP(t, "route", "add", collectorOutside+"/32", "dev", "eth2", "via", mobileCollector)
			},
			to: mobile,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newOnlineAgent(t, agent)
			e2e.Cable(t, e2e.End{In: s.notebook, Device: "eth2", Addresses: []string{mobile + "/24"}},
				e2e.End{In: s.inside, Device: "mobile0", Addresses: []string{mobileCollector + "/24"}})
			s.notebook.IP(t, "route", "add", "default", "via", mobileCollector)
			began := time.Now()
			roam.move(t, s)
			if !e2e.Eventually(t, soon, func() bool { at := s.agentAt(t); return len(at) == 1 && at[0] == roam.to }) {
				t.Fatalf("connected from %v, not from %s", s.agentAt(t), roam.to)
			}
			took := time.Since(began)
			s.awaitReport(t, began)
			t.Logf("connected from %s after %s", roam.to, took.Round(time.Millisecond))
			if took > unasked {
				t.Errorf("took %s: a keepalive is not to be waited for", took)
			}
		})
	}
}
