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

// vpnKey is a stream's part in getting a VPN certificate.
type vpnKey struct {
	wanted  *agentv1.VpnKeyWanted // nil: the collector issues none
	due     <-chan time.Time      // when to look whether to ask
	attempt *vpnkey.Attempt       // waits for an answer
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
	if s.vpn.attempt != nil {
		return nil
	}
	due, err := s.vpnKeeper.Due(s.id.DeviceID, s.vpn.wanted)
	if wait := time.Until(due); err == nil && wait > 0 {
		s.vpn.due = time.After(wait)
		return nil
	}
	if err == nil {
		s.vpn.attempt, err = s.vpnKeeper.Begin(s.id.DeviceID)
	}
	if err != nil {
		s.Log.Error("VPN certificate is not asked for", "error", err)
		s.vpn.due = time.After(vpnRetry)
		return nil
	}
	return s.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_VpnKey{VpnKey: s.vpn.attempt.Request()}})
}

func (s *stream) proveVPNKey(c *agentv1.VpnKeyChallenge) error {
	if s.vpn.attempt == nil {
		return errors.New("collector challenges a VPN key that it was not asked for")
	}
	exporter, err := mtls.Exporter(s.rpc.Context())
	if err != nil {
		return fmt.Errorf("proving VPN key: %w", err)
	}
	proof, err := s.vpn.attempt.Prove(s.id, c, exporter)
	if err != nil {
		s.Log.Error("VPN key is not proven", "error", err)
		s.vpn.attempt, s.vpn.due = nil, time.After(vpnRetry)
		return nil
	}
	return s.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_VpnKeyProof{VpnKeyProof: proof}})
}

// completeVPNKey puts the certificate in place. One that is refused, or cannot
// be stored, is asked for again later.
func (s *stream) completeVPNKey(m *agentv1.VpnCertificate) error {
	if s.vpn.attempt == nil {
		return errors.New("collector issues a VPN certificate that it was not asked for")
	}
	sum, err := s.vpn.attempt.Complete(m)
	s.vpn.attempt = nil
	if err != nil {
		s.Log.Warn("no VPN certificate", "error", err)
		s.vpn.due = time.After(vpnRetry)
		return nil
	}
	s.Log.Info("VPN certificate in place", "certificate_sha256", hex.EncodeToString(sum))
	s.vpn.wanted.CertificateSha256 = sum
	return s.askVPNKey() // when the next one is due
}
