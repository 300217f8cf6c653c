package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"pfoertner/agent/uplink"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// errRenewed ends an attempt with a certificate that was replaced.
var errRenewed = errors.New("the certificate was renewed")

// proveFrom is one attempt: hello → challenge → proof → result.
func (p *Prover) proveFrom(ctx context.Context, from uplink.Origin) error {
	ctx, cancel := context.WithTimeout(ctx, proveWithin)
	defer cancel()
	id, err := p.State.Load()
	if err != nil {
		return err
	}
	cert, err := id.Certificate(time.Now())
	if err != nil {
		return err
	}
	target := p.Target
	target.From = from
	// The way through the tunnel may be slow. A key that the session has replaced
	// meanwhile must not be shown: to the collector it would look like a copy.
	conn, err := target.Dial(id.ServerPool(), func() (*tls.Certificate, error) {
		if id.InTPM() { // nobody can copy it
			return cert, nil
		}
		now, err := p.State.Load()
		if err == nil && (!now.Enrolled() || !bytes.Equal(now.Chain[0].Raw, id.Chain[0].Raw)) {
			err = errRenewed
		}
		return cert, err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := agentv1.NewTunnelServiceClient(conn).Prove(ctx)
	if err != nil {
		return err
	}
	m, err := exchange(stream, &agentv1.ProveRequest{Message: &agentv1.ProveRequest_Hello{
		Hello: &agentv1.TunnelHello{AgentVersion: p.Target.Version},
	}})
	if err != nil {
		return err
	}
	c := m.GetChallenge()
	if len(c.GetNonce()) != attest.NonceBytes {
		return fmt.Errorf("challenge with a nonce of %d bytes, %d are needed", len(c.GetNonce()), attest.NonceBytes)
	}
	statement, err := p.state(ctx, c, from)
	if err != nil {
		return err
	}
	exporter, err := mtls.Exporter(stream.Context())
	if err != nil {
		return err
	}
	signature, err := attest.Sign(id.Key, attest.TunnelDigest(c.GetNonce(), exporter, statement))
	if err != nil {
		return err
	}
	m, err = exchange(stream, &agentv1.ProveRequest{Message: &agentv1.ProveRequest_Proof{
		Proof: &agentv1.TunnelProof{Statement: statement, Signature: signature},
	}})
	if err != nil {
		return err
	}
	if m.GetResult() == nil {
		return errors.New("the collector answers a proof without a result")
	}
	p.Log.Info("vpn session proven", "link", from.Link, "gateway", c.GetGateway())
	return nil
}

// state makes the statement: the session that the collector names, and the
// addresses that this machine has at this moment. An address that it has lost
// meanwhile proves nothing.
func (p *Prover) state(ctx context.Context, c *agentv1.TunnelChallenge, from uplink.Origin) ([]byte, error) {
	now, err := p.Look(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(now.All, from.Address) {
		return nil, errors.New("the tunnel is gone")
	}
	s := &agentv1.TunnelStatement{Gateway: c.GetGateway(), SessionId: c.GetSessionId()}
	for _, a := range now.All {
		s.Addresses = append(s.Addresses, a.String())
	}
	return proto.Marshal(s)
}

// exchange sends a message and waits for the next.
func exchange(stream agentv1.TunnelService_ProveClient, m *agentv1.ProveRequest) (*agentv1.ProveResponse, error) {
	// What went wrong with sending is what Recv says.
	if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return answer, posture.CheckLimits(answer)
}
