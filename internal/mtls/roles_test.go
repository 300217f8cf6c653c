package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"net"
	"slices"
	"strings"
	"testing"
)

// Even under one CA for all, nobody is accepted as somebody else.
func TestNoRoleIsAcceptedAsAnother(t *testing.T) {
	everybody := newCA(t)
	own := holding(everybody.issue(t, RoleCollector, "c1"))
	names := map[Role]string{
		RoleDevice: device, RoleVPN: device, RoleGate: "vpn1", RoleOperator: "anna",
		RoleCollector: "c2", RoleLeaseSigner: "c2", RoleReferenceSigner: "c2",
	}
	for _, listener := range []Role{RoleDevice, RoleGate, RoleOperator, RoleVPN} {
		for role, name := range names {
			server := ServerConfig(ServerOptions{Certificate: own, Clients: everybody.pool(), Role: listener})
			client := ClientConfig(ClientOptions{
				Certificate: holding(everybody.issue(t, role, name)), Servers: everybody.pool(), ServerName: "127.0.0.1",
			})
			_, serverErr, clientErr := shake(t, server, client)
			if in := serverErr == nil && clientErr == nil; in != (role == listener) {
				t.Errorf("a %s at a listener for %s: server %v, client %v", role, listener, serverErr, clientErr)
			}
		}
	}
	for role, name := range names {
		here := func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }
		server := &tls.Config{Certificates: []tls.Certificate{everybody.issue(t, role, name, here)}, MinVersion: tls.VersionTLS13}
		_, _, err := shake(t, server, ClientConfig(ClientOptions{Servers: everybody.pool(), ServerName: "127.0.0.1"}))
		// It may also fail for its address: a role without addresses is none with one.
		if (err == nil) != (role == RoleCollector) {
			t.Errorf("a %s as a server: %v", role, err)
		}
	}
}

func TestWhatVPNCertificatesMayCarry(t *testing.T) {
	issuer := newCA(t)
	for name, tc := range map[string]struct {
		change func(*x509.Certificate)
		want   string // empty: accepted
	}{
		"nothing more":         {func(*x509.Certificate) {}, ""},
		"its own name":         {func(c *x509.Certificate) { c.DNSNames = []string{device + ".vpn.example"} }, ""},
		"another's name":       {func(c *x509.Certificate) { c.DNSNames = []string{"gateway.example"} }, "host or mail names"},
		"a longer id":          {func(c *x509.Certificate) { c.DNSNames = []string{device + "0.vpn.example"} }, "host or mail names"},
		"two names":            {func(c *x509.Certificate) { c.DNSNames = []string{device + ".a", device + ".b"} }, "host or mail names"},
		"an address":           {func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }, "host or mail names"},
		"a mail address":       {func(c *x509.Certificate) { c.EmailAddresses = []string{device + ".a@b.example"} }, "host or mail names"},
		"IPsec's usage too":    {usages(x509.ExtKeyUsageIPSECUser), ""},
		"a usage Go knows not": {func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 8, 2, 2}} }, ""},
		"a server's usage too": {usages(x509.ExtKeyUsageServerAuth), "extended key usage"},
		"every usage":          {usages(x509.ExtKeyUsageAny), "extended key usage"},
		"code signing":         {usages(x509.ExtKeyUsageCodeSigning), "extended key usage"},
		"no usage":             {func(c *x509.Certificate) { c.ExtKeyUsage = nil }, "extended key usage"},
	} {
		t.Run(name, func(t *testing.T) {
			role, got, err := Identity(issuer.issue(t, RoleVPN, device, tc.change).Leaf)
			switch {
			case tc.want == "" && (err != nil || role != RoleVPN || got != device):
				t.Errorf("%s %s, %v", role, got, err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	for _, bad := range []string{"vpn1", strings.ToUpper(device), "", "00000000-0000-0000-0000-000000000000"} {
		if u, err := URI(RoleVPN, bad); err == nil {
			t.Errorf("a VPN client called %s", u)
		}
	}
}

func usages(u x509.ExtKeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtKeyUsage = slices.Concat(c.ExtKeyUsage, []x509.ExtKeyUsage{u}) }
}
