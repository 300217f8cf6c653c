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
			return status.Error(codes.PermissionDenied, "enrolment refused")
		}
		return s.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Issued{Issued: c.Issued(key, device)}})
	}
}

// Proven is an enrolment as the protocol has it, up to the valid proof.
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
	nonce := make([]byte, attest.NonceBytes)
	if err := s.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Challenge{Challenge: &agentv1.Challenge{Nonce: nonce}}}); err != nil {
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
	if err := attest.Verify(key, attest.EnrolDigest(nonce, exporter, transcript), m.GetProof().GetSignature()); err != nil {
		return nil, nil, status.Error(codes.PermissionDenied, err.Error())
	}
	return hello, key, nil
}
