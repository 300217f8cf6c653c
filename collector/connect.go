package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"pfoertner/internal/mtls"
)

// maxAnswer is the largest answer of the server that a command takes.
const maxAnswer = 64 << 20

// ask connects with the operator's certificate, calls and closes.
func (c *client) ask(ctx context.Context, call func(context.Context, *grpc.ClientConn) error) (err error) {
	config, err := c.tls()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(c.address,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer), grpc.MaxCallSendMsgSize(maxAnswer)))
	if err != nil {
		return fmt.Errorf("--collector: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	err = call(ctx, conn)
	if status.Code(err) == codes.Unavailable {
		if why := c.unreachable(ctx, config); why != nil {
			return why
		}
	}
	return err
}

// tls is how the operators' listener is spoken to.
func (c *client) tls() (*tls.Config, error) {
	host, _, err := net.SplitHostPort(c.address)
	if err != nil {
		return nil, fmt.Errorf("--collector: %w", err)
	}
	certificate := mtls.FromFiles(filepath.Join(c.identity, "operator.crt"), filepath.Join(c.identity, "operator.key"))
	if _, err := certificate(); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no operator's certificate in %s: name its directory with --operator or PFOERTNER_OPERATOR", c.identity)
	} else if err != nil {
		return nil, fmt.Errorf("reading the operator's certificate (--operator): %w", err)
	}
	servers, err := mtls.Pool(filepath.Join(c.identity, "server-ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("reading the collector's CA (--operator): %w", err)
	}
	return mtls.ClientConfig(mtls.ClientOptions{Certificate: certificate, Servers: servers, ServerName: host}), nil
}

// unreachable says, step by step, why there is no connection: what gRPC says of
// it is about its transport. Nil: there is one.
func (c *client) unreachable(ctx context.Context, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", c.address)
	if err != nil {
		if op := new(net.OpError); errors.As(err, &op) {
			err = op.Err
		}
		return fmt.Errorf("no collector answers at %s (--collector): %w", c.address, err)
	}
	defer raw.Close()
	config = config.Clone()
	config.NextProtos = []string{"h2"}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("what answers at %s (--collector) is not the collector that issued the certificate in %s (--operator): %w", c.address, c.identity, err)
	}
	// In TLS 1.3 a server looks at the client's certificate last: its judgement
	// is the first thing to be read.
	if err := raw.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return nil
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("the certificate in %s is refused at %s: is that the operators' listener (--collector), and the certificate an operator's that has not ended (--operator)? %w",
			c.identity, c.address, err)
	}
	return nil
}
