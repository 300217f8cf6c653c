package main

import (
	"crypto/ecdsa"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// renew gets a certificate for a new key.
func (r *reporter) renew(t testing.TB) (*ecdsa.PrivateKey, *agentv1.Issued) {
	t.Helper()
	key, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := attest.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	ask := &agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Renewal{Renewal: &agentv1.RenewalRequest{Csr: csr}}}
	if err := r.stream.Send(ask); err != nil {
		t.Fatal(err)
	}
	nonce := r.receive(t, func(m *agentv1.ConnectResponse) bool { return m.GetRenewalChallenge() != nil }).GetRenewalChallenge().GetNonce()
	exporter, err := mtls.Exporter(r.stream.Context())
	if err != nil {
		t.Fatal(err)
	}
	signature, err := attest.Sign(key, attest.RenewDigest(nonce, exporter, csr))
	if err != nil {
		t.Fatal(err)
	}
	proof := &agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_RenewalProof{RenewalProof: &agentv1.RenewalProof{Signature: signature}}}
	if err := r.stream.Send(proof); err != nil {
		t.Fatal(err)
	}
	return key, r.receive(t, func(m *agentv1.ConnectResponse) bool { return m.GetIssued() != nil }).GetIssued()
}

// receive waits for a message of a kind.
func (r *reporter) receive(t testing.TB, kind func(*agentv1.ConnectResponse) bool) *agentv1.ConnectResponse {
	t.Helper()
	for {
		m, err := r.stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if kind(m) {
			return m
		}
	}
}

// The collector commits a new key and dies; the answer never arrives.
func TestRenewalWithoutAnAnswerLocksNobodyOut(t *testing.T) {
	h := newHouse(t)
	book := h.enrol(t, 1)[0]
	book.connect(t).renew(t) // and forgets it
	h.stop()
	h.start(t)

	// It comes back with the key it has, reports, and renews once more.
	h.reach(t, book)
	stream := book.connect(t)
	stream.report(t, compliant(time.Now()))
	key, issued := stream.renew(t)
	h.present(t, book, key, issued.GetChain())
	book.connect(t).report(t, compliant(time.Now()))
	h.stop()
	h.start(t)
	h.reach(t, book)
	book.connect(t).report(t, compliant(time.Now()))
}

// A software key that was replaced comes back: one of the two who have had it
// is not our notebook, and nobody can say which. Also for a collector that has
// restarted since.
func TestReplacedSoftwareKeyThatComesBackSuspendsBoth(t *testing.T) {
	h := newHouse(t)
	book := h.enrol(t, 1)[0]
	stolen := *book
	key, issued := book.connect(t).renew(t)
	h.present(t, book, key, issued.GetChain())
	book.connect(t).report(t, compliant(time.Now()))
	h.stop()
	h.start(t)
	h.reach(t, book)
	live := book.connect(t)
	live.report(t, compliant(time.Now()))

	h.reach(t, &stolen)
	if _, err := stolen.tryToConnect(t.Context()); err == nil {
		t.Error("the replaced key was let in")
	}
	// The stream of the current key ends with the suspension.
	for {
		if _, err := live.stream.Recv(); err != nil {
			break
		}
	}
	d, _ := h.registry.Device(book.id)
	if a := d.GetAsset(); a.GetState() != fleetv1.AssetState_ASSET_STATE_SUSPENDED || a.GetAlarm().GetKind() != "stale_key" {
		t.Errorf("the asset is %v", a)
	}
	h.reach(t, book)
	if _, err := book.tryToConnect(t.Context()); status.Code(err) != codes.Unavailable {
		t.Errorf("the current key after the alarm: %v", err)
	}
}
