package gateway

import (
	"context"
	"crypto/x509"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"pfoertner/internal/mtls"
)

// mostPeers is how many certificates are remembered; beyond it all are
// forgotten and read again.
const mostPeers = 1024

// peers remembers which gateway a certificate names, so that it is read once
// and not at every call. The key is the parsed certificate of a connection, not
// its content: only what crypto/tls has verified for this very listener gets
// in.
type peers struct {
	mu    sync.RWMutex
	names map[*x509.Certificate]string
}

// name is the calling gateway's name. The error is what the caller gets.
func (p *peers) name(ctx context.Context) (string, error) {
	cert := verified(ctx)
	p.mu.RLock()
	name, ok := p.names[cert]
	p.mu.RUnlock()
	if ok && cert != nil {
		return name, nil
	}
	name, cert, err := mtls.Peer(ctx, mtls.RoleGate)
	if err != nil {
		return "", status.Error(codes.Unauthenticated, err.Error())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.names == nil || len(p.names) >= mostPeers {
		p.names = map[*x509.Certificate]string{}
	}
	p.names[cert] = name
	return name, nil
}

// verified is the certificate that the caller's connection was verified with;
// nil when there is none.
func verified(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil
	}
	return info.State.PeerCertificates[0]
}
