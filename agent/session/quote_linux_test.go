package session

import (
	"bytes"
	"testing"
	"time"

	"pfoertner/agent/testcollector"
	"pfoertner/internal/attest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// asks welcomes a notebook and asks its TPM.
func asks(t *testing.T, s *testcollector.Stream, nonce []byte) {
	t.Helper()
	s.Nonce = bytes.Repeat([]byte{1}, 16)
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{Nonce: s.Nonce, QuoteNonce: nonce}}})
}

// isPresent asks whether the notebook is there.
func isPresent(t *testing.T, s *testcollector.Stream) {
	t.Helper()
	nonce := bytes.Repeat([]byte{7}, 16)
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_PresenceCheck{PresenceCheck: &agentv1.PresenceCheck{Nonce: nonce}}})
	if p := s.Take(t).GetPresence(); !bytes.Equal(p.GetNonce(), nonce) {
		t.Errorf("answered %v", p)
	}
}

func TestQuoteGoesBeforeTheFirstReport(t *testing.T) {
	o := newChipOffice(t)
	o.Listen()
	_, state := o.device(t)
	start(t, o.Collector, state)
	s := o.Next(t)
	nonce := bytes.Repeat([]byte{5}, attest.NonceBytes)
	asks(t, s, nonce)
	q := s.Take(t).GetQuote()
	if !bytes.Equal(q.GetNonce(), nonce) || len(q.GetMessage()) == 0 || len(q.GetPcrValues()) != len(attest.QuotedPCRs()) || q.GetFailure() != "" {
		t.Errorf("quote %v", q)
	}
	s.Acknowledge(t, s.Report(t))

	again := bytes.Repeat([]byte{6}, attest.NonceBytes)
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Collect{Collect: &agentv1.Collect{QuoteNonce: again}}})
	var reported, quoted bool
	for !reported || !quoted {
		m := s.Take(t)
		reported = reported || m.GetReport() != nil
		quoted = quoted || bytes.Equal(m.GetQuote().GetNonce(), again)
	}
}

func TestTPMThatDoesNotQuoteSaysWhy(t *testing.T) {
	o := newChipOffice(t)
	o.Listen()
	_, state := o.device(t)
	start(t, o.Collector, state)
	s := o.Next(t)
	asks(t, s, []byte("short"))
	if q := s.Take(t).GetQuote(); q.GetFailure() == "" || len(q.GetMessage()) > 0 {
		t.Errorf("quote %v", q)
	}
	s.Acknowledge(t, s.Report(t))
}

func TestSoftwareKeyHasNothingToQuoteWith(t *testing.T) {
	c := testcollector.Start(t)
	start(t, c, c.Enrolled(t, time.Hour))
	s := c.Next(t)
	asks(t, s, make([]byte, attest.NonceBytes))
	if q := s.Take(t).GetQuote(); q.GetFailure() == "" || len(q.GetMessage()) > 0 {
		t.Errorf("quote %v", q)
	}
	s.Acknowledge(t, s.Report(t))
	isPresent(t, s)
}

// Everything else goes on while a TPM takes its time.
func TestSlowTPMHoldsUpNoStream(t *testing.T) {
	o := newChipOffice(t)
	o.Listen()
	_, state := o.device(t)
	var slow *agent
	start(t, o.Collector, state, func(a *agent) {
		slow = a
		a.turn <- struct{}{} // it works on something
	})
	s := o.Next(t)
	asks(t, s, make([]byte, attest.NonceBytes))
	isPresent(t, s)
	s.End(nil)
	s = o.Next(t) // nor a new one
	asks(t, s, make([]byte, attest.NonceBytes))
	isPresent(t, s)
	<-slow.turn
	if q := s.Take(t).GetQuote(); len(q.GetMessage()) == 0 {
		t.Errorf("quote %v", q)
	}
	s.Acknowledge(t, s.Report(t))
}
