package intake

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// FuzzConnect feeds what a device that is not ours any more may send, byte by
// byte, to the handler. Reports get the nonce and the digest that they need to
// come further than the first check.
func FuzzConnect(f *testing.F) {
	h := newHouse(f, func(o *Options) { o.MessageRate = rate.Inf })
	n := h.enrolled(f, deviceA)
	ctx := h.overTLS(f, n)
	key, err := attest.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	csr, err := attest.NewRequest(key)
	if err != nil {
		f.Fatal(err)
	}
	ev := evidence("amd64")
	renewal := &agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Renewal{Renewal: &agentv1.RenewalRequest{Csr: csr}}}
	proof := &agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_RenewalProof{RenewalProof: &agentv1.RenewalProof{Signature: []byte("x")}}}
	n.t = f
	for _, pair := range [][2]*agentv1.ConnectRequest{
		{message(n.full(ev)), message(n.delta(ev, evidence("bad")))},
		{message(n.heartbeat(ev)), message(n.full(ev))},
		{renewal, proof},
		{proof, {}},
	} {
		one, err := proto.Marshal(pair[0])
		if err != nil {
			f.Fatal(err)
		}
		two, err := proto.Marshal(pair[1])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(one, two)
	}
	h.Verifier = strict{h.desk, f}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		ctx, end := context.WithCancel(ctx)
		defer end()
		hello, err := proto.Marshal(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.ClientHello{}}})
		if err != nil {
			t.Fatal(err)
		}
		stream := &rawStream{ctx: ctx, messages: [][]byte{hello, one, two}}
		if err := h.Connect(stream); status.Code(err) == codes.Internal || status.Code(err) == codes.Unknown {
			t.Errorf("ended with %v", err)
		}
		if h.session(deviceA) != nil || stream.issued {
			t.Errorf("live %v, issued %v", h.session(deviceA) != nil, stream.issued)
		}
	})
}

// strict is a Verifier that takes nothing beyond the limits.
type strict struct {
	*desk
	t testing.TB
}

func (s strict) Submit(_ context.Context, _ string, ev *posturev1.Evidence, _ []byte, _ time.Time) (*posturev1.Result, error) {
	if err := posture.CheckLimits(ev); err != nil {
		s.t.Errorf("beyond the limits: %v", err)
	}
	sum, err := posture.Digest(ev)
	return &posturev1.Result{EvidenceDigest: sum}, err
}

// overTLS is a context as gRPC gives it to handlers, of the notebook's
// connection.
func (h *house) overTLS(t testing.TB, n *notebook) context.Context {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	server := tls.Server(near, h.TLS(h.authority.ServerCertificate, h.authority.Devices()))
	client := tls.Client(far, mtls.ClientConfig(mtls.ClientOptions{
		Certificate: func() (*tls.Certificate, error) { return pairOf(n), nil },
		Servers:     h.authority.Servers(), ServerName: "collector",
	}))
	go client.Handshake()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	return peer.NewContext(context.Background(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: server.ConnectionState()}})
}

// rawStream is a stream of bytes.
type rawStream struct {
	ctx      context.Context
	messages [][]byte
	nonce    []byte
	issued   bool
}

func (s *rawStream) Recv() (*agentv1.ConnectRequest, error) {
	if len(s.messages) == 0 {
		return nil, io.EOF
	}
	m := &agentv1.ConnectRequest{}
	if err := proto.Unmarshal(s.messages[0], m); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.messages = s.messages[1:]
	if r := m.GetReport(); r != nil {
		r.Nonce = s.nonce
		if sum, err := posture.Digest(r.GetFull()); err == nil {
			r.Digest = sum
		}
	}
	return m, nil
}

func (s *rawStream) Send(m *agentv1.ConnectResponse) error {
	if w := m.GetWelcome(); w != nil {
		s.nonce = w.GetNonce()
	}
	s.issued = s.issued || m.GetIssued() != nil
	return nil
}

func (s *rawStream) Context() context.Context     { return s.ctx }
func (s *rawStream) SetHeader(metadata.MD) error  { return nil }
func (s *rawStream) SendHeader(metadata.MD) error { return nil }
func (s *rawStream) SetTrailer(metadata.MD)       {}
func (s *rawStream) SendMsg(any) error            { return nil }
func (s *rawStream) RecvMsg(any) error            { return io.EOF }
