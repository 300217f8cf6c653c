package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// ServerOptions says who a listener is and whom it lets in.
type ServerOptions struct {
	// Certificate returns the listener's own certificate; asked at every
	// handshake, so a renewed one is used without a restart.
	Certificate func() (*tls.Certificate, error)
	// Clients is the issuing CA of the one role that may connect. Nil: nobody.
	Clients *x509.CertPool
	// Role is the role that a client certificate must state.
	Role Role
	// Optional also lets clients without a certificate complete the handshake
	// (enrolment). Handlers then have to ask Peer.
	Optional bool
	// Check is asked for every verified client certificate: an error refuses
	// the handshake. Nil: the certificate is enough.
	Check func(*x509.Certificate) error
}

// ServerConfig is the TLS configuration of a listener: TLS 1.3, client
// certificates of one role, no resumption.
func ServerConfig(o ServerOptions) *tls.Config {
	auth := tls.RequireAndVerifyClientCert
	if o.Optional {
		auth = tls.VerifyClientCertIfGiven
	}
	c := baseConfig()
	c.ClientAuth = auth
	c.ClientCAs = closed(o.Clients)
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if o.Certificate == nil {
			return nil, errors.New("listener has no certificate")
		}
		return o.Certificate()
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if err := verifyTransport(s); err != nil {
			return err
		}
		if len(s.PeerCertificates) == 0 && o.Optional {
			return nil
		}
		cert, err := verifiedPeer(s, o.Role)
		if err != nil || o.Check == nil {
			return err
		}
		return o.Check(cert)
	}
	return c
}

// Following is the configuration of a gRPC listener whose trust changes while
// it runs: current is asked at every handshake.
func Following(current func() *tls.Config) *tls.Config {
	c := current()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		fresh := current()
		// gRPC adds its protocol only to the configuration that it is given.
		fresh.NextProtos = []string{"h2"}
		return fresh, nil
	}
	return c
}

// ClientOptions says who a client is and which collector it accepts.
type ClientOptions struct {
	// Certificate returns the client's own certificate; asked at every
	// handshake. Nil: the client has none (enrolment).
	Certificate func() (*tls.Certificate, error)
	// Servers is the collectors' issuing CA. Nil: no server is accepted.
	Servers *x509.CertPool
	// ServerName is the DNS name or IP address that the server's certificate
	// must carry. Empty with gRPC: the name that was dialled.
	ServerName string
}

// ClientConfig is the TLS configuration of a client: TLS 1.3, a server of role
// collector under the collectors' CA, no resumption.
func ClientConfig(o ClientOptions) *tls.Config {
	c := baseConfig()
	c.RootCAs = closed(o.Servers)
	c.ServerName = o.ServerName
	if o.Certificate != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return o.Certificate()
		}
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if err := verifyTransport(s); err != nil {
			return err
		}
		_, err := verifiedPeer(s, RoleCollector)
		return err
	}
	return c
}

func baseConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// BSI TR-02102: post-quantum key agreement only as a hybrid.
		CurvePreferences:       []tls.CurveID{tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024, tls.CurveP384, tls.CurveP256},
		SessionTicketsDisabled: true,
	}
}

// verifyTransport refuses what crypto/tls cannot be configured to leave out: a
// resumed session, and ChaCha20 where both ends lack AES instructions.
func verifyTransport(s tls.ConnectionState) error {
	if s.DidResume {
		return errors.New("resumed TLS session refused")
	}
	switch s.CipherSuite {
	case tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384:
		return nil
	}
	return fmt.Errorf("cipher suite %s refused: AES-GCM is needed", tls.CipherSuiteName(s.CipherSuite))
}

// verifiedPeer returns the peer's certificate if it was verified against the
// pool and states the role.
func verifiedPeer(s tls.ConnectionState, role Role) (*x509.Certificate, error) {
	if len(s.VerifiedChains) == 0 || len(s.PeerCertificates) == 0 {
		return nil, errors.New("peer has no verified certificate")
	}
	cert := s.PeerCertificates[0]
	got, name, err := Identity(cert)
	if err != nil {
		return nil, err
	}
	if role == "" || got != role {
		return nil, fmt.Errorf("%s %s is not accepted as %q", got, name, role)
	}
	return cert, nil
}
