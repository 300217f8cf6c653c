package gateway

import (
	"cmp"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/internal/posture"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

// Limits of one session's facts: far above what a gateway has to say.
const (
	maxSessionID = 256
	maxName      = 1024
	maxAddress   = 128
	maxAddresses = 16
)

// Limits of one report: a gateway states all its sessions at once after a
// restart of either side. The largest known peak is 4,750 at the same time.
const (
	maxEvents      = 1 << 16
	maxReportBytes = 32 << 20
)

// checkSession returns an error for facts that name no session or are longer
// than anything a gateway has to say. It decides nothing else: an identity that
// is missing or malformed is denied by the Desk.
func checkSession(s *gatev1.SessionFacts) error {
	if s.GetSessionId() == "" {
		return errors.New("session_id is missing")
	}
	for _, f := range []struct {
		name  string
		n, at int
	}{
		{"session_id", len(s.GetSessionId()), maxSessionID},
		{"certificate_sha256", len(s.GetCertificateSha256()), maxAddress},
		{"peer_name", len(s.GetPeerName()), maxName},
		{"outer_address", len(s.GetOuterAddress()), maxAddress},
		{"tunnel_addresses", len(s.GetTunnelAddresses()), maxAddresses},
	} {
		if f.n > f.at {
			return fmt.Errorf("%s: %d, at most %d are taken", f.name, f.n, f.at)
		}
	}
	return checkAddresses(s.GetTunnelAddresses())
}

func checkAddresses(addresses []string) error {
	if len(addresses) > maxAddresses {
		return fmt.Errorf("tunnel_addresses: %d, at most %d are taken", len(addresses), maxAddresses)
	}
	for _, a := range addresses {
		if len(a) > maxAddress {
			return fmt.Errorf("tunnel_addresses: %d bytes, at most %d are taken", len(a), maxAddress)
		}
	}
	return nil
}

// checkReport checks every event; the first that is wrong refuses the whole
// report.
func checkReport(req *gatev1.ReportRequest) error {
	if n := len(req.GetEvents()); n > maxEvents {
		return fmt.Errorf("%d events, at most %d are taken", n, maxEvents)
	}
	for i, e := range req.GetEvents() {
		if err := cmp.Or(posture.CheckLimits(e), checkEvent(e)); err != nil {
			return fmt.Errorf("events[%d]: %w", i, err)
		}
	}
	return nil
}

func checkEvent(e *gatev1.SessionEvent) error {
	if e.GetAt() != nil {
		if err := e.GetAt().CheckValid(); err != nil {
			return err
		}
	}
	switch what := e.GetEvent().(type) {
	case *gatev1.SessionEvent_Up:
		return checkSession(what.Up.GetSession())
	case *gatev1.SessionEvent_Roamed:
		return checkAddresses(what.Roamed.GetTunnelAddresses())
	case *gatev1.SessionEvent_CutConfirmed:
		for _, d := range []*durationpb.Duration{what.CutConfirmed.GetPacketsCutAfter(), what.CutConfirmed.GetSessionGoneAfter()} {
			if d != nil && d.CheckValid() != nil || d.AsDuration() < 0 {
				return errors.New("cut_confirmed: not a time span")
			}
		}
	}
	return nil
}
