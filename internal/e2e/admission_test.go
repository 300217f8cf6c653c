//go:build linux

package e2e_test

import (
	"regexp"
	"strings"
	"testing"

	"pfoertner/internal/e2e"
)

// Case 1.
func TestCompliantNotebookIsAdmitted(t *testing.T) {
	s := newSite(t, setting{})
	s.startAgent(t, admit)
	never(t, s.all()...)
	s.admitted(t)
	for _, address := range []string{administration, administration6} {
		s.notebook.Run(t, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "10", address)
	}
}

// Case 2. The VPN's own authority has issued the certificate, but no asset in
// the inventory has it: a private device.
func TestUnknownCertificateIsRefused(t *testing.T) {
	s := newSite(t, setting{})
	s.startAgent(t, admit)
	s.device = s.vpn.Authority.Issue(t, e2e.Subject{CommonName: asset, Client: true})
	refused(t, s.dialVPN(t))
	never(t, s.all()...)
}

// Case 3.
func TestStaleEvidenceLeadsToQuarantine(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{})
	s.startAgent(t, admit)
	s.shortenFreshness(t)
	s.agent.Kill()
	s.awaitVerdict(t, quarantine)
	s.dialVPN(t)
	flows(t, s.quarantined()...)
	never(t, s.guarded()...)

	// What quarantine leaves open is enough to get out of it.
	s.runAgent(t, collectorInside)
	flows(t, s.all()...)
}

// shortenFreshness applies the shipped policy, with evidence good for a minute.
func (s *site) shortenFreshness(t testing.TB) {
	t.Helper()
	shipped := s.operator(t, "policy", "show")
	changed := strings.Replace(shipped, "max_age: 45m", "max_age: 1m", 1)
	if changed == shipped {
		t.Fatalf("the shipped policy has another freshness:\n%s", shipped)
	}
	s.operator(t, "policy", "apply", s.write(t, "policy.yaml", changed), "--comment", "short freshness")
}

// Case 4.
func TestFailingNotebookIsRefusedAndToldWhy(t *testing.T) {
	s := newSite(t, setting{})
	s.change(t, "unencrypted")
	s.startAgent(t, deny)
	client := s.dialVPN(t)
	says(t, client, "AUTH_FAILED,")
	text := regexp.MustCompile(`AUTH_FAILED,(.*nicht verschlüsselt.*) Vorgangsnummer: (\S+)`).FindStringSubmatch(client.Output())
	if text == nil {
		t.Fatalf("the client was not told why:\n%s", client.Output())
	}
	t.Logf("%s (%s)", text[1], text[2])
	explained := s.operator(t, "explain", text[2])
	for _, part := range []string{asset, "disks-encrypted", "nicht verschlüsselt", "IT-Stelle"} {
		if !strings.Contains(explained, part) {
			t.Errorf("explain %s does not name %q:\n%s", text[2], part, explained)
		}
	}
	never(t, s.all()...)
}
