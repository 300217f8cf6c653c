//go:build linux

package e2e_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pfoertner/internal/e2e"
)

// Cases 5 and 6. The hostile client's control packets are dropped on their way
// out: it never says goodbye and answers to nothing, but its data flows.
func TestLiveSessionIsCutWhenTheDiskTurnsUnencrypted(t *testing.T) {
	for _, client := range []string{"cooperative", "hostile"} {
		t.Run(client, func(t *testing.T) {
			s := newSite(t, setting{})
			s.startAgent(t, admit)
			s.admitted(t)
			if client == "hostile" {
				e2e.Hostile(t, s.notebook, s.vpn.Port)
				flows(t, s.all()...)
			}
			s.change(t, "unencrypted")
			for _, p := range s.all() {
				p.AwaitSilence(t, still, soon)
			}
			s.awaitCut(t)
			closed(t, s.all()...)
		})
	}
}

// A notebook that is reported lost while it is connected.
func TestSuspensionCutsTheSession(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{})
	s.startAgent(t, admit)
	s.admitted(t)
	s.operator(t, "suspend", asset, "--reason", "lost on the train")
	answered := time.Now()
	for _, p := range s.all() {
		last := p.AwaitSilence(t, still, soon)
		t.Logf("last packet %s after the order was answered: %s", last.Sub(answered), p)
	}
	s.awaitCut(t)
	closed(t, s.all()...)
}

// awaitCut waits until the gate has told the collector that the session is gone.
func (s *site) awaitCut(t testing.TB) {
	t.Helper()
	if !e2e.EventuallyEvery(t, patience, soon, func() bool { return strings.Contains(s.operator(t, "events"), "session.cut") }) {
		t.Fatalf("no cut was confirmed:\n%s", s.operator(t, "sessions"))
	}
}

// Case 7. With auth-gen-token alone OpenVPN lets a client back in without asking
// anybody.
func TestGateDoesNotStartBesideTokensThatPassItBy(t *testing.T) {
	s := newSite(t, setting{})
	s.gate.Stop(syscall.SIGTERM)
	s.configureGateway(t, "auth-gen-token 3600")
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	gate := s.gateway.Command(ctx, filepath.Join(programs, "pfoertner-gate"), "run", "--config", s.path("gate.yaml"))
	out, err := gate.CombinedOutput()
	if _, failed := err.(*exec.ExitError); !failed || ctx.Err() != nil {
		t.Errorf("the gate started: %v\n%s", err, out)
	}
	for _, part := range []string{"server.conf:", "auth-gen-token LIFETIME external-auth"} {
		if !strings.Contains(string(out), part) {
			t.Errorf("the gate does not name %q:\n%s", part, out)
		}
	}
}

// Case 7. The client reconnects with its token while it may, and not after.
func TestSoftReconnectWithTokenDoesNotPass(t *testing.T) {
	s := newSite(t, setting{server: []string{"auth-gen-token 3600 external-auth"}})
	s.startAgent(t, admit)
	password := s.write(t, "password", "user\nword\n")
	client := s.admitted(t, "auth-user-pass "+password, "auth-retry nointeract")
	reconnect := func() {
		t.Helper()
		if err := client.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
	}

	reconnect()
	if !e2e.Eventually(t, soon, func() bool { return connections(client) == 2 }) {
		t.Fatal("the client did not reconnect")
	}
	flows(t, s.all()...)

	// The cut session's last words do not reach the client: it keeps its token.
	s.notebook.Run(t, "nft", "add table inet deaf; add chain inet deaf in { type filter hook input priority 0; policy accept; }; add rule inet deaf in udp sport 1194 drop")
	s.change(t, "unencrypted")
	s.awaitCut(t)
	s.notebook.Run(t, "nft", "delete table inet deaf")
	closed(t, s.all()...)

	reconnect()
	refused(t, client)
	says(t, client, "auth-failure (auth-token)") // it did try the token
	closed(t, s.all()...)
}
