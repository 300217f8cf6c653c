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
	old := *book
	key, issued := stream.renew(t)
	h.present(t, book, key, issued.GetChain())
	book.connect(t).report(t, compliant(time.Now()))

	// From then on the old key is nobody's, also for a collector that restarts.
	h.reach(t, &old)
	if _, err := old.tryToConnect(t.Context()); status.Code(err) != codes.Unavailable {
		t.Errorf("the old key after the new one was used: %v", err)
	}
	h.stop()
	h.start(t)
	h.reach(t, &old)
	if _, err := old.tryToConnect(t.Context()); status.Code(err) != codes.Unavailable {
		t.Errorf("the old key after a restart: %v", err)
	}
	h.reach(t, book)
	book.connect(t).report(t, compliant(time.Now()))
}
