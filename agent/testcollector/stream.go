package testcollector

import (
	"crypto/rand"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// Stream is one session that an agent opened. The test answers it.
type Stream struct {
	agentv1.SessionService_ConnectServer
	// Nonce is that of Welcome.
	Nonce []byte

	arrived chan *agentv1.ConnectRequest
	end     chan error
	gone    chan struct{}
}

// Connect implements SessionService: it hands the stream to the test.
func (c *Collector) Connect(rpc agentv1.SessionService_ConnectServer) error {
	s := &Stream{
		SessionService_ConnectServer: rpc,
		arrived:                      make(chan *agentv1.ConnectRequest), end: make(chan error), gone: make(chan struct{}),
	}
	defer close(s.gone)
	c.streams <- s
	failed := make(chan error, 1)
	go func() {
		for {
			m, err := rpc.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case s.arrived <- m:
			case <-rpc.Context().Done():
				return
			}
		}
	}()
	select {
	case err := <-s.end:
		return err
	case err := <-failed:
		return err
	case <-rpc.Context().Done():
		return rpc.Context().Err()
	}
}

// Next waits for the next session and takes its hello.
func (c *Collector) Next(t testing.TB) *Stream {
	t.Helper()
	select {
	case s := <-c.streams:
		if m := s.Take(t); m.GetHello() == nil {
			t.Fatalf("stream begins with %v", m)
		}
		return s
	case <-Within(t).Done():
		t.Fatal("no agent connects")
	}
	return nil
}

// Quiet says whether no agent has connected within d.
func (c *Collector) Quiet(d time.Duration) bool {
	select {
	case <-c.streams:
		return false
	case <-time.After(d):
		return true
	}
}

// Welcome answers hello.
func (s *Stream) Welcome(t testing.TB, interval time.Duration) {
	t.Helper()
	s.Nonce = make([]byte, 16)
	rand.Read(s.Nonce)
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{
		Capability: 1, Nonce: s.Nonce, ReportInterval: durationpb.New(interval), CollectorVersion: "test",
	}}})
}

// Take waits for the next message.
func (s *Stream) Take(t testing.TB) *agentv1.ConnectRequest {
	t.Helper()
	select {
	case m := <-s.arrived:
		return m
	case <-s.gone:
		t.Fatal("the stream has ended")
	case <-Within(t).Done():
		t.Fatal("the agent says nothing")
	}
	return nil
}

// Report waits for a report.
func (s *Stream) Report(t testing.TB) *agentv1.Report {
	t.Helper()
	m := s.Take(t)
	if m.GetReport() == nil {
		t.Fatalf("not a report: %v", m)
	}
	return m.GetReport()
}

// Silent says whether nothing arrives within d.
func (s *Stream) Silent(d time.Duration) bool {
	select {
	case <-s.arrived:
		return false
	case <-time.After(d):
		return true
	}
}

// Say sends a message.
func (s *Stream) Say(t testing.TB, m *agentv1.ConnectResponse) {
	t.Helper()
	if err := s.Send(m); err != nil {
		t.Fatalf("sending: %v", err)
	}
}

// Acknowledge answers a report.
func (s *Stream) Acknowledge(t testing.TB, r *agentv1.Report) {
	t.Helper()
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Acknowledgement{
		Acknowledgement: &agentv1.Acknowledgement{Sequence: r.GetSequence(), Digest: r.GetDigest()},
	}})
}

// End ends the stream with an error; nil closes it.
func (s *Stream) End(err error) {
	select {
	case s.end <- err:
	case <-s.gone:
	}
}

// Gone is closed when the stream has ended.
func (s *Stream) Gone() <-chan struct{} { return s.gone }
