package gateway_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/admission"
	"pfoertner/collector/audit"
	"pfoertner/collector/authority"
	"pfoertner/collector/gateway"
	"pfoertner/internal/lease"
	"pfoertner/internal/mtls"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// house is a collector's gateway side as it really is: authority, mutual TLS
// over loopback, Desk, signer. Only the database is missing.
type house struct {
	t         testing.TB
	authority *authority.Authority
	desk      *admission.Desk
	server    *grpc.Server
	address   string
	records   *records
}

// records keeps what would go to the database.
type records struct {
	mu      sync.Mutex
	audited []audit.Record
	fail    error
}

func (r *records) AppendAudit(_ context.Context, records ...audit.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	r.audited = append(r.audited, records...)
	return nil
}

func (r *records) SaveRefusal(ctx context.Context, _ *fleetv1.Explanation, _ string, records ...audit.Record) error {
	return r.AppendAudit(ctx, records...)
}

func (r *records) kinds() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	kinds := map[string]int{}
	for _, a := range r.audited {
		kinds[a.Kind]++
	}
	return kinds
}

// newHouse starts a collector with the options of its Desk; more registers
// further services on the same listener.
func newHouse(t testing.TB, o admission.Options, more ...func(*grpc.Server)) *house {
	t.Helper()
	a, err := authority.Create(filepath.Join(t.TempDir(), "pki"), authority.Options{
		Addresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, authority: a, records: &records{}}
	o.Epoch, o.Now = 1, time.Now
	if o.Refusals == nil {
		o.Refusals = h.records
	}
	h.desk = admission.NewDesk(o)
	key, _ := a.LeaseSigner()
	service := gateway.New(gateway.Options{
		Desk:        h.desk,
		Audit:       h.records,
		Signer:      lease.NewSigner(key),
		SignerChain: func() [][]byte { _, chain := a.LeaseSigner(); return chain },
		Heartbeat:   o.Heartbeat,
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.address = listener.Addr().String()
	tlsConfig := mtls.ServerConfig(mtls.ServerOptions{
		Certificate: a.ServerCertificate, Clients: a.Gates(), Role: mtls.RoleGate,
	})
	h.server = grpc.NewServer(append(gateway.ServerOptions(), grpc.Creds(credentials.NewTLS(tlsConfig)))...)
	gatev1.RegisterGateServiceServer(h.server, service)
	for _, register := range more {
		register(h.server)
	}
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	running.Go(func() { _ = h.server.Serve(listener) })
	running.Go(func() { _ = h.desk.Run(ctx) })
	t.Cleanup(func() {
		h.server.Stop()
		cancel()
		running.Wait()
	})
	return h
}

// connect is a gateway's connection, with a certificate of its own.
func (h *house) connect(name string) *grpc.ClientConn {
	h.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	cert, err := h.authority.IssueGate(name, &key.PublicKey)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.dial(&tls.Certificate{Certificate: cert.Chain, PrivateKey: key})
}

func (h *house) dial(cert *tls.Certificate) *grpc.ClientConn {
	h.t.Helper()
	config := mtls.ClientConfig(mtls.ClientOptions{
		Certificate: func() (*tls.Certificate, error) { return cert, nil }, Servers: h.authority.Servers(),
	})
	conn, err := grpc.NewClient(h.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	return conn
}

// signerKey is the lease-signing key as a gateway gets to know it.
func (h *house) signerKey(chain [][]byte) []byte {
	h.t.Helper()
	key, err := mtls.VerifyLeaseSigner(chain, h.authority.Servers(), time.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	return key
}

// certificateOf is the fingerprint of notebook n's VPN certificate.
func certificateOf(n int) []byte {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("vpn certificate "), uint64(n)))
	return sum[:]
}

func deviceID(n int) string { return fmt.Sprintf("0b7e6c1e-0000-4000-8000-%012d", n) }

// admit makes notebook n known, active and admitted.
func (h *house) admit(n int) {
	h.desk.SetDevice(&fleetv1.Device{
		Id: deviceID(n),
		Asset: &fleetv1.Asset{
			AssetNumber: fmt.Sprintf("NB-%06d", n), State: fleetv1.AssetState_ASSET_STATE_ACTIVE,
			VpnCertificatesSha256: [][]byte{certificateOf(n)},
		},
	})
	h.result(n, posturev1.Verdict_VERDICT_ADMIT)
}

// result gives notebook n a new result that holds for an hour.
func (h *house) result(n int, v posturev1.Verdict) {
	res := &posturev1.Result{
		Verdict:     v,
		CollectedAt: timestamppb.Now(),
		ExpiresAt:   timestamppb.New(time.Now().Add(time.Hour)),
	}
	if v != posturev1.Verdict_VERDICT_ADMIT {
		res.Code = "7K4-QX2"
	}
	h.desk.SetResult(deviceID(n), res)
}

// session is what a gateway says of notebook n's session.
func session(n int) *gatev1.SessionFacts {
	return &gatev1.SessionFacts{
		SessionId:         fmt.Sprintf("ovpn/1763720000/4711/%d", n),
		CertificateSha256: certificateOf(n),
		PeerName:          fmt.Sprintf("CN=nb-%06d", n),
		OuterAddress:      "198.51.100.7:41194",
		Protocol:          gatev1.Protocol_PROTOCOL_OPENVPN,
	}
}
