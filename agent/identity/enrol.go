package identity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"pfoertner/agent/durable"
	"pfoertner/agent/uplink"
	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
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
	// Token is the one-time token that is bound to this notebook's asset. Empty:
	// the TPM alone has to be enough, because the collector expects it or has
	// approved it.
	Token   string
	Machine *agentv1.Machine
}

// PendingError says that the collector knows this notebook and persons have to
// approve it.
type PendingError struct {
	// Fingerprint is what they compare with `pfoertner-agent id`: that of the
	// TPM's endorsement key, or of the software key.
	Fingerprint string
	// AskAgainAt is zero when the collector did not say.
	AskAgainAt time.Time
}

func (e *PendingError) Error() string {
	return "waiting for approval of the key " + e.Fingerprint
}

// ErrNotExpected is wrapped where the collector refuses a notebook that has
// nothing but its TPM to show.
var ErrNotExpected = errors.New("the collector does not expect this notebook's TPM, and there is no token")

// Enrol makes this notebook a device, and stores the identity. It keeps using
// the keys of an enrolment that still waits for approval. Where there is a
// certificate already it is replaced, and stays until then: keys in the TPM are
// used on, by them the collector knows a device whose certificate has expired; a
// software key is always replaced by a new one.
//
// It returns a *PendingError when approval is needed, the collector's status
// when it refuses (with ErrNotExpected if there was no token), ErrNoToken where
// a software key has none, and ErrBroken when there is a file that cannot be
// read: that is never overwritten. A software key is replaced by one in the TPM
// only with a token, and never the other way round: the error is ErrOtherKind.
// Keys that are not in this machine's TPM are set aside, which is a
// *CopiedError; the next attempt begins with new ones.
func (s *State) Enrol(ctx context.Context, e Enrolment) (*Identity, error) {
	if s.Chip() != nil {
		if spent, err := s.Spent(e.Token); err != nil {
			return nil, err
		} else if spent {
			e.Token = ""
		}
	} else if e.Token == "" {
		return nil, ErrNoToken
	}
	waiting, err := s.waitingKey(e)
	if err != nil {
		return nil, err
	}
	id, err := s.enrolWith(ctx, waiting, e)
	if next := s.unfinished(waiting); next != nil && grpcstatus.Code(err) == codes.PermissionDenied {
		id, err = s.enrolWith(ctx, next, e)
	}
	switch {
	case errors.As(err, new(*PendingError)) && s.Chip() != nil:
		// From now on the collector knows the TPM; the token is used up.
		return nil, errors.Join(err, s.spendAny(e.Token))
	case e.Token == "" && grpcstatus.Code(err) == codes.PermissionDenied:
		return nil, fmt.Errorf("%w: %w", ErrNotExpected, err)
	case err != nil:
		return nil, err
	}
	if err := s.Save(id); err != nil {
		return nil, err
	}
	s.forgetNext()
	// Should this be lost, the token is tried once more and refused.
	_ = s.spendAny(e.Token)
	return id, nil
}

// enrolWith is one enrolment of these keys. It stores nothing.
func (s *State) enrolWith(ctx context.Context, waiting *Identity, e Enrolment) (*Identity, error) {
	a := applicant{Identity: waiting, Enrolment: e}
	if waiting.InTPM() {
		// Read afresh, and before the collector waits for it: making an RSA key
		// takes some TPMs many seconds.
		var err error
		if a.endorsement, err = s.Chip().Endorsement(); err != nil {
			return nil, unusable(err)
		}
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
	answer, err := a.converse(stream)
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	if p := answer.GetPending(); p != nil {
		return nil, a.pending(p)
	}
	id, err := issued(waiting, answer.GetIssued())
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	if len(id.Servers) == 0 {
		return nil, errors.New("enrolling: the collector sent no CA to trust")
	}
	if _, err := id.Certificate(time.Now()); err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	return id, nil
}

// waitingKey returns the keys to get a certificate for: stored ones, or new
// ones. Keys are stored before they are used: should the answer get lost, the
// next attempt is by the same.
func (s *State) waitingKey(e Enrolment) (*Identity, error) {
	id, err := s.Load()
	switch {
	case errors.Is(err, chip.ErrForeign):
		return nil, s.setAside(time.Now(), true)
	case errors.Is(err, ErrNotEnrolled):
		id, err := s.makeKey(durable.Create)
		if errors.Is(err, fs.ErrExist) {
			// Another process enrols this notebook too: at the command line,
			// beside the service. One of both has the keys.
			return s.waitingKey(e)
		}
		return id, err
	case s.raises(err):
		return s.raisedKey(err, e.Token)
	case err != nil:
		return nil, err
	case id.Enrolled() && !id.InTPM():
		return s.nextKey(id)
	}
	return id, nil
}

// makeKey stores new keys by write, without a certificate.
func (s *State) makeKey(write writing) (*Identity, error) {
	fresh := &Identity{}
	if err := s.renewKey(fresh, time.Now()); err != nil {
		return nil, err
	}
	if err := s.renewAttestationKey(fresh, time.Now()); err != nil {
		return nil, err
	}
	return fresh, s.store(fresh, write)
}

// renewKey gives id a new device key.
func (s *State) renewKey(id *Identity, now time.Time) (err error) {
	if id.Key, err = s.keys.Generate(); err != nil {
		return fmt.Errorf("making key: %w", err)
	}
	if s.Chip() != nil {
		id.chip, id.keySince = s.Chip(), now.UTC().Truncate(time.Second)
	}
	return nil
}

// renewAttestationKey gives id a new attestation key, where there is a TPM to
// have it.
func (s *State) renewAttestationKey(id *Identity, now time.Time) (err error) {
	if s.Chip() == nil {
		return nil
	}
	if id.ak, err = s.Chip().NewAK(); err != nil {
		return unusable(err)
	}
	id.akSince = now.UTC().Truncate(time.Second)
	return nil
}

// applicant is a notebook that enrols.
type applicant struct {
	*Identity
	Enrolment
	// endorsement is who its TPM is; nil for a software key.
	endorsement *chip.Endorsement
}

// converse is hello → challenge → proof → issued or pending.
func (a applicant) converse(stream grpc.BidiStreamingClient[agentv1.EnrolRequest, agentv1.EnrolResponse]) (*agentv1.EnrolResponse, error) {
	hello, err := a.hello()
	if err != nil {
		return nil, err
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
	proof, err := a.prove(stream.Context(), hello, challenge.GetChallenge())
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

func (a applicant) hello() (*agentv1.Hello, error) {
	csr, err := attest.NewRequest(a.Key)
	if err != nil {
		return nil, err
	}
	hello := &agentv1.Hello{
		Capability: posture.Capability, AgentVersion: a.Target.Version,
		Token: a.Token, Machine: a.Machine, Csr: csr,
	}
	if key, ok := a.Key.(*chip.Key); ok {
		hello.Tpm = chip.Hello(a.endorsement, a.ak, key)
	}
	return hello, nil
}

func (a applicant) prove(ctx context.Context, hello *agentv1.Hello, c *agentv1.Challenge) (*agentv1.Proof, error) {
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
	if key, ok := a.Key.(*chip.Key); ok {
		proof, err := a.chip.Answer(a.endorsement, a.ak, key, c, exporter, transcript)
		if err != nil {
			return nil, err
		}
		proof.EventLog = sendable(proof.EventLog)
		return proof, nil
	}
	sig, err := attest.Sign(a.Key, attest.EnrolDigest(c.GetNonce(), exporter, transcript))
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

// pending says what people compare: what this notebook says of itself.
func (a applicant) pending(p *agentv1.Pending) error {
	e := &PendingError{Fingerprint: p.GetFingerprint()}
	if own, err := a.fingerprint(); err == nil {
		e.Fingerprint = own
	}
	if t := p.GetAskAgainAt(); t.IsValid() {
		e.AskAgainAt = t.AsTime()
	}
	return e
}

func (a applicant) fingerprint() (string, error) {
	if a.endorsement == nil {
		return a.Fingerprint()
	}
	key, err := a.endorsement.Key()
	if err != nil {
		return "", err
	}
	return attest.Fingerprint(key)
}
