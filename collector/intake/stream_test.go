package intake

import (
	"crypto/tls"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

const (
	active    = fleetv1.AssetState_ASSET_STATE_ACTIVE
	suspended = fleetv1.AssetState_ASSET_STATE_SUSPENDED
	retired   = fleetv1.AssetState_ASSET_STATE_RETIRED
)

func TestHandshakeRefusesWhoIsNotAccepted(t *testing.T) {
	h := newHouse(t)
	good := h.enrolled(t, deviceA)
	h.door.protection[deviceA] = fleetv1.KeyProtection_KEY_PROTECTION_TPM
	stale := *good
	renewed := h.enrolled(t, deviceA) // the same device with a newer key
	gone := h.enrolled(t, deviceB)
	h.door.set(deviceB, suspended)
	unknown := h.enrolled(t, "8f14e45f-ceea-467f-9f2b-0123456789ad")
	delete(h.door.state, unknown.id)

	key, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	gate, err := h.authority.IssueGate("vpn-1", key.Public())
	if err != nil {
		t.Fatal(err)
	}
	operator, err := h.authority.IssueOperator("ops", key.Public())
	if err != nil {
		t.Fatal(err)
	}
	server, err := h.authority.ServerCertificate()
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string]*tls.Certificate{
		"stale key":  pairOf(&stale),
		"suspended":  pairOf(gone),
		"unknown":    pairOf(unknown),
		"a gate":     {Certificate: gate.Chain, PrivateKey: key},
		"operator":   {Certificate: operator.Chain, PrivateKey: key},
		"the server": server,
	} {
		// A handshake that fails; a handler's refusal would be another code.
		if err := connect(t, h, pair); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(h.presence) > 0 {
		t.Errorf("somebody came in: %v", h.presence)
	}
	// Without a certificate one may enrol, not more.
	if err := connect(t, h, nil); status.Code(err) != codes.Unauthenticated {
		t.Errorf("no certificate: %v", err)
	}
	renewed.hello()
}

func pairOf(n *notebook) *tls.Certificate {
	return &tls.Certificate{Certificate: n.chain, PrivateKey: n.key}
}

func connect(t *testing.T, h *house, pair *tls.Certificate) error {
	t.Helper()
	stream, err := agentv1.NewSessionServiceClient(h.dial(t, pair)).Connect(within(t))
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

func TestDeviceIsNobodyOnOtherListeners(t *testing.T) {
	h := newHouse(t)
	n := h.enrolled(t, deviceA)
	for role, pool := range map[mtls.Role]func() *tls.Config{
		mtls.RoleGate: func() *tls.Config {
			return mtls.ServerConfig(mtls.ServerOptions{Certificate: h.authority.ServerCertificate, Clients: h.authority.Gates(), Role: mtls.RoleGate})
		},
		mtls.RoleOperator: func() *tls.Config {
			return mtls.ServerConfig(mtls.ServerOptions{Certificate: h.authority.ServerCertificate, Clients: h.authority.Operators(), Role: mtls.RoleOperator})
		},
	} {
		near, far := pipe(t)
		server := tls.Server(near, pool())
		client := tls.Client(far, mtls.ClientConfig(mtls.ClientOptions{
			Certificate: func() (*tls.Certificate, error) { return pairOf(n), nil },
			Servers:     h.authority.Servers(), ServerName: "collector",
		}))
		go func() {
			_ = client.Handshake()
			_, _ = client.Read(make([]byte, 1)) // takes the alert
		}()
		if err := server.Handshake(); err == nil {
			t.Errorf("a device is let in as %s", role)
		}
	}
}

// A change between the handshake and the first message counts as well.
func TestSuspensionEndsTheStreamNow(t *testing.T) {
	for name, tc := range map[string]struct {
		begin func(n *notebook)
		state fleetv1.AssetState
	}{
		"before hello":  {func(n *notebook) { n.open(); _ = n.stream.CloseSend() }, suspended},
		"idle":          {func(n *notebook) { n.hello() }, suspended},
		"retired":       {func(n *notebook) { n.hello() }, retired},
		"after reports": {func(n *notebook) { n.hello().acknowledged(n.full(evidence("amd64"))) }, suspended},
		"while it waits for the disk": {func(n *notebook) {
			n.hello()
			n.house.desk.gate = make(chan struct{}) // never opened
			n.send(message(n.full(evidence("amd64"))))
		}, suspended},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				defer h.server.Stop()
				n := h.enrolled(t, deviceA)
				tc.begin(n)
				defer n.conn.Close()
				if name == "before hello" {
					h.door.set(deviceA, tc.state)
					if err := n.end(); status.Code(err) == codes.OK {
						t.Errorf("ended with %v", err)
					}
					return
				}
				synctest.Wait()
				began := time.Now()
				h.door.set(deviceA, tc.state)
				err := n.end()
				if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "suspended") {
					t.Errorf("ended with %v", err)
				}
				if d := time.Since(began); d != 0 {
					t.Errorf("it took %s", d)
				}
				if online, _, _ := h.Online(deviceA); online {
					t.Error("still online")
				}
			})
		})
	}
}

// When a whole fleet reports at once, reports wait for their turn; who may no
// longer be here does not.
func TestReportsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		a, b := h.enrolled(t, deviceA).hello(), h.enrolled(t, deviceB).hello()
		defer a.conn.Close()
		defer b.conn.Close()
		for range maxTurns {
			h.turns <- struct{}{}
		}
		report := a.full(evidence("amd64"))
		a.send(message(report))
		b.send(message(b.full(evidence("amd64"))))
		synctest.Wait()
		if submitted, _ := h.desk.counts(); submitted > 0 {
			t.Errorf("%d reports were not held up", submitted)
		}
		h.door.set(deviceB, suspended)
		b.ends(codes.PermissionDenied)
		<-h.turns
		if m := a.receive(); m.GetAcknowledgement().GetSequence() != report.GetSequence() {
			t.Errorf("got %v", m)
		}
		if submitted, _ := h.desk.counts(); submitted != 1 {
			t.Errorf("%d reports were submitted", submitted)
		}
		synctest.Wait()
		if n := len(h.turns); n != maxTurns-1 {
			t.Errorf("%d turns are taken, want %d", n, maxTurns-1)
		}
	})
}

// A client that does not read its answers cannot hold up its own end.
func TestSuspensionEndsAStreamThatNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, func(o *Options) { o.MessageRate = rate.Inf })
		defer h.server.Stop()
		n := h.enrolled(t, deviceA).hello()
		defer n.conn.Close()
		go func() {
			for n.stream.Send(message(n.full(evidence("amd64")))) == nil {
			}
		}()
		synctest.Wait() // both directions are full: the collector waits to send, the agent too
		submitted, _ := h.desk.counts()
		if h.session(deviceA) == nil || submitted < 100 {
			t.Fatalf("not stuck after %d reports", submitted)
		}
		h.door.set(deviceA, suspended)
		synctest.Wait()
		if h.session(deviceA) != nil {
			t.Error("the stream lives")
		}
		if after, _ := h.desk.counts(); after > submitted {
			t.Errorf("%d more reports", after-submitted)
		}
	})
}

// OnChange is a convenience; the rule is asked for every message.
func TestEveryMessageIsAskedFor(t *testing.T) {
	h := newHouse(t)
	n := h.enrolled(t, deviceA).hello()
	n.acknowledged(n.full(evidence("amd64")))
	h.door.mu.Lock()
	h.door.state[deviceA] = suspended // and nobody is told
	h.door.mu.Unlock()
	n.send(message(n.heartbeat(evidence("amd64"))))
	n.ends(codes.PermissionDenied)
	if _, confirmed := h.desk.counts(); confirmed != 0 {
		t.Error("the report was taken")
	}
}

func TestSecondStreamEndsTheFirst(t *testing.T) {
	h := newHouse(t)
	first := h.enrolled(t, deviceA).hello()
	again := *first
	second := again.hello()
	first.ends(codes.Aborted)
	second.acknowledged(second.full(evidence("amd64")))
	other := h.enrolled(t, deviceB).hello()
	other.acknowledged(other.full(evidence("amd64")))
	if online, _, _ := h.Online(deviceA); !online {
		t.Error("the end of the first made the second offline")
	}
}

func TestStreamEndsWithItsCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		began := time.Now()
		n := h.enrolled(t, deviceA)
		// MaxConnectionAge would end the connection before: look at the rule alone.
		time.Sleep(71 * time.Hour)
		n.hello()
		defer n.conn.Close()
		err := n.end()
		if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "certificate has ended") {
			t.Errorf("ended with %v", err)
		}
		if d := time.Since(began); d < 72*time.Hour-time.Second || d > 72*time.Hour {
			t.Errorf("ended after %s", d)
		}
	})
}

func TestConnectionEndsAfterTwelveHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolled(t, deviceA).hello()
		defer n.conn.Close()
		began := time.Now()
		n.ends(codes.Unavailable)
		if d := time.Since(began); d < 10*time.Hour || d > 14*time.Hour {
			t.Errorf("ended after %s", d)
		}
	})
}

func TestSilenceInsteadOfHelloEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolled(t, deviceA).open()
		defer n.conn.Close()
		began := time.Now()
		n.ends(codes.DeadlineExceeded)
		if d := time.Since(began); d != helloTimeout {
			t.Errorf("ended after %s", d)
		}
	})
}

func TestFirstMessageIsHello(t *testing.T) {
	n := newHouse(t).enrolled(t, deviceA).open()
	n.send(message(n.full(evidence("amd64"))))
	n.ends(codes.InvalidArgument)
}

func TestCloseSendsEveryoneAway(t *testing.T) {
	h := newHouse(t)
	a, b := h.enrolled(t, deviceA).hello(), h.enrolled(t, deviceB).hello()
	h.Close()
	a.ends(codes.Unavailable)
	b.ends(codes.Unavailable)
	if err := connect(t, h, pairOf(a)); status.Code(err) != codes.Unavailable {
		t.Errorf("a new one: %v", err)
	}
}

func TestAgentMayEndItsStream(t *testing.T) {
	n := newHouse(t).enrolled(t, deviceA).hello()
	if err := n.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.stream.Recv(); status.Code(err) == codes.Unavailable || err == nil || err.Error() != "EOF" {
		t.Errorf("ended with %v", err)
	}
}
