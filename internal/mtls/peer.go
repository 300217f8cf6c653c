package mtls

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// exporterLabel and exporterLength bind a message to its TLS connection
// (RFC 9266, tls-exporter): relayed over another connection it is void.
const (
	exporterLabel  = "EXPORTER-Channel-Binding"
	exporterLength = 32
)

// Peer returns name and certificate of the verified peer of a gRPC call. It
// returns an error when there is none or when it states another role.
func Peer(ctx context.Context, role Role) (string, *x509.Certificate, error) {
	info, err := tlsInfo(ctx)
	if err != nil {
		return "", nil, err
	}
	cert, err := verifiedPeer(info.State, role)
	if err != nil {
		return "", nil, err
	}
	_, name, err := Identity(cert)
	return name, cert, err
}

// PeerFromContext is Peer for a listener whose role is already enforced by its
// ServerConfig: any verified role is returned.
func PeerFromContext(ctx context.Context) (string, *x509.Certificate, error) {
	info, err := tlsInfo(ctx)
	if err != nil {
		return "", nil, err
	}
	if len(info.State.VerifiedChains) == 0 {
		return "", nil, errors.New("peer has no verified certificate")
	}
	cert := info.State.PeerCertificates[0]
	_, name, err := Identity(cert)
	return name, cert, err
}

// Exporter returns the 32 bytes that both ends of the call's TLS connection
// know and nobody else (RFC 9266). On the client the context is that of a
// stream after its first message.
func Exporter(ctx context.Context) ([]byte, error) {
	info, err := tlsInfo(ctx)
	if err != nil {
		return nil, err
	}
	b, err := info.State.ExportKeyingMaterial(exporterLabel, nil, exporterLength)
	if err != nil {
		return nil, fmt.Errorf("exporting channel binding: %w", err)
	}
	return b, nil
}

func tlsInfo(ctx context.Context) (credentials.TLSInfo, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return credentials.TLSInfo{}, errors.New("call has no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return credentials.TLSInfo{}, errors.New("call does not come over TLS")
	}
	return info, nil
}
