package session

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"pfoertner/agent/identity"
	"pfoertner/agent/vpnkey"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// VPNDirectory, beside the identity file, is where the VPN key is.
const VPNDirectory = "vpn"

// vpnRetry is when a VPN certificate that could not be had is asked for again.
const vpnRetry = time.Hour

// newVPNKeeper returns nil when the device key is not in a TPM: then there is
// no key for the VPN either.
func newVPNKeeper(s *identity.State) *vpnkey.Keeper {
	if s == nil || s.Chip() == nil {
		return nil
	}
	return vpnkey.New(filepath.Join(filepath.Dir(s.Path()), VPNDirectory), s)
}

// vpnKey is a stream's part in getting a VPN certificate. All that the TPM does
// for it is done beside the stream, in turn with quotes: the collector takes
// statements of a TPM only in the order in which they were made.
type vpnKey struct {
	wanted  *agentv1.VpnKeyWanted // nil: the collector issues none
	looked  *agentv1.VpnKeyWanted // what was wanted when it was looked last
	due     <-chan time.Time      // when to look whether to ask
	busy    bool                  // looking or asking
	attempt *vpnkey.Attempt       // waits for an answer
	proving bool                  // has been challenged
}

// wantVPNKey takes the collector's word that it issues VPN certificates.
func (s *stream) wantVPNKey(w *agentv1.VpnKeyWanted) error {
	if s.vpnKeeper == nil {
		return nil
	}
	s.vpn.wanted = w
	return s.askVPNKey()
}

// askVPNKey asks for a VPN certificate when one is due. What prevents it on this
// side may pass: it is tried again, and the stream goes on.
func (s *stream) askVPNKey() error {
	if s.vpn.busy {
		return nil
	}
	s.vpn.busy, s.vpn.looked = true, s.vpn.wanted
	keeper, id, wanted := s.vpnKeeper, s.id.DeviceID, s.vpn.wanted
	s.beside(func() func() error {
		due, err := keeper.Due(id, wanted)
		if wait := time.Until(due); err == nil && wait > 0 {
			return func() error { return s.vpnKeyDone(wait) }
		}
		var attempt *vpnkey.Attempt
		if err == nil {
			attempt, err = keeper.Begin(id)
		}
		if err != nil {
			return func() error {
				s.Log.Error("VPN certificate is not asked for", "error", err)
				return s.vpnKeyDone(vpnRetry)
			}
		}
		return func() error {
			s.vpn.attempt = attempt
			return s.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_VpnKey{VpnKey: attempt.Request()}})
		}
	})
	return nil
}

// vpnKeyDone looks again later, or at once when the collector has said something
// else meanwhile.
func (s *stream) vpnKeyDone(again time.Duration) error {
	s.vpn.busy, s.vpn.proving, s.vpn.attempt, s.vpn.due = false, false, nil, time.After(again)
	if s.vpn.wanted != s.vpn.looked {
		return s.askVPNKey()
	}
	return nil
}

func (s *stream) proveVPNKey(c *agentv1.VpnKeyChallenge) error {
	attempt := s.vpn.attempt
	if attempt == nil || s.vpn.proving {
		return errors.New("collector challenges a VPN key that it was not asked for")
	}
	s.vpn.proving = true
	exporter, err := mtls.Exporter(s.rpc.Context())
	if err != nil {
		return fmt.Errorf("proving VPN key: %w", err)
	}
	s.beside(func() func() error {
		proof, err := attempt.Prove(s.id, c, exporter)
		if err != nil {
			return func() error {
				s.Log.Error("VPN key is not proven", "error", err)
				return s.vpnKeyDone(vpnRetry)
			}
		}
		return func() error {
			return s.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_VpnKeyProof{VpnKeyProof: proof}})
		}
	})
	return nil
}

// completeVPNKey puts the certificate in place. One that is refused, or cannot
// be stored, is asked for again later.
func (s *stream) completeVPNKey(m *agentv1.VpnCertificate) error {
	attempt := s.vpn.attempt
	if attempt == nil {
		return errors.New("collector issues a VPN certificate that it was not asked for")
	}
	s.vpn.attempt, s.vpn.proving = nil, false
	s.beside(func() func() error {
		sum, err := attempt.Complete(m)
		if err != nil {
			return func() error {
				s.Log.Warn("no VPN certificate", "error", err)
				return s.vpnKeyDone(vpnRetry)
			}
		}
		return func() error {
			s.Log.Info("VPN certificate in place", "certificate_sha256", hex.EncodeToString(sum))
			if s.vpn.wanted == s.vpn.looked {
				s.vpn.wanted = &agentv1.VpnKeyWanted{RenewBefore: s.vpn.wanted.GetRenewBefore(), CertificateSha256: sum}
			}
			s.vpn.busy = false
			return s.askVPNKey() // when the next one is due
		}
	})
	return nil
}
