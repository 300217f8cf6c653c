package intake

import (
	"crypto/tls"
	"crypto/x509"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
)

// TLS is the configuration of the agents' listener: enrolment comes without a
// certificate, everything else with one of the devices' CA that CheckCertificate
// accepts. It belongs to the server of ServerOptions, which looks again.
func (s *Service) TLS(own func() (*tls.Certificate, error), devices *x509.CertPool) *tls.Config {
	return mtls.ServerConfig(mtls.ServerOptions{
		Certificate: own, Clients: devices, Role: mtls.RoleDevice, Optional: true, Check: s.CheckCertificate,
	})
}

// ServerOptions is how the agents' gRPC server is made: bounded messages and
// connections, small buffers because there are many (TLS buffers what it reads
// anyway), and a new handshake every 12 hours at the latest because only a
// handshake asks for the certificate.
func (s *Service) ServerOptions(config *tls.Config) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(&handshakes{credentials.NewTLS(config), s.completed, s.Now}),
		grpc.ConnectionTimeout(15 * time.Second),
		grpc.MaxRecvMsgSize(posture.MaxMessageBytes),
		grpc.MaxSendMsgSize(posture.MaxMessageBytes),
		grpc.MaxConcurrentStreams(4),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.ReadBufferSize(0),
		grpc.WriteBufferSize(4 << 10),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle:     2 * time.Minute, // enrolled, or waiting for nothing
			MaxConnectionAge:      12 * time.Hour,
			MaxConnectionAgeGrace: 30 * time.Second,
			Time:                  time.Minute,
			Timeout:               20 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime:             10 * time.Second,
			PermitWithoutStream: true,
		}),
	}
}
