package testcollector

import (
	"crypto/ecdsa"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// Granting is an OnEnrol that issues a certificate for a device to whoever has
// the token.
func (c *Collector) Granting(token, device string) func(agentv1.EnrolmentService_EnrolServer) error {
	return func(s agentv1.EnrolmentService_EnrolServer) error {
		hello, key, err := Proven(s)
		if err != nil {
			return err
		}
		if hello.GetToken() != token {
			return Refused()
		}
		return c.Grant(s, key, device)
	}
}

// Grant issues a certificate.
func (c *Collector) Grant(s agentv1.EnrolmentService_EnrolServer, key *ecdsa.PublicKey, device string) error {
	return s.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Issued{Issued: c.Issued(key, device)}})
}

// Refused is how a collector refuses.
func Refused() error { return status.Error(codes.PermissionDenied, "enrolment refused") }

// Proven is an enrolment as the protocol has it, up to the valid proof: of a
// software key, or of a TPM if that is what the notebook has.
func Proven(s agentv1.EnrolmentService_EnrolServer) (*agentv1.Hello, *ecdsa.PublicKey, error) {
	m, err := s.Recv()
	if err != nil {
		return nil, nil, err
	}
	hello := m.GetHello()
	key, err := attest.ParseRequest(hello.GetCsr())
	if err != nil {
		return nil, nil, status.Error(codes.InvalidArgument, err.Error())
	}
	challenge, verify, err := question(hello, key)
	if err != nil {
		return nil, nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Challenge{Challenge: challenge}}); err != nil {
		return nil, nil, err
	}
	if m, err = s.Recv(); err != nil {
		return nil, nil, err
	}
	exporter, err := mtls.Exporter(s.Context())
	if err != nil {
		return nil, nil, err
	}
	transcript, err := attest.Transcript(hello)
	if err != nil {
		return nil, nil, err
	}
	if err := verify(m.GetProof(), exporter, transcript); err != nil {
		return nil, nil, status.Error(codes.PermissionDenied, err.Error())
	}
	return hello, key, nil
}

// question is the challenge for a hello, and how its answer is judged.
func question(hello *agentv1.Hello, key *ecdsa.PublicKey) (*agentv1.Challenge, func(p *agentv1.Proof, exporter, transcript []byte) error, error) {
	if hello.GetTpm() == nil {
		nonce := make([]byte, attest.NonceBytes)
		return &agentv1.Challenge{Nonce: nonce}, func(p *agentv1.Proof, exporter, transcript []byte) error {
			return attest.Verify(key, attest.EnrolDigest(nonce, exporter, transcript), p.GetSignature())
		}, nil
	}
	claim, err := attest.ParseClaim(hello.GetTpm(), key)
	if err != nil {
		return nil, nil, err
	}
	challenge, expected, err := claim.NewChallenge()
	return challenge, func(p *agentv1.Proof, exporter, transcript []byte) error {
		_, err := expected.Verify(p, exporter, transcript)
		return err
	}, err
}
