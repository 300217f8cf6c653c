package session

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/agent/identity"
	"pfoertner/agent/uplink"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// answerTimeout is how long the collector may take to answer hello, to
	// store a report or to renew a certificate.
	answerTimeout = time.Minute
	// minStale is how old evidence may be at least before it is stale.
	minStale = time.Minute
	// stuckAfter is how long connecting may take before a change of the
	// network makes it start again.
	stuckAfter = 2 * time.Second
	// renewalRetry is when a renewal that could not be begun is tried again.
	renewalRetry = 10 * time.Minute
	// nonceBytes is the length of the nonce in Welcome.
	nonceBytes = 16
)

var (
	errMoved   = errors.New("the network has changed")
	errRenewed = errors.New("the certificate was renewed")
	errSilent  = errors.New("the collector does not answer")
)

// stream is one connection to the collector. Its fields belong to the
// goroutine of serve.
type stream struct {
	*agent
	id   *identity.Identity
	conn *grpc.ClientConn

	began    time.Time
	rpc      agentv1.SessionService_ConnectClient // nil until open
	path     uplink.Path
	nonce    []byte // nil until welcomed
	interval time.Duration

	sequence     uint64
	awaited      bool // the report with this sequence is not acknowledged yet
	sentFull     bool // and carries full evidence
	acknowledged bool // any report was

	held       *posturev1.Evidence // what was sent last; nil: full evidence is due
	heldDigest []byte
	heldRound  uint64 // snapshot.round of it
	due        uint64 // the round to wait for before anything is sent; zero: none

	renew   <-chan time.Time // nil until welcomed
	renewal *identity.Renewal
	proving bool // the answer is this side's to give

	quoting   <-chan time.Time // until when the first report waits for a quote; nil: it does not
	question  []byte           // the nonce of the question that waits for the TPM; nil: none does
	answering bool             // the TPM works on another

	worked  chan func() error
	vpn     vpnKey
	silence *time.Timer // ends the stream when an answer is overdue
}

func (a *agent) newStream(id *identity.Identity) (*stream, error) {
	cert, err := id.Certificate(time.Now())
	if err != nil {
		return nil, err
	}
	conn, err := a.Target.Dial(id.ServerPool(), func() (*tls.Certificate, error) { return cert, nil })
	if err != nil {
		return nil, err
	}
	return &stream{agent: a, id: id, conn: conn, began: time.Now(), interval: defaultInterval, worked: make(chan func() error)}, nil
}

// serve runs the stream until it ends, and says why.
func (s *stream) serve(ctx context.Context) error {
	ctx, end := context.WithCancelCause(ctx)
	var receiver sync.WaitGroup
	defer receiver.Wait()
	defer end(nil)
	s.silence = time.AfterFunc(s.patience, func() { end(errSilent) })
	defer s.silence.Stop()

	arrivals := make(chan arrival)
	receiver.Go(func() { receive(ctx, s.conn, arrivals) })
	for {
		if err := s.step(ctx, arrivals); err != nil {
			// What made the context end says more than that it ended.
			return cmp.Or(context.Cause(ctx), err)
		}
		s.expectAnswer()
	}
}

// step waits for one thing to happen, and acts on it.
func (s *stream) step(ctx context.Context, arrivals <-chan arrival) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case a := <-arrivals:
		switch {
		case a.err != nil:
			return a.err
		case a.rpc != nil:
			return s.open(a.rpc)
		}
		return s.handle(a.message)
	case <-s.readings.collected:
		return s.report()
	case <-s.network:
		if s.gone() {
			return errMoved
		}
		return nil
	case <-s.renew:
		return s.requestRenewal()
	case <-s.quoting:
		return s.quoted()
	case then := <-s.worked:
		return then()
	case <-s.vpn.due:
		return s.askVPNKey()
	}
}

// gone says whether a change of the network has left this connection behind.
func (s *stream) gone() bool {
	if s.nonce == nil {
		return time.Since(s.began) > stuckAfter
	}
	return s.moved(s.path)
}

// expectAnswer gives the collector new time while something is unanswered.
// Sending runs under the same timer: a collector that reads nothing is silent
// too.
func (s *stream) expectAnswer() {
	if s.nonce == nil || s.awaited || s.renewal != nil && !s.proving {
		s.silence.Reset(s.patience)
	} else {
		s.silence.Stop()
	}
}

// arrival is what the receiver passes on: the open stream, then its messages,
// then its end.
type arrival struct {
	rpc     agentv1.SessionService_ConnectClient
	message *agentv1.ConnectResponse
	err     error
}

// receive opens the stream and reads it until it ends.
func receive(ctx context.Context, conn *grpc.ClientConn, arrivals chan<- arrival) {
	pass := func(a arrival) bool {
		select {
		case arrivals <- a:
			return a.err == nil
		case <-ctx.Done():
			return false
		}
	}
	rpc, err := agentv1.NewSessionServiceClient(conn).Connect(ctx)
	if !pass(arrival{rpc: rpc, err: err}) {
		return
	}
	for {
		m, err := rpc.Recv()
		if err == nil {
			err = posture.CheckLimits(m)
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("the collector has closed the stream")
		}
		if !pass(arrival{message: m, err: err}) {
			return
		}
	}
}

// open says hello on the new stream.
func (s *stream) open(rpc agentv1.SessionService_ConnectClient) error {
	s.rpc = rpc
	return s.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.ClientHello{
		Capability: posture.Capability, AgentVersion: s.Target.Version,
	}}})
}

// send leaves the end of a stream to the receiver, which learns why.
func (s *stream) send(m *agentv1.ConnectRequest) error {
	if err := s.rpc.Send(m); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("sending: %w", err)
	}
	return nil
}

// report sends what the collector does not hold yet. While a report is on its
// way it does nothing: the acknowledgement calls it again. While the first waits
// for a quote neither: quoted calls it.
func (s *stream) report() error {
	if s.nonce == nil || s.awaited || s.quoting != nil {
		return nil
	}
	now := s.readings.newest()
	if now.evidence == nil || now.round < s.due {
		return nil
	}
	if s.held != nil && now.round == s.heldRound && bytes.Equal(now.digest, s.heldDigest) {
		return nil
	}
	if s.due == 0 && now.age() > s.stale() {
		s.due = s.readings.requestAll()
		return nil
	}
	s.sequence++
	r := &agentv1.Report{
		Sequence: s.sequence, Nonce: s.nonce, Digest: now.digest,
		CollectedAgo: durationpb.New(now.age()),
	}
	s.sentFull = s.held == nil
	s.fill(r, now.evidence)
	s.held, s.heldDigest, s.heldRound, s.due = now.evidence, now.digest, now.round, 0
	s.awaited = true
	return s.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Report{Report: r}})
}

// stale is how old evidence has to be so that it is read again before it is
// sent. Readings are never that old, unless the notebook has slept.
func (s *stream) stale() time.Duration { return max(2*s.interval, minStale) }

func (s *stream) fill(r *agentv1.Report, now *posturev1.Evidence) {
	if s.held == nil {
		r.Body = &agentv1.Report_Full{Full: now}
		return
	}
	if delta := posture.Diff(s.held, now); delta != nil {
		r.Body = &agentv1.Report_Delta{Delta: delta}
		return
	}
	r.Body = &agentv1.Report_Heartbeat{Heartbeat: &agentv1.Heartbeat{}}
}
