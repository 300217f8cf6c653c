package fleet

import (
	"context"
	"slices"

	"pfoertner/collector/appraisal"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Explain says why a device stands where it stands, or what a refusal code
// means.
func (s *fleetService) Explain(ctx context.Context, req *fleetv1.ExplainRequest) (*fleetv1.ExplainResponse, error) {
	switch subject := req.GetSubject().(type) {
	case *fleetv1.ExplainRequest_Device:
		return s.explainDevice(ctx, subject.Device)
	case *fleetv1.ExplainRequest_Code:
		return s.explainCode(ctx, subject.Code)
	}
	return nil, invalid("nothing to explain: a device or a refusal code is needed")
}

func (s *fleetService) explainDevice(ctx context.Context, key string) (*fleetv1.ExplainResponse, error) {
	dev, err := s.find(key)
	if err != nil {
		return nil, err
	}
	e, err := s.current(ctx, dev)
	if err != nil {
		return nil, err
	}
	return &fleetv1.ExplainResponse{Explanations: []*fleetv1.Explanation{e}}, nil
}

func (s *fleetService) explainCode(ctx context.Context, said string) (*fleetv1.ExplainResponse, error) {
	code, err := appraisal.ParseCode(said)
	if err != nil {
		return nil, invalid("%q: %v", said, err)
	}
	refused, err := s.reports.Refusals(ctx, code)
	if err != nil {
		return nil, err
	}
	if len(refused) == 0 {
		return nil, notFound("no refusal that is still kept has the code %s", code)
	}
	answer := &fleetv1.ExplainResponse{}
	for _, e := range refused {
		if dev, ok := s.devices.Device(e.GetDevice().GetId()); ok {
			if e, err = s.since(ctx, e, dev, code); err != nil {
				return nil, err
			}
		}
		answer.Explanations = append(answer.Explanations, e)
	}
	return answer, nil
}

// since joins a refusal to how its device stands now. A refusal whose cause lies
// outside the evidence (suspended, never reported) has no result.
func (s *fleetService) since(ctx context.Context, refused *fleetv1.Explanation, dev *fleetv1.Device, code string) (*fleetv1.Explanation, error) {
	e, err := s.current(ctx, dev)
	if err != nil {
		return nil, err
	}
	if refused.GetResult() != nil {
		e.Outdated = e.GetResult().GetCode() != code
	} else {
		e.Outdated = e.GetVerdict() != refused.GetVerdict()
		e.Reason = refused.GetReason()
	}
	e.Result, e.RefusedAt = refused.GetResult(), refused.GetRefusedAt()
	e.Gateway, e.CertificateSha256 = refused.GetGateway(), refused.GetCertificateSha256()
	return e, nil
}

// current explains how a device stands now. The evidence is left out: findings
// carry the values that were read.
func (s *fleetService) current(ctx context.Context, dev *fleetv1.Device) (*fleetv1.Explanation, error) {
	v, err := s.look(ctx, dev)
	if err != nil {
		return nil, err
	}
	e := &fleetv1.Explanation{Device: v, Result: v.GetResult()}
	v.Evidence, v.Result = nil, nil
	if dev.GetId() == "" {
		e.Verdict, e.Reason = posturev1.Verdict_VERDICT_DENY, notEnrolled()
		return e, nil
	}
	e.Verdict, e.Reason = s.desk.Explain(dev.GetId())
	e.Sessions = slices.DeleteFunc(slices.Clone(s.desk.Sessions("")), func(session *fleetv1.Session) bool {
		return session.GetDeviceId() != dev.GetId()
	})
	return e, nil
}

func notEnrolled() *posturev1.LocalText {
	return &posturev1.LocalText{
		De: "Das Gerät steht im Inventar, ist aber noch nicht aufgenommen.",
		En: "The device is in the inventory but has not enrolled yet.",
	}
}
