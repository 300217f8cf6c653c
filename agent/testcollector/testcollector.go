// Package testcollector is a collector for the agent's tests: real TCP, TLS,
// gRPC and certificates; what it answers is the test's business. Never shipped.
package testcollector

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/agent/identity"
	"pfoertner/agent/uplink"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// Collector is a listener for agents. Its exported functions are set before the
// first connection.
type Collector struct {
	agentv1.UnimplementedEnrolmentServiceServer
	agentv1.UnimplementedSessionServiceServer

	Servers, Devices *Authority
	// OnEnrol serves an enrolment; nil refuses.
	OnEnrol func(agentv1.EnrolmentService_EnrolServer) error
	// Shown is another certificate that the listener shows with its own; nil:
	// none.
	Shown *x509.Certificate
	// Check is asked for device certificates at every handshake; nil accepts.
	Check func(*x509.Certificate) error
	// Clock is what device certificates are checked by; nil: time.Now.
	Clock func() time.Time
	// ServerURI is the identity of the listener's certificate.
	ServerURI string

	t       testing.TB
	streams chan *Stream

	mu      sync.Mutex
	address string
	server  *grpc.Server
}

// New returns a collector that listens nowhere yet.
func New(t testing.TB) *Collector {
	return &Collector{
		Servers: NewAuthority(t, "servers"), Devices: NewAuthority(t, "devices"),
		ServerURI: "urn:pfoertner:collector:test",
		t:         t, address: "127.0.0.1:0", streams: make(chan *Stream, 16),
	}
}

// Start returns a collector that listens until the test ends.
func Start(t testing.TB) *Collector {
	c := New(t)
	c.Listen()
	return c
}

// Listen begins to serve; after Stop on the same address again.
func (c *Collector) Listen() {
	c.t.Helper()
	listener, err := net.Listen("tcp", c.Target().Address)
	if err != nil {
		c.t.Fatal(err)
	}
	cert := c.Servers.Issue(c.t, Subject{URI: c.ServerURI, Server: true})
	if c.Shown != nil {
		cert.Certificate = append(cert.Certificate, c.Shown.Raw)
	}
	conf := mtls.ServerConfig(mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return cert, nil },
		Clients:     c.Devices.Pool(), Role: mtls.RoleDevice, Optional: true, Check: c.Check,
	})
	conf.Time = c.Clock
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(conf)),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
	)
	agentv1.RegisterEnrolmentServiceServer(server, c)
	agentv1.RegisterSessionServiceServer(server, c)
	c.mu.Lock()
	c.server, c.address = server, listener.Addr().String()
	c.mu.Unlock()
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) }) // its end is Stop
	c.t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
}

// Stop cuts all connections and stops listening, as a collector that dies.
func (c *Collector) Stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server.Stop()
}

// Target is how agents reach it.
func (c *Collector) Target() uplink.Target {
	c.mu.Lock()
	defer c.mu.Unlock()
	return uplink.Target{Address: c.address, Version: "test"}
}

// Enrolled returns the state directory of a device that this collector has
// enrolled, with a certificate that ends after life.
func (c *Collector) Enrolled(t testing.TB, life time.Duration) *identity.State {
	t.Helper()
	state, err := identity.Open(filepath.Join(t.TempDir(), "state"), identity.Software{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.Software{}.Generate()
	if err != nil {
		t.Fatal(err)
	}
	leaf := c.Devices.Issue(t, Subject{URI: "urn:uuid:" + uuid.NewString(), Key: key, Life: life})
	id := &identity.Identity{
		Key: key, Chain: []*x509.Certificate{leaf.Leaf, c.Devices.Certificate},
		Servers: []*x509.Certificate{c.Servers.Certificate}, AssetNumber: "NB-0001",
		RenewAfter: time.Now().Add(24 * time.Hour),
	}
	if err := state.Save(id); err != nil {
		t.Fatal(err)
	}
	return state
}

// Issued is what a collector sends to the holder of a key.
func (c *Collector) Issued(key crypto.PublicKey, device string) *agentv1.Issued {
	leaf := c.Devices.Issue(c.t, Subject{URI: "urn:uuid:" + device, Public: key})
	return &agentv1.Issued{
		Chain:    [][]byte{leaf.Leaf.Raw, c.Devices.Certificate.Raw},
		DeviceId: device, AssetNumber: "NB-0001",
		RenewAfter:  timestamppb.New(time.Now().Add(24 * time.Hour)),
		TrustBundle: [][]byte{c.Servers.Certificate.Raw},
	}
}

// Enrol implements EnrolmentService.
func (c *Collector) Enrol(s agentv1.EnrolmentService_EnrolServer) error {
	if c.OnEnrol == nil {
		return c.UnimplementedEnrolmentServiceServer.Enrol(s)
	}
	return c.OnEnrol(s)
}

// Authority is a certificate authority.
type Authority struct {
	Certificate *x509.Certificate
	key         crypto.Signer
}

// Subject is what an Authority certifies.
type Subject struct {
	URI string
	// Server makes it a certificate for 127.0.0.1, Signer one for signing
	// files; otherwise it is a client's.
	Server, Signer bool
	// Key, or only its public half, is certified when set; otherwise a new one.
	Key    crypto.Signer
	Public crypto.PublicKey
	// Life is how long it lasts from now on; zero: an hour.
	Life time.Duration
}

// NewAuthority makes a self-signed authority.
func NewAuthority(t testing.TB, name string) *Authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return &Authority{Certificate: sign(t, template, template, key.Public(), key), key: key}
}

// Issue makes a certificate.
func (a *Authority) Issue(t testing.TB, s Subject) *tls.Certificate {
	t.Helper()
	if s.Key == nil && s.Public == nil {
		s.Key = newKey(t)
	}
	if s.Public == nil {
		s.Public = s.Key.Public()
	}
	if s.Life == 0 {
		s.Life = time.Hour
	}
	uri, err := url.Parse(s.URI)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(t), URIs: []*url.URL{uri},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(s.Life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if s.Server {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	if s.Signer {
		template.ExtKeyUsage = nil
	}
	leaf := sign(t, template, a.Certificate, s.Public, a.key)
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, a.Certificate.Raw}, PrivateKey: s.Key, Leaf: leaf}
}

// Pool holds this authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Certificate)
	return pool
}

// Fingerprint is what agents pin.
func (a *Authority) Fingerprint() []byte {
	sum := sha256.Sum256(a.Certificate.Raw)
	return sum[:]
}

// File writes the authority's certificate to a PEM file.
func (a *Authority) File(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func sign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Within is a context for a test's patience.
func Within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
