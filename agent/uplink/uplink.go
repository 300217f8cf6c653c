// Package uplink is the agent's way to the collector: dialling it, pinning its
// CA before there is anything else to trust, waiting between attempts, and
// noticing that the network below a live connection has changed.
//
// Rules. One connection carries one attempt: gRPC's own reconnecting is not
// used, so that every attempt is visible to the agent and counted by Backoff.
// Nothing is trusted but what the caller names; the system's roots never are.
package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
)

const (
	// connectTimeout ends an attempt to reach the collector: TCP and TLS.
	connectTimeout = 10 * time.Second
	// A path that swallows packets is noticed after at most pingInterval plus
	// pingTimeout. The collector takes pings that are 10 s apart or more.
	pingInterval = 15 * time.Second
	pingTimeout  = 5 * time.Second
	// bufferBytes is enough for a delta, and keeps an idle agent small.
	bufferBytes = 8 << 10
)

// Target is a collector's listener for agents.
type Target struct {
	// Address is "host:port".
	Address string
	// ServerName is what the collector's certificate must carry; empty: the
	// host of Address.
	ServerName string
	// Version of this agent, sent as user agent.
	Version string
	// From is where connections leave from; zero: the system chooses.
	From Origin
}

// Origin is one of this machine's own addresses, and the interface that has it.
type Origin struct {
	Address netip.Addr
	// Link is the interface's name. On Linux packets take no other way, whatever
	// the routing table prefers; Windows sends from the interface that has the
	// address anyway.
	Link string
}

// options make a connection begin there; none for the zero Origin.
func (o Origin) options() []grpc.DialOption {
	if !o.Address.IsValid() {
		return nil
	}
	d := &net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(o.Address, 0)),
		Control:   keepTo(o.Link),
	}
	return []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", address)
	})}
}

// Check returns an error for an address that cannot be dialled.
func (t Target) Check() error {
	host, port, err := net.SplitHostPort(t.Address)
	if err != nil {
		return fmt.Errorf("collector address %q: want host:port", t.Address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); host == "" || err != nil || n == 0 {
		return fmt.Errorf("collector address %q: want host:port", t.Address)
	}
	return nil
}

func (t Target) serverName() string {
	if t.ServerName != "" {
		return t.ServerName
	}
	host, _, err := net.SplitHostPort(t.Address)
	if err != nil {
		return t.Address
	}
	return host
}

// Dial prepares a connection; the first call on it connects. servers are the
// collectors' CAs, certificate is the device's own, nil before enrolment.
func (t Target) Dial(servers *x509.CertPool, certificate func() (*tls.Certificate, error)) (*grpc.ClientConn, error) {
	if err := t.Check(); err != nil {
		return nil, err
	}
	conf := mtls.ClientConfig(mtls.ClientOptions{Certificate: certificate, Servers: servers, ServerName: t.serverName()})
	// "passthrough" leaves names to the dialler, which asks DNS anew at every
	// attempt.
	conn, err := grpc.NewClient("passthrough:///"+t.Address, append(t.From.options(),
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithUserAgent("pfoertner-agent/"+t.Version),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(posture.MaxMessageBytes),
			grpc.MaxCallSendMsgSize(posture.MaxMessageBytes)),
		grpc.WithReadBufferSize(bufferBytes),
		grpc.WithWriteBufferSize(bufferBytes),
		grpc.WithIdleTimeout(0),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(),
		grpc.WithDisableRetry(),
	)...)
	if err != nil {
		return nil, fmt.Errorf("preparing connection: %w", err)
	}
	return conn, nil
}
