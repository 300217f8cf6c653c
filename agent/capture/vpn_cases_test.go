package capture

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"pfoertner/agent/probe"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// replayed is the evidence of one section of a capture.
func replayed(t *testing.T, name, section string) *posturev1.Evidence {
	t.Helper()
	c, err := Read(os.DirFS("testdata"), name+".json")
	if err != nil {
		t.Fatal(err)
	}
	return probe.NewCollector(c.Host(), probe.Probes(probe.Options{AgentVersion: "capture"})).Collect(t.Context(), section)
}

// ternaryWord is short, for tables.
func ternaryWord(v posturev1.Ternary) string {
	return [...]string{"?", "yes", "no"}[v]
}

// contradicted lists what is contradicted, in order.
func contradicted(lists ...[]*posturev1.Contradiction) string {
	var subjects []string
	for _, c := range slices.Concat(lists...) {
		subjects = append(subjects, c.Subject)
	}
	slices.Sort(subjects)
	return strings.Join(slices.Compact(subjects), " ")
}

// TestVPNOfCaptures tells the five facts of each client, as
// "product installed/service/interface/session IPv4 IPv6", and the scope of
// all tunnels together.
func TestVPNOfCaptures(t *testing.T) {
	const idle = "openvpn yes/yes/no/no NONE NO_CONNECTIVITY"
	for _, c := range []struct{ name, clients, all, contradictions string }{
		{"vpn-breeze-2139", idle, "NONE NO_CONNECTIVITY", ""},
		{"vpn-netbird-4734", idle, "NONE NO_CONNECTIVITY", ""},
		{"vpn-openvpn-full", "openvpn yes/yes/yes/? FULL NO_CONNECTIVITY", "FULL NO_CONNECTIVITY", ""},
		{"vpn-openvpn-ipv6-leak", "openvpn yes/yes/yes/? FULL NONE", "FULL NONE", ""},
		{"vpn-openvpn-dco-second-adapter", "openvpn yes/yes/yes/? FULL NO_CONNECTIVITY", "FULL NO_CONNECTIVITY", ""},
		{"vpn-openvpn-service-stopped", "openvpn yes/no/yes/? FULL NO_CONNECTIVITY", "FULL NO_CONNECTIVITY", "vpn.clients[openvpn].service_running"},
		{"vpn-dead-adapter-attracts-routes", "openvpn yes/yes/no/no FULL NO_CONNECTIVITY", "FULL NO_CONNECTIVITY", "vpn.scope_v4"},
		{"vpn-running-but-down", idle, "NONE NO_CONNECTIVITY", ""},
		{"vpn-wireguard", "wireguard yes/yes/yes/? FULL FULL", "FULL FULL", ""},
		{"vpn-wireguard-handshake-old", "wireguard yes/yes/yes/no FULL NO_CONNECTIVITY", "FULL NO_CONNECTIVITY", ""},
		{"vpn-cisco-secure-client", "cisco-secure-client yes/yes/yes/? FULL NO_CONNECTIVITY", "FULL NO_CONNECTIVITY", ""},
		{"vpn-forticlient-idle", "forticlient yes/yes/no/no NONE NO_CONNECTIVITY", "NONE NO_CONNECTIVITY", ""},
		{"vpn-globalprotect-split", "globalprotect yes/yes/yes/? SPLIT NO_CONNECTIVITY", "SPLIT NO_CONNECTIVITY", ""},
		{"vpn-ncp", "ncp yes/yes/no/no NONE NO_CONNECTIVITY", "NONE NO_CONNECTIVITY", ""},
		{"vpn-sophos-reuses-ncp", "sophos-ipsec yes/yes/no/no NONE NO_CONNECTIVITY", "NONE NO_CONNECTIVITY", ""},
		{"vpn-foreign-publisher", idle, "NONE NO_CONNECTIVITY", "vpn.clients[openvpn].publisher"},
		{"vpn-unsigned-program", idle, "NONE NO_CONNECTIVITY", "vpn.clients[openvpn].signature_valid"},
		{"vpn-program-gone", "", "NONE NO_CONNECTIVITY", ""},
		{"vpn-builtin-connected", idle + "; windows-builtin yes/yes/yes/yes FULL NO_CONNECTIVITY", "FULL NO_CONNECTIVITY", ""},
		{"vpn-builtin-of-a-person", idle + "; windows-builtin yes/yes/yes/yes FULL NO_CONNECTIVITY", "FULL NO_CONNECTIVITY", ""},
		{"vpn-builtin-connecting", idle, "NONE NO_CONNECTIVITY", ""},
		{"vpn-modem-is-no-vpn", idle, "NONE NO_CONNECTIVITY", ""},
		{"vpn-remote-access-hangs", idle + "; windows-builtin ?/yes/no/? NONE NO_CONNECTIVITY", "NONE NO_CONNECTIVITY", ""},
		{"vpn-unlisted", "unlisted ?/?/yes/? FULL NO_CONNECTIVITY", "FULL NO_CONNECTIVITY", ""},
		{"vpn-service-manager-silent", "", "FULL NO_CONNECTIVITY", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			vpn := replayed(t, c.name, "vpn").Vpn
			scope := func(s posturev1.RoutingScope) string {
				return strings.TrimPrefix(s.String(), "ROUTING_SCOPE_")
			}
			var clients []string
			lists := [][]*posturev1.Contradiction{vpn.Contradictions}
			for _, c := range vpn.Clients {
				clients = append(clients, fmt.Sprintf("%s %s/%s/%s/%s %s %s", c.Product, ternaryWord(c.Installed), ternaryWord(c.ServiceRunning),
					ternaryWord(c.InterfaceOperational), ternaryWord(c.SessionAlive), scope(c.ScopeV4), scope(c.ScopeV6)))
				lists = append(lists, c.Contradictions)
			}
			if got := strings.Join(clients, "; "); got != c.clients {
				t.Errorf("clients: %s\nwant:    %s", got, c.clients)
			}
			if got := scope(vpn.ScopeV4) + " " + scope(vpn.ScopeV6); got != c.all {
				t.Errorf("all tunnels: %s, want %s", got, c.all)
			}
			if got := contradicted(lists...); got != c.contradictions {
				t.Errorf("contradicted: %s\nwant:         %s", got, c.contradictions)
			}
		})
	}
}

// Who made a client's program is told with whether the signature holds.
func TestProgramsOfVPNClients(t *testing.T) {
	for name, want := range map[string]string{
		"vpn-breeze-2139":       "OpenVPN Inc. yes 2.7.0.0",
		"vpn-foreign-publisher": "Example Software Ltd yes 2.7.0.0",
		"vpn-unsigned-program":  " no 2.7.0.0",
		"vpn-sophos-reuses-ncp": "Sophos Ltd yes 2.1.20.0",
	} {
		c := replayed(t, name, "vpn").GetVpn().GetClients()[0]
		if got := c.Publisher + " " + ternaryWord(c.SignatureValid) + " " + c.Version; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// What could not be told is said to be unknown, with the reason.
func TestWhatIsNotKnownOfVPNHasAReason(t *testing.T) {
	if r := replayed(t, "vpn-openvpn-full", "vpn").GetVpn().GetClients()[0].GetReading(); r.GetState() != posturev1.ReadingState_READING_STATE_OBSERVED || r.GetReason() == "" {
		t.Errorf("a session that nothing tells of: %v", r)
	}
	silent := replayed(t, "vpn-service-manager-silent", "vpn").GetVpn()
	if r := silent.GetReading(); r.GetState() != posturev1.ReadingState_READING_STATE_FAILED || r.GetReason() == "" {
		t.Errorf("a service control manager without an answer: %v", r)
	}
	if r := silent.GetRoutingReading(); r.GetState() != posturev1.ReadingState_READING_STATE_OBSERVED {
		t.Errorf("the routes were readable: %v", r)
	}
	for _, c := range replayed(t, "vpn-remote-access-hangs", "vpn").GetVpn().GetClients() {
		if r := c.GetReading(); c.Product == "windows-builtin" && (r.GetState() != posturev1.ReadingState_READING_STATE_FAILED || r.GetReason() == "") {
			t.Errorf("a Remote Access Service that hangs: %v", r)
		}
	}
}
