package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
)

const device = "8f14e45f-ceea-467f-9f2b-0123456789ab"

var morning = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)

// clock is a clock that tests turn.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func create(t *testing.T, c *clock) (*Authority, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state", "pki")
	a, err := Create(dir, Options{
		DNSNames: []string{"collector.example"}, Addresses: []net.IP{net.IPv4(127, 0, 0, 1)}, Now: c.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return a, dir
}

func publicKey(t *testing.T) crypto.PublicKey {
	t.Helper()
	key, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return &key.PublicKey
}

func leaf(t *testing.T, c *Certificate) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(c.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCreateWritesPrivateFilesAndLoadReadsThem(t *testing.T) {
	_, dir := create(t, &clock{morning})
	var files []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
		files = append(files, e.Name())
	}
	want := []string{
		"collector.crt", "collector.key", "device-ca.crt", "device-ca.key", "gate-ca.crt", "gate-ca.key",
		"lease-signer.crt", "lease-signer.key", "operator-ca.crt", "operator-ca.key", "root-ca.crt", "root-ca.key",
		"server-ca.crt", "server-ca.key",
	}
	if !slices.Equal(files, want) {
		t.Errorf("files %v, want %v", files, want)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	// The root's key is in a safe.
	if err := os.Remove(filepath.Join(dir, "root-ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, nil); err != nil {
		t.Errorf("without the root's key: %v", err)
	}
}

func TestCreateNeverOverwrites(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	if _, err := Create(dir, Options{DNSNames: []string{"x"}}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Create: %v", err)
	}
	again, err := Load(dir, c.Now)
	if err != nil || !slices.Equal(again.TrustBundle()[0], a.TrustBundle()[0]) {
		t.Errorf("the authority has changed: %v", err)
	}
	if _, err := Create(filepath.Join(t.TempDir(), "pki"), Options{}); err == nil {
		t.Error("a collector that nobody can dial")
	}
	parent := filepath.Dir(dir)
	if entries, _ := os.ReadDir(parent); len(entries) != 1 {
		t.Errorf("left behind in %s: %v", parent, entries)
	}
}

func TestDeviceCertificate(t *testing.T) {
	a, _ := create(t, &clock{morning})
	issued, err := a.IssueDevice(device, publicKey(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	cert := leaf(t, issued)
	if cert.URIs[0].String() != "urn:uuid:"+device || len(cert.DNSNames)+len(cert.IPAddresses) != 0 {
		t.Errorf("names: %v %v %v", cert.URIs, cert.DNSNames, cert.IPAddresses)
	}
	if !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || cert.IsCA {
		t.Errorf("usage %v, CA %v", cert.ExtKeyUsage, cert.IsCA)
	}
	if !cert.NotBefore.Equal(morning.Add(-5*time.Minute)) || !cert.NotAfter.Equal(morning.Add(72*time.Hour)) {
		t.Errorf("from %v to %v", cert.NotBefore, cert.NotAfter)
	}
	if !issued.NotAfter.Equal(cert.NotAfter) || !issued.RenewAfter.Equal(morning.Add(24*time.Hour)) || issued.Serial != cert.SerialNumber.Text(16) {
		t.Errorf("said of it: %+v", issued)
	}
	if cert.SerialNumber.BitLen() < 100 {
		t.Errorf("serial %x is not 128 random bits", cert.SerialNumber)
	}
	second, err := a.IssueDevice(device, publicKey(t), 0)
	if err != nil || second.Serial == issued.Serial {
		t.Errorf("second serial %s, %v", second.Serial, err)
	}
}

// Each kind of certificate verifies against the pool of its role and no other:
// not by the root either, which no pool holds.
func TestPoolsHoldOneRoleOnly(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	withVPN(t, a, dir, c)
	issue := map[string]func() (*Certificate, error){
		"vpn":      func() (*Certificate, error) { return a.IssueVPN(device, publicKey(t), VPNProfile{}) },
		"device":   func() (*Certificate, error) { return a.IssueDevice(device, publicKey(t), 0) },
		"gate":     func() (*Certificate, error) { return a.IssueGate("vpn-1", publicKey(t)) },
		"operator": func() (*Certificate, error) { return a.IssueOperator("ops", publicKey(t)) },
		"server": func() (*Certificate, error) {
			own, err := a.ServerCertificate()
			return &Certificate{Chain: own.Certificate}, err
		},
	}
	pools := map[string]*x509.CertPool{"device": a.Devices(), "gate": a.Gates(), "operator": a.Operators(), "server": a.Servers(), "vpn": a.VPNClients()}
	roots, err := mtls.ReadCertificates(filepath.Join(dir, "root-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for role, make := range issue {
		c, err := make()
		if err != nil {
			t.Fatal(err)
		}
		for of, pool := range pools {
			intermediates := x509.NewCertPool()
			intermediates.AppendCertsFromPEM(pemOf(t, dir))
			intermediates.AddCert(roots[0])
			_, err := leaf(t, c).Verify(x509.VerifyOptions{
				Roots: pool, Intermediates: intermediates, CurrentTime: morning,
				KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
			})
			if (err == nil) != (role == of) {
				t.Errorf("%s certificate against the pool of %ss: %v", role, of, err)
			}
		}
	}
}

// pemOf is all CA certificates that there are.
func pemOf(t *testing.T, dir string) (all []byte) {
	t.Helper()
	for _, kind := range issuingKinds {
		b, err := os.ReadFile(filepath.Join(dir, kind.file+".crt"))
		if kind.optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}

func TestIssuingCAsCannotMakeCAs(t *testing.T) {
	a, _ := create(t, &clock{morning})
	for _, i := range a.issuers {
		if !i.cert.IsCA || i.cert.MaxPathLen != 0 || !i.cert.MaxPathLenZero {
			t.Errorf("%s: CA %v, path %d", i.cert.Subject, i.cert.IsCA, i.cert.MaxPathLen)
		}
	}
}

func TestOnlyFittingKeysAndNamesAreCertified(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	withVPN(t, a, dir, c)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := publicKey(t)
	for name, issue := range map[string]func() (*Certificate, error){
		"device with P-384":     func() (*Certificate, error) { return a.IssueDevice(device, &p384.PublicKey, 0) },
		"device with Ed25519":   func() (*Certificate, error) { return a.IssueDevice(device, ed, 0) },
		"device without a key":  func() (*Certificate, error) { return a.IssueDevice(device, nil, 0) },
		"device that is no id":  func() (*Certificate, error) { return a.IssueDevice("NB-0001", good, 0) },
		"device named operator": func() (*Certificate, error) { return a.IssueDevice("urn:pfoertner:operator:root", good, 0) },
		"VPN client with P-384": func() (*Certificate, error) { return a.IssueVPN(device, &p384.PublicKey, VPNProfile{}) },
		"VPN client by name":    func() (*Certificate, error) { return a.IssueVPN("NB-0001", good, VPNProfile{}) },
		"gate without a name":   func() (*Certificate, error) { return a.IssueGate("", good) },
		"operator with a colon": func() (*Certificate, error) { return a.IssueOperator("a:b", good) },
	} {
		if c, err := issue(); err == nil {
			t.Errorf("%s: %v", name, leaf(t, c).URIs)
		}
	}
}

func TestLeaseSignerIsWhatGatesVerify(t *testing.T) {
	a, _ := create(t, &clock{morning})
	key, chain := a.LeaseSigner()
	pub, err := mtls.VerifyLeaseSigner(chain, a.Servers(), morning)
	if err != nil || !pub.Equal(key.Public()) {
		t.Errorf("%v, %v", pub, err)
	}
	if _, err := mtls.VerifyLeaseSigner(chain, a.Gates(), morning); err == nil {
		t.Error("a gate CA vouches for a lease signer")
	}
}

func TestOwnCertificatesAreRenewedInTime(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	read := func() (server *tls.Certificate, signer []byte) {
		server, err := a.ServerCertificate()
		if err != nil {
			t.Fatal(err)
		}
		_, chain := a.LeaseSigner()
		return server, chain[0]
	}
	server, signer := read()
	c.now = morning.Add(200 * 24 * time.Hour)
	if err := a.Renew(); err != nil {
		t.Fatal(err)
	}
	if again, _ := read(); again != server {
		t.Error("renewed with half its life left")
	}
	c.now = morning.Add(300 * 24 * time.Hour)
	if err := a.Renew(); err != nil {
		t.Fatal(err)
	}
	renewed, renewedSigner := read()
	if !renewed.Leaf.NotAfter.Equal(c.now.Add(PeerLifetime)) || slices.Equal(signer, renewedSigner) {
		t.Errorf("not renewed: ends %v", renewed.Leaf.NotAfter)
	}
	if !slices.Equal(renewed.Leaf.DNSNames, server.Leaf.DNSNames) || len(renewed.Leaf.IPAddresses) != 1 {
		t.Errorf("names have changed: %v %v", renewed.Leaf.DNSNames, renewed.Leaf.IPAddresses)
	}
	reloaded, err := Load(dir, c.Now)
	if err != nil || !slices.Equal(reloaded.collector.Certificate[0], renewed.Certificate[0]) {
		t.Errorf("on disk is another: %v", err)
	}
}

func TestNothingOutlivesItsCA(t *testing.T) {
	c := &clock{morning}
	a, _ := create(t, c)
	c.now = a.issuers["device-ca"].cert.NotAfter.Add(-time.Hour)
	issued, err := a.IssueDevice(device, publicKey(t), 0)
	if err != nil || !issued.NotAfter.Equal(a.issuers["device-ca"].cert.NotAfter) {
		t.Errorf("ends %v, CA %v, %v", issued.NotAfter, a.issuers["device-ca"].cert.NotAfter, err)
	}
	c.now = a.issuers["device-ca"].cert.NotAfter
	if _, err := a.IssueDevice(device, publicKey(t), 0); err == nil {
		t.Error("issued by a CA that has ended")
	}
}

func TestBundlesWork(t *testing.T) {
	a, _ := create(t, &clock{time.Now()})
	for name, tc := range map[string]struct {
		write func(dir string) error
		file  string
		role  mtls.Role
		pool  *x509.CertPool
	}{
		"operator": {func(d string) error { return a.WriteOperator(d, "ops") }, "operator", mtls.RoleOperator, a.Operators()},
		"gate":     {func(d string) error { return a.WriteGate(d, "vpn-1") }, "gate", mtls.RoleGate, a.Gates()},
		"signer":   {func(d string) error { return a.WriteReferenceSigner(d, "it") }, "reference-signer", mtls.RoleReferenceSigner, a.Servers()},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "bundle")
			if err := tc.write(dir); err != nil {
				t.Fatal(err)
			}
			cert, err := mtls.FromFiles(filepath.Join(dir, tc.file+".crt"), filepath.Join(dir, tc.file+".key"))()
			if err != nil {
				t.Fatal(err)
			}
			if role, _, err := mtls.Identity(cert.Leaf); role != tc.role || err != nil {
				t.Errorf("role %s, %v", role, err)
			}
			usage := append(tc.role.Usage(), x509.ExtKeyUsageAny)[:1] // a signer has none
			_, err = cert.Leaf.Verify(x509.VerifyOptions{Roots: tc.pool, KeyUsages: usage})
			if err != nil {
				t.Error(err)
			}
			servers, err := mtls.Pool(filepath.Join(dir, "server-ca.crt"))
			if err != nil || !servers.Equal(a.Servers()) {
				t.Errorf("server-ca.crt is another: %v", err)
			}
		})
	}
}

func TestLoadRefusesWhatCreateDidNotMake(t *testing.T) {
	c := &clock{morning}
	swap := func(from, to string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, ext := range []string{".crt", ".key"} {
				b, err := os.ReadFile(filepath.Join(dir, from+ext))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, to+ext), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for name, tc := range map[string]struct {
		damage func(t *testing.T, dir string)
		want   string
	}{
		"another's CA": {func(t *testing.T, dir string) {
			_, other := create(t, c)
			for _, ext := range []string{".crt", ".key"} {
				b, err := os.ReadFile(filepath.Join(other, "device-ca"+ext))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "device-ca"+ext), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, "not issued by root-ca.crt"},
		"gate CA in the operators' place": {swap("gate-ca", "operator-ca"), "not the operator CA"},
		"root in a CA's place":            {swap("root-ca", "device-ca"), "not the device CA"},
		"collector in a CA's place":       {swap("collector", "device-ca"), "not issued by root-ca.crt"},
		"collector as lease signer":       {swap("collector", "lease-signer"), "not an Ed25519 key"},
		"a key of another certificate": {func(t *testing.T, dir string) {
			if err := os.Rename(filepath.Join(dir, "gate-ca.key"), filepath.Join(dir, "device-ca.key")); err != nil {
				t.Fatal(err)
			}
		}, "device-ca.key does not belong to device-ca.crt"},
		"a torn file": {func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "server-ca.crt"), 40); err != nil {
				t.Fatal(err)
			}
		}, "server-ca"},
		"no root": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "root-ca.crt")); err != nil {
				t.Fatal(err)
			}
		}, "root-ca.crt"},
	} {
		t.Run(name, func(t *testing.T) {
			_, dir := create(t, c)
			tc.damage(t, dir)
			if _, err := Load(dir, c.Now); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func BenchmarkIssueDevice(b *testing.B) {
	a, err := Create(filepath.Join(b.TempDir(), "pki"), Options{DNSNames: []string{"x"}})
	if err != nil {
		b.Fatal(err)
	}
	key, err := attest.NewKey()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := a.IssueDevice(device, &key.PublicKey, 0); err != nil {
			b.Fatal(err)
		}
	}
}
