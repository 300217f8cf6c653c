package session

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

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

// A collector that asks all the time gets no more work out of a notebook than
// its TPM does: only the newest question waits.
func TestQuestionsToTheTPMDoNotPileUp(t *testing.T) {
	o := newChipOffice(t)
	o.Listen()
	_, state := o.device(t)
	var busy *agent
	start(t, o.Collector, state, func(a *agent) {
		busy = a
		a.turn <- struct{}{} // it works on something
	})
	s := o.Next(t)
	question := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, attest.NonceBytes) }
	asks(t, s, question(1))
	const last = 50
	for i := 2; i <= last; i++ {
		s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Collect{Collect: &agentv1.Collect{QuoteNonce: question(i)}}})
	}
	isPresent(t, s) // it has read them all
	<-busy.turn
	for _, i := range []int{1, last} {
		m := s.Take(t)
		for m.GetReport() != nil {
			s.Acknowledge(t, m.GetReport())
			m = s.Take(t)
		}
		if q := m.GetQuote(); !bytes.Equal(q.GetNonce(), question(i)) || len(q.GetMessage()) == 0 {
			t.Errorf("question %d is answered by %v", i, m)
		}
	}
}

// A renewal can wait; what the notebook reports cannot.
func TestTPMThatFailsInARenewalEndsNoStream(t *testing.T) {
	o := newChipOffice(t)
	o.Listen()
	tpm, state := o.device(t)
	a := start(t, o.Collector, state)
	s := o.Next(t)
	s.Nonce = bytes.Repeat([]byte{1}, 16)
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{
		Nonce: s.Nonce, RenewAfter: durationpb.New(0),
	}}})
	for reported, asked := false, false; !reported || !asked; {
		m := s.Take(t)
		if m.GetReport() != nil {
			s.Acknowledge(t, m.GetReport())
		}
		reported, asked = reported || m.GetReport() != nil, asked || m.GetRenewal() != nil
	}
	tpm.Off()
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_RenewalChallenge{
		RenewalChallenge: &agentv1.RenewalChallenge{Nonce: make([]byte, attest.NonceBytes)},
	}})
	isPresent(t, s) // it works on the challenge by now
	a.slow.Wait()
	isPresent(t, s)
}

// Each challenge is work for the TPM: one is answered.
func TestVPNKeyIsNotChallengedTwice(t *testing.T) {
	o := newChipOffice(t)
	o.Listen()
	_, state := o.device(t)
	var busy *agent
	start(t, o.Collector, state, func(a *agent) { busy = a })
	s, _ := opened(t, o.Collector)
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnKeyWanted{
		VpnKeyWanted: &agentv1.VpnKeyWanted{RenewBefore: durationpb.New(time.Hour)},
	}})
	if m := s.Take(t); m.GetVpnKey() == nil {
		t.Fatalf("asked with %v", m)
	}
	busy.turn <- struct{}{} // the TPM works on something
	defer func() { <-busy.turn }()
	challenge := &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnKeyChallenge{
		VpnKeyChallenge: &agentv1.VpnKeyChallenge{Nonce: make([]byte, attest.NonceBytes)},
	}}
	s.Say(t, challenge)
	isPresent(t, s)
	s.Say(t, challenge)
	select {
	case <-s.Gone():
	case <-testcollector.Within(t).Done():
		t.Error("the stream goes on")
	}
}
