package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"pfoertner/collector/authority"
	"pfoertner/internal/mtls"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// patience is far above what a collector takes to follow.
const patience = time.Minute

// configured writes a configuration file for commands that work beside a
// running collector.
func (h *house) configured(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "collector.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, "state: %q\n", h.config.State), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// ca runs a `ca` command as an administrator on the collector's machine.
func (h *house) ca(t *testing.T, args ...string) string {
	t.Helper()
	var out strings.Builder
	root := newRoot(&out, &out)
	root.SetArgs(append([]string{"ca", "--config", h.configured(t)}, args...))
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatalf("ca %v: %v", args, err)
	}
	return out.String()
}

// eventually waits for the running collector, which looks at its directory
// every authority.FollowEvery.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(authority.FollowEvery / 50)
	defer tick.Stop()
	for deadline := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: still not", what)
		}
	}
}

// isBy says whether the collector's own certificate is by a CA.
func (h *house) isBy(generation string) func() bool {
	return func() bool {
		by, err := mtls.ReadCertificates(filepath.Join(h.keysDir(), generation+".crt"))
		if err != nil {
			return false
		}
		own, err := h.keys.ServerCertificate()
		return err == nil && own.Leaf.CheckSignatureFrom(by[0]) == nil
	}
}

// trusting dials the gates' listener with a bundle as it lies on a gateway.
func trusting(t *testing.T, l net.Listener, bundle string) gatev1.GateServiceClient {
	t.Helper()
	servers, err := mtls.Pool(filepath.Join(bundle, "server-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(mtls.ClientConfig(mtls.ClientOptions{
		Certificate: mtls.FromFiles(filepath.Join(bundle, "gate.crt"), filepath.Join(bundle, "gate.key")), Servers: servers, ServerName: "127.0.0.1",
	}))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return gatev1.NewGateServiceClient(conn)
}

// All four CAs are replaced under a running collector. Connections stay, and
// new ones work before, in between and after.
func TestAllCAsAreReplacedUnderARunningCollector(t *testing.T) {
	h := newHouse(t)
	books := h.enrol(t, 1)
	stream := books[0].connect(t)
	stream.report(t, compliant(time.Now()))
	bundle := filepath.Join(t.TempDir(), "vpn1")
	if err := h.keys.WriteGate(bundle, "vpn1"); err != nil {
		t.Fatal(err)
	}
	gate := trusting(t, h.gates, bundle)
	works := func(when string) {
		t.Helper()
		stream.report(t, compliant(time.Now())) // the stream that began before all
		for name, g := range map[string]gatev1.GateServiceClient{"old": gate, "new": trusting(t, h.gates, bundle)} {
			if v, a := admit(t, g, books[0].vpn); v != posturev1.Verdict_VERDICT_ADMIT {
				t.Errorf("%s, %s connection: %s %s", when, name, v, a.GetMessage())
			}
		}
	}
	works("before")

	h.ca(t, append([]string{"rotate"}, authority.Kinds()...)...)
	eventually(t, "the next server CA is handed out", func() bool { return len(h.keys.TrustBundle()) == 2 })
	works("with successors")
	// The gateway gets both, for the key that it has.
	root := newRoot(new(strings.Builder), new(strings.Builder))
	root.SetArgs([]string{"bundle", "gate", "vpn1", "--out", bundle, "--renew", "--config", h.configured(t)})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	works("with a renewed bundle")

	for _, kind := range authority.Kinds() {
		h.ca(t, "switch", kind, "--early")
	}
	eventually(t, "the collector shows a certificate by the next CA", h.isBy("server-ca-2"))
	works("after the switch")
	if list := h.ca(t, "list"); strings.Count(list, "retiring") != 4 || strings.Count(list, "current") != 4 {
		t.Errorf("ca list:\n%s", list)
	}

	h.stop()
	h.start(t)
	if v, a := admit(t, trusting(t, h.gates, bundle), books[0].vpn); v != posturev1.Verdict_VERDICT_ADMIT {
		t.Errorf("after a restart: %s %s", v, a.GetMessage())
	}
	h.reach(t, books[0]) // its certificate is by the old CA
	stream = books[0].connect(t)
	stream.report(t, compliant(time.Now()))
	key, issued := stream.renew(t)
	next, err := mtls.ReadCertificates(filepath.Join(h.keysDir(), "device-ca-2.crt"))
	if err != nil || !slices.Equal(issued.GetChain()[1], next[0].Raw) || len(issued.GetTrustBundle()) != 2 {
		t.Errorf("renewed by another CA, or with %d CAs to trust: %v", len(issued.GetTrustBundle()), err)
	}
	h.present(t, books[0], key, issued.GetChain())
	books[0].connect(t).report(t, compliant(time.Now()))
}

// What a thief of the devices' CA could make is refused, and whoever is
// connected under it is cut off, before anybody restarts anything.
func TestRevokedDeviceCAEndsTheConnectionsUnderIt(t *testing.T) {
	h := newHouse(t)
	book := h.enrol(t, 1)[0]
	stream := book.connect(t)
	stream.report(t, compliant(time.Now()))
	gate := h.gate(t, "vpn1")
	h.ca(t, "rotate", "device")
	h.ca(t, "revoke", "device-ca", "--reason", "stolen")
	for {
		if _, err := stream.stream.Recv(); err != nil {
			break // the test's own time limit is the other way out
		}
	}
	if _, err := book.tryToConnect(t.Context()); err == nil {
		t.Error("a certificate by the stolen key is accepted")
	}
	if v, _ := admit(t, gate, make([]byte, 32)); v != posturev1.Verdict_VERDICT_DENY {
		t.Errorf("gates are cut off with the notebooks: %s", v)
	}
	if log := h.kinds(t); !slices.Contains(log, "authority.revoked") || !slices.Contains(log, "authority.installed") {
		t.Errorf("recorded: %v", log)
	}
}

// kinds are the kinds of all audit records.
func (h *house) kinds(t *testing.T) (kinds []string) {
	t.Helper()
	events, err := h.store.Events(t.Context(), "", time.Time{}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		kinds = append(kinds, e.GetKind())
	}
	return kinds
}

// The ceremony on two machines, as an administrator types and sees it.
func TestCeremonyWithAnOfflineRoot(t *testing.T) {
	s := &terminal{t: t, collector: "127.0.0.1:1", operator: filepath.Join(t.TempDir(), "anna"), dir: t.TempDir()}
	config := s.file("collector.yaml", fmt.Sprintf("state: %q\n", filepath.Join(s.dir, "state")))
	safe, stick := filepath.Join(s.dir, "safe"), filepath.Join(s.dir, "stick")
	if err := os.Mkdir(stick, 0o700); err != nil {
		t.Fatal(err)
	}
	asked, signed := filepath.Join(stick, "requests.pem"), filepath.Join(stick, "certificates.pem")
	sign := func(expect bool) {
		args := []string{"ca", "sign", asked, "--root", safe, "--out", signed}
		if expect {
			text, err := os.ReadFile(asked)
			if err != nil {
				t.Fatal(err)
			}
			requests, err := authority.ParseRequests(text)
			if err != nil {
				t.Fatal(err)
			}
			for _, q := range requests {
				args = append(args, "--expect", q.Fingerprint)
			}
		}
		s.run(args...)
	}
	s.run("ca", "list", "--config", config)
	s.run("ca", "switch", "device", "--config", config)
	s.run("ca", "root", safe, "--organisation", "Amt Nord")
	s.run("ca", "requests", "--out", asked, "--config", config)
	sign(false)
	sign(true)
	s.run("ca", "install", signed, "--config", config)
	s.run("init", "--config", config, "--name", "posture.example", "--operator-name", "anna", "--operator-out", s.operator)
	s.run("ca", "list", "--config", config)
	s.run("ca", "rotate", "gate", "--config", config)
	s.run("ca", "requests", "server", "--out", asked, "--config", config)
	sign(true)
	s.run("ca", "install", signed, "--config", config)
	s.run("ca", "install", signed, "--config", config)
	s.run("ca", "switch", "server", "--config", config)
	s.run("ca", "switch", "server", "--early", "--config", config)
	s.run("ca", "list", "--config", config)
	s.run("ca", "switch", "server", "--back", "--config", config)
	s.run("ca", "revoke", "server-ca", "--config", config)
	s.run("ca", "revoke", "server-ca", "--reason", "stolen", "--config", config)
	s.run("ca", "switch", "device", "--config", config)
	s.run("ca", "rotate", "everything", "--config", config)
	s.run("ca", "list", "--config", config)
	s.replace(regexp.MustCompile(`\b\d{4}-\d\d-\d\d( \d\d:\d\d UTC)?\b`), "YYYY-MM-DD")
	s.shows("ca.txt")
}

func (s *terminal) replace(what *regexp.Regexp, instead string) {
	said := what.ReplaceAllString(s.screen.String(), instead)
	s.screen.Reset()
	s.screen.WriteString(said)
}

func TestCutEndsEveryConnectionAndTakesNewOnes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := newPeers(l)
	defer p.Close()
	for range 2 {
		near, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		if _, err := p.Accept(); err != nil {
			t.Fatal(err)
		}
		p.cut()
		if _, err := near.Read(make([]byte, 1)); err == nil {
			t.Error("the connection goes on")
		}
		if len(p.live) != 0 {
			t.Errorf("%d connections are remembered", len(p.live))
		}
	}
}
