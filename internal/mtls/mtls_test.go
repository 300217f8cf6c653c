package mtls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"encoding/pem"
)

const device = "8f14e45f-ceea-467f-9f2b-0123456789ab"

// ca issues certificates for tests.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) ca {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return ca{sign(t, template, template, &key.PublicKey, key), key}
}

func (c ca) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

// issue makes a certificate for 127.0.0.1 if the role is a server's.
func (c ca) issue(t *testing.T, role Role, name string, change ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	uri, err := URI(role, name)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: role.Usage(), URIs: []*url.URL{uri},
	}
	if role == RoleCollector {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	for _, f := range change {
		f(template)
	}
	key := newKey(t)
	leaf := sign(t, template, c.cert, &key.PublicKey, c.key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

func sign(t *testing.T, template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func holding(c tls.Certificate) func() (*tls.Certificate, error) {
	return func() (*tls.Certificate, error) { return &c, nil }
}

// shake connects both ends over a real socket and returns the errors that
// server and client see, and the client's state.
func shake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		if err := conn.Handshake(); err != nil {
			done <- err
			return
		}
		_, err = conn.Write([]byte("!"))
		done <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, client)
	// In TLS 1.3 a client learns of its refusal with the first byte it reads.
	if clientErr = conn.Handshake(); clientErr == nil {
		_, clientErr = io.ReadFull(conn, make([]byte, 1))
	}
	raw.Close()
	return conn.ConnectionState(), <-done, clientErr
}

func TestBothEndsAcceptTheirCounterpart(t *testing.T) {
	servers, devices := newCA(t), newCA(t)
	checked := ""
	server := ServerConfig(ServerOptions{
		Certificate: holding(servers.issue(t, RoleCollector, "c1")), Clients: devices.pool(), Role: RoleDevice,
		Check: func(c *x509.Certificate) error { _, checked, _ = Identity(c); return nil },
	})
	client := ClientConfig(ClientOptions{
		Certificate: holding(devices.issue(t, RoleDevice, device)), Servers: servers.pool(), ServerName: "127.0.0.1",
	})
	state, serverErr, clientErr := shake(t, server, client)
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	if checked != device {
		t.Errorf("Check was asked for %q", checked)
	}
	if state.Version != tls.VersionTLS13 || state.CurveID != tls.SecP256r1MLKEM768 {
		t.Errorf("negotiated version %x and %s", state.Version, state.CurveID)
	}
}

func TestServerRefusesEveryoneElse(t *testing.T) {
	servers, devices, gates := newCA(t), newCA(t), newCA(t)
	own := holding(servers.issue(t, RoleCollector, "c1"))
	options := ServerOptions{Certificate: own, Clients: devices.pool(), Role: RoleDevice}
	for name, tc := range map[string]struct {
		change func(*ServerOptions)
		client func() (*tls.Certificate, error)
		want   string
	}{
		"no certificate":                {nil, nil, "didn't provide a certificate"},
		"another role's CA":             {nil, holding(gates.issue(t, RoleGate, "g1")), "unknown authority"},
		"device named by another CA":    {nil, holding(gates.issue(t, RoleDevice, device)), "unknown authority"},
		"another role under this CA":    {nil, holding(devices.issue(t, RoleOperator, "root")), "not accepted as"},
		"server certificate":            {nil, holding(devices.issue(t, RoleCollector, "c2")), "incompatible key usage"},
		"lease signer":                  {nil, holding(devices.issue(t, RoleLeaseSigner, "c2")), "not accepted as"},
		"device that also has a name":   {nil, holding(devices.issue(t, RoleDevice, device, func(c *x509.Certificate) { c.DNSNames = []string{"collector"} })), "host or mail names"},
		"device with a server's usage":  {nil, holding(devices.issue(t, RoleDevice, device, func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) })), "extended key usage"},
		"device with a usage of all":    {nil, holding(devices.issue(t, RoleDevice, device, func(c *x509.Certificate) { c.ExtKeyUsage = nil })), "extended key usage"},
		"certificate that has ended":    {nil, holding(devices.issue(t, RoleDevice, device, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), "expired"},
		"certificate of tomorrow":       {nil, holding(devices.issue(t, RoleDevice, device, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })), "not yet valid"},
		"check says no":                 {func(o *ServerOptions) { o.Check = func(*x509.Certificate) error { return errors.New("suspended") } }, holding(devices.issue(t, RoleDevice, device)), "suspended"},
		"no pool trusts nobody":         {func(o *ServerOptions) { o.Clients = nil }, holding(devices.issue(t, RoleDevice, device)), "unknown authority"},
		"no role is nobody's":           {func(o *ServerOptions) { o.Role = "" }, holding(devices.issue(t, RoleDevice, device)), "not accepted as"},
		"optional does not mean any CA": {func(o *ServerOptions) { o.Optional = true }, holding(gates.issue(t, RoleDevice, device)), "unknown authority"},
		"optional still asks the role":  {func(o *ServerOptions) { o.Optional = true }, holding(devices.issue(t, RoleGate, "g1")), "not accepted as"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options
			if tc.change != nil {
				tc.change(&o)
			}
			client := ClientConfig(ClientOptions{Certificate: tc.client, Servers: servers.pool(), ServerName: "127.0.0.1"})
			_, serverErr, clientErr := shake(t, ServerConfig(o), client)
			if serverErr == nil || !strings.Contains(serverErr.Error(), tc.want) {
				t.Errorf("server says %v, want %q", serverErr, tc.want)
			}
			if clientErr == nil {
				t.Error("the client got in")
			}
		})
	}
}

func TestOptionalLetsInWhoHasNoCertificate(t *testing.T) {
	servers, devices := newCA(t), newCA(t)
	server := ServerConfig(ServerOptions{
		Certificate: holding(servers.issue(t, RoleCollector, "c1")), Clients: devices.pool(), Role: RoleDevice, Optional: true,
		Check: func(*x509.Certificate) error { return errors.New("asked without a certificate") },
	})
	client := ClientConfig(ClientOptions{Servers: servers.pool(), ServerName: "127.0.0.1"})
	if _, serverErr, clientErr := shake(t, server, client); serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
}

func TestClientRefusesWhoIsNotTheCollector(t *testing.T) {
	servers, devices := newCA(t), newCA(t)
	good := servers.issue(t, RoleCollector, "c1")
	for name, tc := range map[string]struct {
		server  tls.Certificate
		servers *x509.CertPool
		want    string
	}{
		"another CA":               {devices.issue(t, RoleCollector, "c1"), servers.pool(), "unknown authority"},
		"no pool trusts nobody":    {good, nil, "unknown authority"},
		"a device that plays it":   {servers.issue(t, RoleDevice, device, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }), servers.pool(), "incompatible key usage"},
		"another address":          {servers.issue(t, RoleCollector, "c1", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 2)} }), servers.pool(), "127.0.0.1"},
		"server of no role":        {servers.issue(t, RoleCollector, "c1", func(c *x509.Certificate) { c.URIs = nil }), servers.pool(), "0 URI names"},
		"server that has two":      {servers.issue(t, RoleCollector, "c1", func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), servers.pool(), "2 URI names"},
		"gate usage in the server": {servers.issue(t, RoleCollector, "c1", func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) }), servers.pool(), "extended key usage"},
	} {
		t.Run(name, func(t *testing.T) {
			server := ServerConfig(ServerOptions{
				Certificate: holding(tc.server), Clients: devices.pool(), Role: RoleDevice, Optional: true,
			})
			_, _, clientErr := shake(t, server, ClientConfig(ClientOptions{Servers: tc.servers, ServerName: "127.0.0.1"}))
			if clientErr == nil || !strings.Contains(clientErr.Error(), tc.want) {
				t.Errorf("client says %v, want %q", clientErr, tc.want)
			}
		})
	}
}

func TestSessionsAreNeverResumed(t *testing.T) {
	servers, devices := newCA(t), newCA(t)
	asked := 0
	server := ServerConfig(ServerOptions{
		Certificate: holding(servers.issue(t, RoleCollector, "c1")), Clients: devices.pool(), Role: RoleDevice,
		Check: func(*x509.Certificate) error { asked++; return nil },
	})
	client := ClientConfig(ClientOptions{
		Certificate: holding(devices.issue(t, RoleDevice, device)), Servers: servers.pool(), ServerName: "127.0.0.1",
	})
	// A client that would like to.
	client.SessionTicketsDisabled = false
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for range 3 {
		state, serverErr, clientErr := shake(t, server, client)
		if serverErr != nil || clientErr != nil || state.DidResume {
			t.Fatalf("server: %v, client: %v, resumed: %v", serverErr, clientErr, state.DidResume)
		}
	}
	if asked != 3 {
		t.Errorf("three connections, asked %d times", asked)
	}
	if err := verifyTransport(tls.ConnectionState{DidResume: true, CipherSuite: tls.TLS_AES_128_GCM_SHA256}); err == nil {
		t.Error("a resumed connection passes")
	}
}

func TestOnlyTLS13WithAESAndApprovedCurves(t *testing.T) {
	servers, devices := newCA(t), newCA(t)
	server := ServerConfig(ServerOptions{
		Certificate: holding(servers.issue(t, RoleCollector, "c1")), Clients: devices.pool(), Role: RoleDevice, Optional: true,
	})
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.2":         func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"X25519 only":     func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} },
		"X25519 with KEM": func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768} },
	} {
		t.Run(name, func(t *testing.T) {
			client := ClientConfig(ClientOptions{Servers: servers.pool(), ServerName: "127.0.0.1"})
			change(client)
			if _, serverErr, clientErr := shake(t, server, client); serverErr == nil || clientErr == nil {
				t.Errorf("accepted: server %v, client %v", serverErr, clientErr)
			}
		})
	}
	if err := verifyTransport(tls.ConnectionState{CipherSuite: tls.TLS_CHACHA20_POLY1305_SHA256}); err == nil {
		t.Error("ChaCha20 passes")
	}
}

func TestURINamesOneRole(t *testing.T) {
	for _, good := range []struct {
		role Role
		name string
		uri  string
	}{
		{RoleDevice, device, "urn:uuid:" + device},
		{RoleGate, "vpn-1.chemnitz", "urn:pfoertner:gate:vpn-1.chemnitz"},
		{RoleOperator, "a_b", "urn:pfoertner:operator:a_b"},
		{RoleCollector, "c1", "urn:pfoertner:collector:c1"},
		{RoleLeaseSigner, "c1", "urn:pfoertner:lease-signer:c1"},
	} {
		u, err := URI(good.role, good.name)
		if err != nil || u.String() != good.uri {
			t.Errorf("URI(%s, %s) = %v, %v", good.role, good.name, u, err)
			continue
		}
		cert := &x509.Certificate{URIs: []*url.URL{u}, ExtKeyUsage: good.role.Usage()}
		if role, name, err := Identity(cert); role != good.role || name != good.name || err != nil {
			t.Errorf("Identity(%s) = %s, %s, %v", u, role, name, err)
		}
	}
	for _, bad := range []struct {
		role Role
		name string
	}{
		{"", "x"}, {"admin", "x"}, {RoleGate, ""}, {RoleGate, "A"}, {RoleGate, "a:b"}, {RoleGate, "a b"}, {RoleGate, "a/b"},
		{RoleGate, strings.Repeat("a", 65)}, {RoleGate, "ä"}, {RoleDevice, "x"}, {RoleDevice, strings.ToUpper(device)},
		{RoleDevice, "{" + device + "}"}, {RoleDevice, "00000000-0000-0000-0000-000000000000"}, {"device", "gate:x"},
	} {
		if u, err := URI(bad.role, bad.name); err == nil {
			t.Errorf("URI(%q, %q) = %s", bad.role, bad.name, u)
		}
	}
	if _, err := URI("uuid", device); err == nil {
		t.Error("a role that is called uuid")
	}
}

func TestCACertificateIsNobody(t *testing.T) {
	u, _ := URI(RoleOperator, "root")
	cert := &x509.Certificate{URIs: []*url.URL{u}, ExtKeyUsage: RoleOperator.Usage(), IsCA: true}
	if _, _, err := Identity(cert); err == nil {
		t.Error("a CA certificate is an operator")
	}
}

func TestLeaseSignerIsVerified(t *testing.T) {
	servers, other := newCA(t), newCA(t)
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := func(by ca, role Role, key crypto.PublicKey) [][]byte {
		u, _ := URI(role, "c1")
		template := &x509.Certificate{
			SerialNumber: big.NewInt(3), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			ExtKeyUsage: role.Usage(), URIs: []*url.URL{u},
		}
		return [][]byte{sign(t, template, by.cert, key, by.key).Raw}
	}
	now := time.Now()
	if key, err := VerifyLeaseSigner(signer(servers, RoleLeaseSigner, pub), servers.pool(), now); err != nil || !key.Equal(pub) {
		t.Fatalf("%v, %v", key, err)
	}
	for name, tc := range map[string]struct {
		chain [][]byte
		pool  *x509.CertPool
		now   time.Time
	}{
		"nothing":           {nil, servers.pool(), now},
		"nonsense":          {[][]byte{[]byte("x")}, servers.pool(), now},
		"another CA":        {signer(other, RoleLeaseSigner, pub), servers.pool(), now},
		"no pool":           {signer(servers, RoleLeaseSigner, pub), nil, now},
		"the collector":     {signer(servers, RoleCollector, pub), servers.pool(), now},
		"another algorithm": {signer(servers, RoleLeaseSigner, &newKey(t).PublicKey), servers.pool(), now},
		"ended":             {signer(servers, RoleLeaseSigner, pub), servers.pool(), now.Add(2 * time.Hour)},
	} {
		if _, err := VerifyLeaseSigner(tc.chain, tc.pool, tc.now); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// The pool of the next handshake counts, not that of the first.
func TestFollowingListenerAsksWhomToTrustAtEveryHandshake(t *testing.T) {
	servers, old, next := newCA(t), newCA(t), newCA(t)
	trusted := old
	config := Following(func() *tls.Config {
		return ServerConfig(ServerOptions{
			Certificate: holding(servers.issue(t, RoleCollector, "c1")), Clients: trusted.pool(), Role: RoleDevice,
		})
	})
	for _, issuer := range []ca{old, next} {
		for _, now := range []ca{old, next} {
			trusted = now
			_, err, _ := shake(t, config, ClientConfig(ClientOptions{
				Certificate: holding(issuer.issue(t, RoleDevice, device)), Servers: servers.pool(), ServerName: "127.0.0.1",
			}))
			if accepted := err == nil; accepted != (issuer.cert == now.cert) {
				t.Errorf("accepted: %v, %v", accepted, err)
			}
		}
	}
}

func TestFilesAreReadAgainWhenTheyChange(t *testing.T) {
	dir, c := t.TempDir(), newCA(t)
	crt, key := filepath.Join(dir, "gate.crt"), filepath.Join(dir, "gate.key")
	write := func(pair tls.Certificate, at time.Time) {
		t.Helper()
		der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		for path, block := range map[string]*pem.Block{
			crt: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der},
		} {
			if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	load := FromFiles(crt, key)
	if _, err := load(); err == nil {
		t.Error("no file, no error")
	}
	first, second := c.issue(t, RoleGate, "g1"), c.issue(t, RoleGate, "g2")
	write(first, time.Now().Add(-time.Hour))
	expect := func(want string) {
		t.Helper()
		got, err := load()
		if err != nil {
			t.Fatal(err)
		}
		if _, name, _ := Identity(got.Leaf); name != want {
			t.Errorf("loaded %s, want %s", name, want)
		}
	}
	expect("g1")
	write(second, time.Now())
	expect("g2")
	if err := os.WriteFile(crt, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("g2")

	if err := os.WriteFile(crt, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Pool(crt); err == nil {
		t.Error("an empty file is a pool")
	}
	if _, err := Pool(key); err == nil {
		t.Error("a key is a pool")
	}
}
