package gateway

import (
	"context"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/admission"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

// draft is what one answer is written with. It is used again: admissions are
// the one thing that a gateway's users wait for, and most of what they would
// cost is garbage.
type draft struct {
	lease  gatev1.Lease
	issued timestamppb.Timestamp
	ttl    durationpb.Duration
	signed []byte
}

// draft returns one that is free; give it back to drafts.
func (s *Service) draft() *draft {
	if d, ok := s.drafts.Get().(*draft); ok {
		return d
	}
	return new(draft)
}

// fill writes every field of the lease: nothing is left of the one before.
func (d *draft) fill(gateway string, s *gatev1.SessionFacts, a admission.Answer) {
	d.issued.Seconds, d.issued.Nanos = a.At.Unix(), int32(a.At.Nanosecond())
	d.ttl.Seconds, d.ttl.Nanos = int64(a.TTL/1e9), int32(a.TTL%1e9)
	l := &d.lease
	l.Gateway, l.SessionId, l.CertificateSha256 = gateway, s.GetSessionId(), s.GetCertificateSha256()
	l.Verdict, l.DeviceId, l.Code = a.Verdict, a.DeviceID, a.Code
	l.IssuedAt, l.Ttl = &d.issued, &d.ttl
	l.Epoch, l.Sequence = a.Position.Epoch, a.Position.Sequence
}

// answer puts the response together as it goes over the wire: the signed lease
// is bytes already, and a message of bytes that are one costs nothing more.
// gRPC gets it as fields that are still unknown; the gateway knows them.
func (s *Service) answer(ctx context.Context, gateway string, facts *gatev1.SessionFacts, a admission.Answer) (*gatev1.AdmitResponse, error) {
	d := s.draft()
	defer s.drafts.Put(d)
	d.fill(gateway, facts, a)
	var err error
	if d.signed, err = s.o.Signer.AppendSigned(ctx, d.signed[:0], &d.lease); err != nil {
		return nil, s.outward(ctx, err)
	}
	wire := make([]byte, 0, protowire.SizeTag(1)+protowire.SizeBytes(len(d.signed)))
	wire = protowire.AppendTag(wire, 1, protowire.BytesType)
	wire = protowire.AppendBytes(wire, d.signed)
	response := &gatev1.AdmitResponse{}
	if a.Code != "" {
		response.Message, response.Code = a.Message, a.Code
	}
	response.ProtoReflect().SetUnknown(wire)
	return response, nil
}
