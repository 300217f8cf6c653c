package intake

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc/credentials"

	"pfoertner/collector/enrolment"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// CheckCertificate refuses, in the handshake, devices that are not accepted. It
// fits mtls.ServerOptions.Check, which is asked when the chain is verified, but
// before the notebook has shown that it has the key. A software key that was
// replaced is therefore let through: it is refused, with an alarm, when the
// handshake is complete (completed). Otherwise an old certificate alone, which
// is no secret, would be enough to have a device suspended.
func (s *Service) CheckCertificate(cert *x509.Certificate) error {
	id, err := s.admissible(cert)
	if err == nil || errors.Is(err, enrolment.ErrStaleKey) && !s.inTPM(id) {
		return nil
	}
	return s.refuse(id, cert, err)
}

// completed refuses, after a handshake, the keys that CheckCertificate has let
// through: two machines have, or had, this identity. Not so when the handshake
// began before the stream that replaced the key: then it is the same notebook's,
// and was slow, or held up by somebody on the line.
func (s *Service) completed(cert *x509.Certificate, began time.Time) error {
	id, err := s.admissible(cert)
	if err == nil {
		return nil
	}
	if errors.Is(err, enrolment.ErrStaleKey) && !s.inTPM(id) && !s.beganAfter(id, began) {
		s.raise(id, alarmStaleKey, "a key that was replaced came back, with certificate "+cert.SerialNumber.Text(16))
	}
	return s.refuse(id, cert, err)
}

// admissible returns the device of a certificate, and why it is not accepted.
func (s *Service) admissible(cert *x509.Certificate) (deviceID string, err error) {
	_, id, err := mtls.Identity(cert)
	if err != nil {
		return "", err
	}
	spki, err := attest.SPKI(cert.PublicKey)
	if err != nil {
		return id, err
	}
	return id, s.Registry.Accepts(id, spki)
}

func (s *Service) refuse(id string, cert *x509.Certificate, why error) error {
	s.Metrics.handshakeRefused()
	s.Log.Warn("handshake of a device refused", "device_id", id, "certificate_serial", cert.SerialNumber.Text(16), "reason", why)
	return fmt.Errorf("device %s: %w", id, why)
}

// handshakes are TLS credentials that see every completed handshake of a device.
type handshakes struct {
	credentials.TransportCredentials
	completed func(cert *x509.Certificate, began time.Time) error
	now       func() time.Time
}

// ServerHandshake implements credentials.TransportCredentials.
func (h *handshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	began := h.now()
	conn, info, err := h.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	over, ok := info.(credentials.TLSInfo)
	if !ok {
		return nil, nil, errors.Join(fmt.Errorf("connection of type %T is not TLS", info), conn.Close())
	}
	if len(over.State.PeerCertificates) == 0 {
		return conn, info, nil
	}
	if err := h.completed(over.State.PeerCertificates[0], began); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, info, nil
}

// Clone implements credentials.TransportCredentials.
func (h *handshakes) Clone() credentials.TransportCredentials {
	return &handshakes{h.TransportCredentials.Clone(), h.completed, h.now}
}

// inTPM says whether the key of a device is in a TPM, where nobody can copy it.
func (s *Service) inTPM(deviceID string) bool {
	if _, known := s.TPMs.Known(deviceID); known {
		return true
	}
	d, _ := s.Registry.Device(deviceID)
	return d.GetKey().GetProtection() == fleetv1.KeyProtection_KEY_PROTECTION_TPM
}
