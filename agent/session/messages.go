package session

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/agent/identity"
	"pfoertner/agent/status"
	"pfoertner/agent/uplink"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// handle acts on one message of the collector. An error ends the stream: the
// other side does not keep to the protocol, and a new stream begins from full
// state. A message of a kind that this build does not know is ignored.
func (s *stream) handle(m *agentv1.ConnectResponse) error {
	if w := m.GetWelcome(); (w != nil) != (s.nonce == nil) {
		return fmt.Errorf("collector sends %T out of order", m.GetMessage())
	}
	switch m := m.GetMessage().(type) {
	case *agentv1.ConnectResponse_Welcome:
		return s.welcomed(m.Welcome)
	case *agentv1.ConnectResponse_Acknowledgement:
		return s.stored(m.Acknowledgement)
	case *agentv1.ConnectResponse_Collect:
		s.readings.requestAll()
		if nonce := m.Collect.GetQuoteNonce(); len(nonce) > 0 {
			return s.quote(nonce)
		}
	case *agentv1.ConnectResponse_PresenceCheck:
		return s.present(m.PresenceCheck)
	case *agentv1.ConnectResponse_Pace:
		s.pace(m.Pace.GetReportInterval())
	case *agentv1.ConnectResponse_Result:
		s.Board.Judged(m.Result)
	case *agentv1.ConnectResponse_RenewalChallenge:
		return s.proveRenewal(m.RenewalChallenge)
	case *agentv1.ConnectResponse_Issued:
		return s.completeRenewal(m.Issued)
	case *agentv1.ConnectResponse_VpnCatalogue:
		s.catalogued(m.VpnCatalogue)
	case *agentv1.ConnectResponse_VpnKeyWanted:
		return s.wantVPNKey(m.VpnKeyWanted)
	case *agentv1.ConnectResponse_VpnKeyChallenge:
		return s.proveVPNKey(m.VpnKeyChallenge)
	case *agentv1.ConnectResponse_VpnCertificate:
		return s.completeVPNKey(m.VpnCertificate)
	case *agentv1.ConnectResponse_TunnelProofWanted:
		if s.TunnelProofWanted != nil {
			s.TunnelProofWanted()
		}
	case *agentv1.ConnectResponse_Resync:
		return s.resync(m.Resync)
	}
	return nil
}

func (s *stream) welcomed(w *agentv1.Welcome) (err error) {
	if len(w.GetNonce()) != nonceBytes {
		return fmt.Errorf("welcome with a nonce of %d bytes, %d are needed", len(w.GetNonce()), nonceBytes)
	}
	if s.path, err = uplink.PathOf(s.rpc.Context()); err != nil {
		return err
	}
	s.nonce = w.GetNonce()
	s.pace(w.GetReportInterval())
	s.renew = time.After(s.untilRenewal(w))
	s.Board.Connection(status.Online)
	s.Log.Info("connected to the collector", "collector_version", w.GetCollectorVersion())
	if nonce := w.GetQuoteNonce(); len(nonce) > 0 {
		s.quoting = time.After(quoteFirst)
		return s.quote(nonce)
	}
	return s.report()
}

// pace takes the collector's report interval; one that is none changes nothing.
func (s *stream) pace(d *durationpb.Duration) {
	if d.IsValid() && d.AsDuration() > 0 {
		s.interval = d.AsDuration()
		s.readings.every(s.interval)
	}
}

// catalogued takes a catalogue of VPN clients. One that is refused changes
// nothing, here or on the stream: that it is wrong is the signer's mistake.
func (s *stream) catalogued(c *agentv1.VpnCatalogue) {
	if s.catalogue != nil && s.catalogue.receive(c.GetSignedFile(), s.id.ServerPool(), time.Now()) {
		s.readings.request("vpn")
	}
}

// stored takes an acknowledgement. One that is repeated changes nothing; one
// for a report that was never sent, or for other evidence, is not believed.
func (s *stream) stored(a *agentv1.Acknowledgement) error {
	if a.GetSequence() < s.sequence || a.GetSequence() == s.sequence && !s.awaited {
		return nil
	}
	if a.GetSequence() > s.sequence {
		return fmt.Errorf("collector acknowledges report %d, the last one was %d", a.GetSequence(), s.sequence)
	}
	if !bytes.Equal(a.GetDigest(), s.heldDigest) {
		return fmt.Errorf("collector acknowledges other evidence than report %d", s.sequence)
	}
	s.awaited, s.acknowledged = false, true
	s.Board.Acknowledged(time.Now())
	return s.report()
}

// resync forgets what the collector was thought to hold.
func (s *stream) resync(r *agentv1.Resync) error {
	if s.awaited && s.sentFull {
		return errors.New("collector asks for full evidence in answer to full evidence")
	}
	s.Log.Info("full evidence asked for", "reason", r.GetReason())
	s.held, s.awaited = nil, false
	return s.report()
}

// untilRenewal is when the certificate is to be renewed: as the collector says
// now, as it said when it issued it, or a third of the lifetime after.
func (s *stream) untilRenewal(w *agentv1.Welcome) time.Duration {
	if d := w.GetRenewAfter(); d.IsValid() {
		return max(d.AsDuration(), 0)
	}
	if !s.id.RenewAfter.IsZero() {
		return max(time.Until(s.id.RenewAfter), 0)
	}
	leaf := s.id.Chain[0]
	return max(time.Until(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore)/3)), 0)
}

// requestRenewal asks for a new certificate.
func (s *stream) requestRenewal() error {
	s.beside(func() func() error {
		renewal, err := s.State.Renew(s.id)
		return func() error {
			if errors.Is(err, identity.ErrReplaced) {
				return errRenewed
			}
			if err != nil {
				return s.putOffRenewal(err)
			}
			s.renewal = renewal
			return s.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Renewal{Renewal: renewal.Request()}})
		}
	})
	return nil
}

// putOffRenewal asks again later. What prevents a renewal on this side, such as a
// full disk or a TPM that does not answer, may pass: the stream goes on.
func (s *stream) putOffRenewal(err error) error {
	s.Log.Error("certificate is not renewed", "error", err)
	s.renewal, s.renew = nil, time.After(renewalRetry)
	return nil
}

func (s *stream) proveRenewal(c *agentv1.RenewalChallenge) error {
	if s.renewal == nil || s.proving {
		return errors.New("collector challenges a renewal that was not asked for")
	}
	exporter, err := mtls.Exporter(s.rpc.Context())
	if err != nil {
		return fmt.Errorf("renewing certificate: %w", err)
	}
	s.proving = true
	renewal := s.renewal
	s.beside(func() func() error {
		proof, err := renewal.Prove(c, exporter)
		return func() error {
			s.proving = false
			if err != nil {
				return s.putOffRenewal(err)
			}
			return s.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_RenewalProof{RenewalProof: proof}})
		}
	})
	return nil
}

// completeRenewal stores the new certificate and ends the stream: the next one
// is opened with the new key.
func (s *stream) completeRenewal(m *agentv1.Issued) error {
	if s.renewal == nil {
		return errors.New("collector issues a certificate that was not asked for")
	}
	_, err := s.renewal.Complete(m, time.Now())
	if err != nil && !errors.Is(err, identity.ErrReplaced) {
		return fmt.Errorf("renewing certificate: %w", err)
	}
	return errRenewed
}
