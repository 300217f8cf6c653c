package intake

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

func pipe(t *testing.T) (near, far net.Conn) {
	t.Helper()
	near, far = net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func freshKey(t testing.TB) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := attest.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

func (n *notebook) askRenewal(csr []byte) {
	n.t.Helper()
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Renewal{Renewal: &agentv1.RenewalRequest{Csr: csr}}})
}

func (n *notebook) exporter() []byte {
	n.t.Helper()
	b, err := mtls.Exporter(n.stream.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return b
}

func (n *notebook) prove(key *ecdsa.PrivateKey, digest []byte) {
	n.t.Helper()
	sig, err := attest.Sign(key, digest)
	if err != nil {
		n.t.Fatal(err)
	}
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_RenewalProof{RenewalProof: &agentv1.RenewalProof{Signature: sig}}})
}

// renew goes through with a renewal and returns the notebook with its new key;
// n still has the old one.
func (n *notebook) renew() (renewed *notebook, issued *agentv1.Issued) {
	n.t.Helper()
	key, csr := freshKey(n.t)
	n.askRenewal(csr)
	var nonce []byte
	for nonce == nil {
		nonce = n.receive().GetRenewalChallenge().GetNonce()
	}
	if len(nonce) != attest.NonceBytes {
		n.t.Fatalf("nonce %x", nonce)
	}
	n.prove(key, attest.RenewDigest(nonce, n.exporter(), csr))
	for issued == nil {
		issued = n.receive().GetIssued()
	}
	return &notebook{t: n.t, house: n.house, id: n.id, key: key, chain: issued.GetChain()}, issued
}

// lifetime is how long an issued certificate lives from now on.
func lifetime(t testing.TB, issued *agentv1.Issued) time.Duration {
	t.Helper()
	cert, err := x509.ParseCertificate(issued.GetChain()[0])
	if err != nil {
		t.Fatal(err)
	}
	return time.Until(cert.NotAfter)
}

func TestRenewalOverTheStream(t *testing.T) {
	h := newHouse(t)
	n := h.enrolled(t, deviceA).hello()
	renewed, issued := n.renew()
	cert, err := x509.ParseCertificate(issued.GetChain()[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, id, err := mtls.Identity(cert); id != deviceA || err != nil || !renewed.key.PublicKey.Equal(cert.PublicKey) {
		t.Errorf("certificate of %s, %v", id, err)
	}
	if issued.GetDeviceId() != deviceA || issued.GetAssetNumber() != "NB-ab" || len(issued.GetTrustBundle()) != 1 {
		t.Errorf("issued %v", issued)
	}
	// The new key opens a stream, the old one none.
	renewed.hello()
	if err := connect(t, h, pairOf(n)); status.Code(err) != codes.Unavailable {
		t.Errorf("the old key: %v", err)
	}
}

// A notebook that never got the answer comes back with the key it has.
func TestOldKeyOpensStreamsUntilTheNewOneDid(t *testing.T) {
	h := newHouse(t)
	old := h.enrolled(t, deviceA).hello()
	renewed, _ := old.renew()
	handshake := h.dial(t, pairOf(renewed))
	handshake.Connect()
	for s := handshake.GetState(); s != connectivity.Ready; s = handshake.GetState() {
		if !handshake.WaitForStateChange(within(t), s) {
			t.Fatal("the new key does not get through a handshake")
		}
	}
	old.hello() // the handshake alone has ended nothing
	renewed.hello()
	old.ends(codes.Aborted)
	if err := connect(t, h, pairOf(old)); status.Code(err) != codes.Unavailable {
		t.Errorf("the old key, after the new one: %v", err)
	}
}

func TestFirstUseThatCannotBeStoredIsRefused(t *testing.T) {
	h := newHouse(t)
	old := h.enrolled(t, deviceA).hello()
	renewed, _ := old.renew()
	h.door.mu.Lock()
	h.door.settleErr = errors.New("disk full")
	h.door.mu.Unlock()
	renewed.open().ends(codes.Unavailable)
	old.hello()
}

func TestRenewalThatProvesNothingIsRefused(t *testing.T) {
	zero := make([]byte, 32)
	for name, prove := range map[string]func(n *notebook, key *ecdsa.PrivateKey, csr, nonce []byte){
		"another nonce": func(n *notebook, k *ecdsa.PrivateKey, csr, _ []byte) {
			n.prove(k, attest.RenewDigest(zero, n.exporter(), csr))
		},
		"another connection": func(n *notebook, k *ecdsa.PrivateKey, csr, nonce []byte) {
			n.prove(k, attest.RenewDigest(nonce, zero, csr))
		},
		"another request": func(n *notebook, k *ecdsa.PrivateKey, _, nonce []byte) {
			n.prove(k, attest.RenewDigest(nonce, n.exporter(), zero))
		},
		"an enrolment's proof": func(n *notebook, k *ecdsa.PrivateKey, csr, nonce []byte) {
			n.prove(k, attest.EnrolDigest(nonce, n.exporter(), csr))
		},
		"the old key": func(n *notebook, _ *ecdsa.PrivateKey, csr, nonce []byte) {
			n.prove(n.key, attest.RenewDigest(nonce, n.exporter(), csr))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			n := h.enrolled(t, deviceA).hello()
			before := h.door.key[deviceA]
			key, csr := freshKey(t)
			n.askRenewal(csr)
			prove(n, key, csr, n.receive().GetRenewalChallenge().GetNonce())
			n.ends(codes.PermissionDenied)
			if !bytes.Equal(h.door.key[deviceA], before) {
				t.Error("the key was replaced")
			}
		})
	}
}

func TestRenewalOutOfPlace(t *testing.T) {
	key, csr := freshKey(t)
	for name, tc := range map[string]struct {
		ask  func(n *notebook)
		code codes.Code
	}{
		"proof without a challenge": {func(n *notebook) { n.prove(key, make([]byte, 32)) }, codes.InvalidArgument},
		"no request":                {func(n *notebook) { n.askRenewal(nil) }, codes.InvalidArgument},
		"forged request":            {func(n *notebook) { n.askRenewal(csr[:len(csr)-1]) }, codes.InvalidArgument},
		"the same key again": {func(n *notebook) {
			own, err := attest.NewRequest(n.key)
			if err != nil {
				n.t.Fatal(err)
			}
			n.askRenewal(own)
		}, codes.InvalidArgument},
		"twice at once": {func(n *notebook) {
			n.askRenewal(csr)
			nonce := n.receive().GetRenewalChallenge().GetNonce()
			n.prove(key, attest.RenewDigest(nonce, n.exporter(), csr))
			n.receive()
			_, next := freshKey(n.t)
			n.house.door.mu.Lock() // as if the stream's own key were current still
			n.house.door.key[deviceA], _ = attest.SPKI(n.key.Public())
			n.house.door.mu.Unlock()
			n.askRenewal(next)
		}, codes.ResourceExhausted},
		"a proof used twice": {func(n *notebook) {
			n.askRenewal(csr)
			digest := attest.RenewDigest(n.receive().GetRenewalChallenge().GetNonce(), n.exporter(), csr)
			n.house.door.mu.Lock()
			n.house.door.renewErr = nil
			n.house.door.mu.Unlock()
			n.prove(key, digest)
			n.receive()
			n.house.door.mu.Lock()
			n.house.door.key[deviceA], _ = attest.SPKI(n.key.Public())
			n.house.door.mu.Unlock()
			n.prove(key, digest)
		}, codes.InvalidArgument},
		"a disk that is full": {func(n *notebook) {
			n.house.door.mu.Lock()
			n.house.door.renewErr = errors.New("disk full")
			n.house.door.mu.Unlock()
			n.askRenewal(csr)
			n.prove(key, attest.RenewDigest(n.receive().GetRenewalChallenge().GetNonce(), n.exporter(), csr))
		}, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			n := newHouse(t).enrolled(t, deviceA).hello()
			tc.ask(n)
			n.ends(tc.code)
		})
	}
}

func TestChallengeOfARenewalEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolled(t, deviceA).hello()
		defer n.conn.Close()
		key, csr := freshKey(t)
		n.askRenewal(csr)
		nonce := n.receive().GetRenewalChallenge().GetNonce()
		time.Sleep(proofTimeout + time.Second)
		n.prove(key, attest.RenewDigest(nonce, n.exporter(), csr))
		n.ends(codes.DeadlineExceeded)
	})
}
