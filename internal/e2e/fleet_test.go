//go:build linux

package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// member is a notebook of which only the wire is real: it enrols and reports
// over mTLS as an agent does.
type member struct {
	asset string
	conn  *grpc.ClientConn
	// base is what it reports, but for the number of the report.
	base *posturev1.Evidence
	// acknowledged is the last report that the collector has acknowledged.
	acknowledged uint32
}

// enrolFleet takes notebooks into the inventory and enrols each with a token of
// its own.
func (s *site) enrolFleet(t testing.TB, size int) []*member {
	t.Helper()
	csv := "asset_number;unit\n"
	base := s.collected(t)
	fleet := make([]*member, size)
	for i := range fleet {
		fleet[i] = &member{asset: fmt.Sprintf("NB-%04d", i), base: base}
		csv += fleet[i].asset + ";inneres/it\n"
	}
	s.operator(t, "inventory", "import", s.write(t, "fleet.csv", csv))
	servers, err := mtls.Pool(s.path("operator", "server-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	stranger := s.dialAgents(t, mtls.ClientOptions{Servers: servers})
	for _, m := range fleet {
		s.allowSoftwareKey(t, m.asset)
		m.conn = s.dialAgents(t, mtls.ClientOptions{Servers: servers, Certificate: s.enrol(t, stranger, m.asset)})
	}
	return fleet
}

// collected is evidence of the prepared notebook, as the probes read it.
func (s *site) collected(t testing.TB) *posturev1.Evidence {
	t.Helper()
	ev := &posturev1.Evidence{}
	text := s.run(t, s.notebook, "testagent", "--tree", s.tree, "--evidence")
	if err := protojson.Unmarshal([]byte(text), ev); err != nil {
		t.Fatal(err)
	}
	return ev
}

// dialAgents opens a connection to the collector's listener for agents from
// the notebooks' side of the network.
func (s *site) dialAgents(t testing.TB, o mtls.ClientOptions) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+collectorOutside+":7601",
		grpc.WithContextDialer(func(_ context.Context, address string) (net.Conn, error) { return dial(s.notebook, address) }),
		grpc.WithTransportCredentials(credentials.NewTLS(mtls.ClientConfig(o))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// enrol obtains a device certificate (agent.v1 EnrolmentService).
func (s *site) enrol(t testing.TB, conn *grpc.ClientConn, asset string) func() (*tls.Certificate, error) {
	t.Helper()
	key, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	issued, err := prove(t.Context(), conn, key, s.token(t, asset))
	if err != nil {
		t.Fatalf("enrolling %s: %v", asset, err)
	}
	pair := &tls.Certificate{Certificate: issued.GetChain(), PrivateKey: key}
	if pair.Leaf, err = x509.ParseCertificate(issued.GetChain()[0]); err != nil {
		t.Fatal(err)
	}
	return func() (*tls.Certificate, error) { return pair, nil }
}

func prove(ctx context.Context, conn *grpc.ClientConn, key *ecdsa.PrivateKey, token string) (*agentv1.Issued, error) {
	csr, err := attest.NewRequest(key)
	if err != nil {
		return nil, err
	}
	stream, err := agentv1.NewEnrolmentServiceClient(conn).Enrol(ctx)
	if err != nil {
		return nil, err
	}
	hello := &agentv1.Hello{Capability: posture.Capability, AgentVersion: "test", Token: token, Machine: &agentv1.Machine{}, Csr: csr}
	if err := stream.Send(&agentv1.EnrolRequest{Message: &agentv1.EnrolRequest_Hello{Hello: hello}}); err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	exporter, err := mtls.Exporter(stream.Context())
	if err != nil {
		return nil, err
	}
	transcript, err := attest.Transcript(hello)
	if err != nil {
		return nil, err
	}
	signature, err := attest.Sign(key, attest.EnrolDigest(answer.GetChallenge().GetNonce(), exporter, transcript))
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&agentv1.EnrolRequest{Message: &agentv1.EnrolRequest_Proof{Proof: &agentv1.Proof{Signature: signature}}}); err != nil {
		return nil, err
	}
	if answer, err = stream.Recv(); err != nil {
		return nil, err
	}
	if answer.GetIssued() == nil {
		return nil, errors.New("nothing was issued")
	}
	return answer.GetIssued(), nil
}

// evidence is what the member's report with this number says: no two are alike.
func (m *member) evidence(number uint32) *posturev1.Evidence {
	ev := proto.CloneOf(m.base)
	ev.Patch.InstalledPackages = number
	return ev
}

// report sends the reports up to the number last, each after the one before was
// acknowledged. An error says that the stream has ended; another call goes on
// after the last acknowledged report.
func (m *member) report(ctx context.Context, last uint32, acknowledged func()) error {
	stream, err := agentv1.NewSessionServiceClient(m.conn).Connect(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	hello := &agentv1.ClientHello{Capability: posture.Capability, AgentVersion: "test"}
	if err := stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: hello}}); err != nil {
		return err
	}
	answer, err := stream.Recv()
	if err != nil {
		return err
	}
	nonce := answer.GetWelcome().GetNonce()
	for sequence := uint64(1); m.acknowledged < last; sequence++ {
		ev := m.evidence(m.acknowledged + 1)
		digest, err := posture.Digest(ev)
		if err != nil {
			return err
		}
		err = stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Report{Report: &agentv1.Report{
			Sequence: sequence, Nonce: nonce, CollectedAgo: durationpb.New(time.Millisecond), Digest: digest,
			Body: &agentv1.Report_Full{Full: ev},
		}}})
		if err != nil {
			return err
		}
		for answer = nil; answer.GetAcknowledgement().GetSequence() != sequence; {
			if answer, err = stream.Recv(); err != nil {
				return err
			}
		}
		m.acknowledged++
		acknowledged()
	}
	return stream.CloseSend()
}
