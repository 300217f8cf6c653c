package identity

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"pfoertner/agent/uplink"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// enrolTimeout ends one attempt to enrol; the challenge itself is valid for
// 60 s.
const enrolTimeout = time.Minute

// Enrolment is what is needed to become a device.
type Enrolment struct {
	Target uplink.Target
	Pin    uplink.Pin
	// Token is the one-time token that is bound to this notebook's asset.
	Token   string
	Machine *agentv1.Machine
}

// PendingError says that the collector knows this notebook and persons have to
// approve it.
type PendingError struct {
	// Fingerprint is what they compare with `pfoertner-agent id`.
	Fingerprint string
	// AskAgainAt is zero when the collector did not say.
	AskAgainAt time.Time
}

func (e *PendingError) Error() string {
	return "waiting for approval of the key " + e.Fingerprint
}

// Enrol makes this notebook a device, and stores the identity. It keeps using
// the key of an enrolment that still waits for approval; otherwise it makes a
// new one, also when there is a certificate: that is how an expired one is
// replaced, and until then it stays. It returns a *PendingError when approval is
// needed, the collector's status when it refuses, and ErrBroken when there is a
// file that cannot be read: that is never overwritten.
func (s *State) Enrol(ctx context.Context, e Enrolment) (*Identity, error) {
	waiting, err := s.waitingKey()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	servers, err := e.Pin.Servers(ctx, e.Target)
	if err != nil {
		return nil, err
	}
	conn, err := e.Target.Dial(servers, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stream, err := agentv1.NewEnrolmentServiceClient(conn).Enrol(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", e.Target.Address, err)
	}
	answer, err := converse(stream, waiting, e)
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	if p := answer.GetPending(); p != nil {
		return nil, pending(waiting, p)
	}
	id, err := issued(waiting.Key, answer.GetIssued())
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	if len(id.Servers) == 0 {
		return nil, errors.New("enrolling: the collector sent no CA to trust")
	}
	if _, err := id.Certificate(time.Now()); err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	if err := s.Save(id); err != nil {
		return nil, err
	}
	s.forgetNext()
	// Should this be lost, the token is tried once more and refused.
	_ = s.Spend(e.Token)
	return id, nil
}

// waitingKey returns the stored identity that waits for a certificate, or makes
// one. The key is stored before it is used: should the answer get lost, the
// next attempt is by the same key.
func (s *State) waitingKey() (*Identity, error) {
	id, err := s.Load()
	switch {
	case errors.Is(err, ErrNotEnrolled):
		return s.makeKey()
	case err != nil:
		return nil, err
	case id.Enrolled():
		return s.nextKey(id)
	}
	return id, nil
}

// makeKey stores a new key, without a certificate.
func (s *State) makeKey() (*Identity, error) {
	key, err := s.keys.Generate()
	if err != nil {
		return nil, fmt.Errorf("making key: %w", err)
	}
	fresh := &Identity{Key: key}
	return fresh, s.Save(fresh)
}

// converse is hello → challenge → proof → issued or pending.
func converse(stream grpc.BidiStreamingClient[agentv1.EnrolRequest, agentv1.EnrolResponse], waiting *Identity, e Enrolment) (*agentv1.EnrolResponse, error) {
	csr, err := attest.NewRequest(waiting.Key)
	if err != nil {
		return nil, err
	}
	hello := &agentv1.Hello{
		Capability: posture.Capability, AgentVersion: e.Target.Version,
		Token: e.Token, Machine: e.Machine, Csr: csr,
	}
	if err := stream.Send(&agentv1.EnrolRequest{Message: &agentv1.EnrolRequest_Hello{Hello: hello}}); err != nil {
		return nil, ended(stream, err)
	}
	challenge, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if err := posture.CheckLimits(challenge); err != nil {
		return nil, err
	}
	if challenge.GetPending() != nil {
		return challenge, nil
	}
	proof, err := prove(stream.Context(), waiting, hello, challenge.GetChallenge())
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&agentv1.EnrolRequest{Message: &agentv1.EnrolRequest_Proof{Proof: proof}}); err != nil {
		return nil, ended(stream, err)
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if err := posture.CheckLimits(answer); err != nil {
		return nil, err
	}
	if answer.GetIssued() == nil && answer.GetPending() == nil {
		return nil, fmt.Errorf("collector answers the proof with %T", answer.GetMessage())
	}
	return answer, stream.CloseSend()
}

func prove(ctx context.Context, waiting *Identity, hello *agentv1.Hello, c *agentv1.Challenge) (*agentv1.Proof, error) {
	if c == nil {
		return nil, errors.New("collector answers hello without a challenge")
	}
	if err := checkNonce(c.GetNonce()); err != nil {
		return nil, err
	}
	exporter, err := mtls.Exporter(ctx)
	if err != nil {
		return nil, err
	}
	transcript, err := attest.Transcript(hello)
	if err != nil {
		return nil, err
	}
	sig, err := attest.Sign(waiting.Key, attest.EnrolDigest(c.GetNonce(), exporter, transcript))
	if err != nil {
		return nil, err
	}
	return &agentv1.Proof{Signature: sig}, nil
}

// ended returns why a stream took no more messages: the status that Recv has,
// not the io.EOF of Send.
func ended(stream grpc.ClientStream, sendErr error) error {
	if err := stream.RecvMsg(new(agentv1.EnrolResponse)); err != nil {
		return err
	}
	return sendErr
}

func pending(waiting *Identity, p *agentv1.Pending) error {
	e := &PendingError{Fingerprint: p.GetFingerprint()}
	// What people compare is what this notebook says of its own key.
	if own, err := waiting.Fingerprint(); err == nil {
		e.Fingerprint = own
	}
	if t := p.GetAskAgainAt(); t.IsValid() {
		e.AskAgainAt = t.AsTime()
	}
	return e
}
