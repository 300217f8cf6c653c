package intake

import (
	"crypto/tls"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// checked waits until the stream is asked whether its notebook is there.
func (n *notebook) checked() []byte {
	n.t.Helper()
	for {
		if c := n.receive().GetPresenceCheck(); c != nil {
			return c.GetNonce()
		}
	}
}

func (n *notebook) present(nonce []byte) {
	n.t.Helper()
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Presence{Presence: &agentv1.Presence{Nonce: nonce}}})
}

// copied is another machine with the same key.
func (n *notebook) copied() *notebook {
	other := *n
	return &other
}

func TestTwoLiveMachinesWithOneKeySuspendIt(t *testing.T) {
	for name, order := range map[string]func(first, second *notebook, nonce []byte){
		"the first answers, the second is used": func(first, second *notebook, nonce []byte) {
			first.present(nonce)
			synctest.Wait()
			second.send(message(second.full(evidence("amd64"))))
		},
		"the second is used, the first answers": func(first, second *notebook, nonce []byte) {
			second.reports()
			first.present(nonce)
		},
		"the second has left again": func(first, second *notebook, nonce []byte) {
			second.reports()
			second.conn.Close()
			synctest.Wait()
			first.present(nonce)
		},
		"the second says that it is old": func(first, second *notebook, nonce []byte) {
			second.conn.Close()
			synctest.Wait()
			second.says(1).reports() // joins the meeting of the one that has left
			first.present(nonce)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				defer h.server.Stop()
				first := h.enrolled(t, deviceA).says(3)
				second := first.copied().says(3)
				order(first, second, first.checked())
				first.ends(codes.PermissionDenied)
				if err := second.end(); status.Code(err) != codes.PermissionDenied && name != "the second has left again" {
					t.Errorf("the second ended with %v", err)
				}
				if a := h.alarmed(); len(a) != 1 || a[0].kind != "cloned" || a[0].id != deviceA {
					t.Errorf("alarms %v", a)
				}
				if err := connect(t, h, pairOf(first)); status.Code(err) != codes.Unavailable {
					t.Errorf("after the alarm: %v", err)
				}
			})
		})
	}
}

// The notebook lost its connection and came back; what is left of the first one
// does not answer.
func TestReconnectOfTheSameNotebookIsNoAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		first := h.enrolled(t, deviceA).says(3)
		second := first.copied().says(3)
		defer second.conn.Close()
		began := time.Now()
		second.reports() // is served meanwhile
		first.ends(codes.Aborted)
		if d := time.Since(began); d != presenceTimeout {
			t.Errorf("the first ended after %s", d)
		}
		second.reports()
		if a := h.alarmed(); len(a) > 0 {
			t.Errorf("alarms %v", a)
		}
		third := second.copied().says(3) // and again
		defer third.conn.Close()
		second.ends(codes.Aborted)
		third.reports()
		if a := h.alarmed(); len(a) > 0 {
			t.Errorf("alarms %v", a)
		}
	})
}

func TestFirstStreamThatEndsMeetsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		first := h.enrolled(t, deviceA).says(3)
		second := first.copied().says(3)
		first.conn.Close()
		synctest.Wait()
		third := second.copied().says(3) // nobody is asked but the second
		defer third.conn.Close()
		second.ends(codes.Aborted)
		third.reports()
		if a := h.alarmed(); len(a) > 0 {
			t.Errorf("alarms %v", a)
		}
	})
}

// A hello alone is no machine that is used: it may be what is left of an
// attempt that the notebook gave up.
func TestSecondStreamThatIsNotUsedEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		first := h.enrolled(t, deviceA).says(3)
		defer first.conn.Close()
		second := first.copied().says(3)
		defer second.conn.Close()
		first.present(first.checked())
		second.ends(codes.Aborted)
		first.reports()
		if online, _, _ := h.Online(deviceA); !online || h.session(deviceA).before != nil {
			t.Error("the first is not the device's stream again")
		}
		if a := h.alarmed(); len(a) > 0 {
			t.Errorf("alarms %v", a)
		}
	})
}

func TestWrongAnswerToAPresenceCheckIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		first := h.enrolled(t, deviceA).says(3)
		second := first.copied().says(3)
		defer second.conn.Close()
		nonce := first.checked()
		first.present(nil)
		first.present(make([]byte, len(nonce)))
		second.present(nonce) // it was not asked
		second.reports()
		first.ends(codes.Aborted)
		if a := h.alarmed(); len(a) > 0 {
			t.Errorf("alarms %v", a)
		}
	})
}

func TestThirdStreamWaitsForTheMeeting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		first := h.enrolled(t, deviceA).says(3)
		second := first.copied().says(3)
		defer second.conn.Close()
		third := second.copied().open()
		third.ends(codes.Unavailable)
		first.ends(codes.Aborted)
		third = second.copied().says(3)
		defer third.conn.Close()
		second.present(second.checked())
		third.send(message(third.full(evidence("amd64"))))
		third.ends(codes.PermissionDenied)
	})
}

// A suspension ends both streams of a meeting.
func TestSuspensionEndsBothStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		first := h.enrolled(t, deviceA).says(3)
		second := first.copied().says(3)
		h.door.set(deviceA, suspended)
		first.ends(codes.PermissionDenied)
		second.ends(codes.PermissionDenied)
	})
}

// The first stream's key was replaced by the second's: it answers all the same.
func TestMachineWithAReplacedKeyThatIsStillLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		first := h.enrolled(t, deviceA).says(3)
		renewed, _ := first.renew()
		renewed.says(3)
		first.present(first.checked())
		synctest.Wait()
		renewed.send(message(renewed.full(evidence("amd64"))))
		renewed.ends(codes.PermissionDenied)
		if a := h.alarmed(); len(a) != 1 || a[0].kind != "cloned" {
			t.Errorf("alarms %v", a)
		}
	})
}

// Whoever renews with a copied software key leaves the other one with a key
// that was replaced.
func TestReplacedSoftwareKeyThatComesBackSuspendsTheDevice(t *testing.T) {
	h := newHouse(t)
	thief := h.enrolled(t, deviceA)
	owner := thief.copied()
	renewed, _ := thief.hello().renew()
	thief.conn.Close()
	renewed.hello()
	if err := connect(t, h, pairOf(owner)); status.Code(err) != codes.Unavailable {
		t.Errorf("the replaced key: %v", err)
	}
	if a := h.alarmed(); len(a) != 1 || a[0].kind != "stale_key" || a[0].id != deviceA {
		t.Errorf("alarms %v", a)
	}
	renewed.ends(codes.PermissionDenied)
	if err := connect(t, h, pairOf(owner)); status.Code(err) != codes.Unavailable {
		t.Errorf("again: %v", err)
	}
	if a := h.alarmed(); len(a) != 1 {
		t.Errorf("alarms %v", a)
	}
}

// handshake begins one, without gRPC on the client's side, and returns how it
// ends for the collector.
func (h *house) handshake(t *testing.T, certificate func() (*tls.Certificate, error)) (served <-chan error) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { far.Close() })
	ends := make(chan error, 1)
	go func() {
		_, _, err := (&handshakes{credentials.NewTLS(h.TLS(h.authority.ServerCertificate, h.authority.Devices())), h.completed, time.Now}).ServerHandshake(near)
		ends <- err
	}()
	config := mtls.ClientConfig(mtls.ClientOptions{Certificate: certificate, Servers: h.authority.Servers(), ServerName: "collector"})
	config.NextProtos = []string{"h2"} // gRPC takes no other
	client := tls.Client(far, config)
	go func() {
		_ = client.Handshake()
		_, _ = client.Read(make([]byte, 1)) // takes the alert
	}()
	return ends
}

// A notebook has begun another connection, as it does for a tunnel, when it
// renews its key on the first: that one is late, or held up by somebody on the
// line, and comes with the key of before.
func TestAttackHandshakeHeldUpOverARenewalSuspendsNobody(t *testing.T) {
	h := newHouse(t)
	n := h.enrolled(t, deviceA).hello()
	held, reached := make(chan struct{}), make(chan struct{})
	served := h.handshake(t, func() (*tls.Certificate, error) {
		close(reached)
		<-held
		return pairOf(n), nil
	})
	<-reached
	renewed, _ := n.renew()
	n.conn.Close()
	renewed.hello()
	close(held)
	if err := <-served; err == nil {
		t.Error("the replaced key is accepted")
	}
	if a := h.alarmed(); len(a) > 0 {
		t.Errorf("alarms %v", a)
	}
	renewed.reports()
}

// Nobody can copy a key in a TPM: an old one comes back with an old disk.
func TestReplacedKeyInTheTPMIsOnlyRefused(t *testing.T) {
	h := newHouse(t)
	old := h.enrolledInTPM(t, deviceA)
	h.enrolledInTPM(t, deviceA)
	if err := connect(t, h, pairOf(old.notebook)); status.Code(err) != codes.Unavailable {
		t.Errorf("the replaced key: %v", err)
	}
	if a := h.alarmed(); len(a) > 0 {
		t.Errorf("alarms %v", a)
	}
}

// An old certificate is no secret: only who has its key too is heard.
func TestCertificateWithoutItsKeyRaisesNoAlarm(t *testing.T) {
	h := newHouse(t)
	old := h.enrolled(t, deviceA)
	h.enrolled(t, deviceA)
	other, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	foreign := newHouse(t).enrolled(t, deviceA) // under a CA of its own
	for name, pair := range map[string]*tls.Certificate{
		"another key":    {Certificate: old.chain, PrivateKey: other},
		"another CA":     pairOf(foreign),
		"no certificate": nil,
	} {
		if err := connect(t, h, pair); err == nil {
			t.Errorf("%s: connected", name)
		}
		if a := h.alarmed(); len(a) > 0 {
			t.Errorf("%s: alarms %v", name, a)
		}
	}
	// Also when it speaks TLS itself, and signs the handshake with another key.
	served := h.handshake(t, func() (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: old.chain, PrivateKey: other}, nil
	})
	if err := <-served; err == nil {
		t.Error("the handshake is complete")
	}
	if a := h.alarmed(); len(a) > 0 {
		t.Errorf("alarms %v", a)
	}
	if d, _ := h.door.Device(deviceA); d.GetAsset().GetState() != fleetv1.AssetState_ASSET_STATE_ACTIVE {
		t.Error("suspended")
	}
}
