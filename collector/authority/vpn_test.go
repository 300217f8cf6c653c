package authority

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pfoertner/internal/mtls"
)

// withVPN switches VPN certificates on.
func withVPN(t *testing.T, a *Authority, dir string, c *clock) {
	t.Helper()
	rotate(t, Rotation{Dir: dir, Now: c.Now}, "vpn")
	follow(t, a)
}

func profile(t *testing.T, lifetime time.Duration, suffix string, usages ...string) VPNProfile {
	t.Helper()
	p, err := ParseVPNProfile(lifetime, suffix, usages)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// An installation from before, which has four CAs and no register, gets the
// fifth when it is wanted, and the running collector issues under it.
func TestVPNCAComesWhenItIsWanted(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	if there(dir, "vpn-ca") || there(dir, registerFile) {
		t.Fatal("a new authority has a VPN CA already")
	}
	if _, err := a.IssueVPN(device, publicKey(t), VPNProfile{}); !errors.Is(err, ErrNoVPN) || a.IssuesVPN() || len(anchors(t, a)) != 0 {
		t.Errorf("issued without a VPN CA: %v", err)
	}
	if _, warnings, err := List(dir, c.now); err != nil || slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, "VPN") }) {
		t.Errorf("missed where nobody wants it: %v, %v", warnings, err)
	}
	var log journal
	rotate(t, Rotation{Dir: dir, Now: c.Now, Record: log.record}, "vpn")
	follow(t, a)
	if got := states(t, Rotation{Dir: dir, Now: c.Now}, "vpn"); !slices.Equal(got, []string{"vpn-ca current"}) {
		t.Errorf("states: %v", got)
	}
	if want := []string{"authority.requested vpn-ca", "authority.installed vpn-ca"}; !slices.Equal(log.kinds(), want) {
		t.Errorf("recorded: %v", log.kinds())
	}
	cert, err := a.IssueVPN(device, publicKey(t), VPNProfile{})
	if err != nil || !a.IssuesVPN() {
		t.Fatal(err)
	}
	if !verifies(leaf(t, cert), a.VPNClients(), c.now) {
		t.Error("the gateways' pool refuses it")
	}
	if _, err := a.IssueDevice(device, publicKey(t), 0); err != nil {
		t.Errorf("the others: %v", err)
	}
	if _, err := Load(dir, c.Now); err != nil {
		t.Error(err)
	}
}

// The root is elsewhere: request, compare, sign, install, as for any CA.
func TestVPNCAFromAnOfflineRoot(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	safe := filepath.Join(t.TempDir(), "safe")
	if err := (Root{Dir: dir, Now: c.Now}).Move(safe); err != nil {
		t.Fatal(err)
	}
	r := Rotation{Dir: dir, Now: c.Now}
	requests, err := r.Request(OptionalKinds(), "Amt Nord", Files{})
	if err != nil {
		t.Fatal(err)
	}
	follow(t, a)
	if a.IssuesVPN() {
		t.Error("a key that nobody has signed issues")
	}
	install(t, r, Root{Dir: safe, Now: c.Now}, requests)
	follow(t, a)
	if !a.IssuesVPN() {
		t.Error("the signed key does not issue")
	}
}

func TestVPNCertificateAsItIsConfigured(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	withVPN(t, a, dir, c)
	const ikeIntermediate = "1.3.6.1.5.5.8.2.2"
	cert, err := a.IssueVPN(device, publicKey(t), profile(t, 72*time.Hour, "vpn.amt.example", ikeIntermediate, "1.3.6.1.5.5.7.3.17"))
	if err != nil {
		t.Fatal(err)
	}
	got := leaf(t, cert)
	role, name, err := mtls.Identity(got)
	if err != nil || role != mtls.RoleVPN || name != device {
		t.Errorf("identity: %s %s, %v", role, name, err)
	}
	if got.URIs[0].String() != "urn:pfoertner:vpn:"+device || got.Subject.CommonName != device ||
		!slices.Equal(got.DNSNames, []string{device + ".vpn.amt.example"}) || len(got.IPAddresses)+len(got.EmailAddresses) != 0 {
		t.Errorf("names: %v %v %v", got.URIs, got.Subject, got.DNSNames)
	}
	if !slices.Equal(got.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) ||
		!slices.ContainsFunc(got.UnknownExtKeyUsage, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 8, 2, 2}.Equal) || len(got.UnknownExtKeyUsage) != 2 {
		t.Errorf("usages: %v %v", got.ExtKeyUsage, got.UnknownExtKeyUsage)
	}
	if !cert.NotAfter.Equal(morning.Add(72*time.Hour)) || !cert.RenewAfter.Equal(morning.Add(48*time.Hour)) {
		t.Errorf("until %s, renewed from %s", cert.NotAfter, cert.RenewAfter)
	}
	plain, err := a.IssueVPN(device, publicKey(t), VPNProfile{})
	if err != nil {
		t.Fatal(err)
	}
	if !plain.NotAfter.Equal(morning.Add(VPNLifetime)) || len(leaf(t, plain).DNSNames) != 0 {
		t.Errorf("by default until %s, names %v", plain.NotAfter, leaf(t, plain).DNSNames)
	}
}

func TestVPNProfilesThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		lifetime time.Duration
		suffix   string
		usages   []string
	}{
		"too short":              {lifetime: time.Hour},
		"too long":               {lifetime: 400 * day},
		"negative":               {lifetime: -day},
		"a wildcard":             {suffix: "*.example"},
		"a dot in front":         {suffix: ".example"},
		"a dot at the end":       {suffix: "example."},
		"capitals":               {suffix: "Example"},
		"two names":              {suffix: "a.example,b.example"},
		"a long suffix":          {suffix: strings.Repeat("a.", 120) + "a"},
		"a server's usage":       {usages: []string{"1.3.6.1.5.5.7.3.1"}},
		"any usage":              {usages: []string{"2.5.29.37.0"}},
		"the usage it has":       {usages: []string{"1.3.6.1.5.5.7.3.2"}},
		"OCSP signing":           {usages: []string{"1.3.6.1.5.5.7.3.9"}},
		"a usage twice":          {usages: []string{"1.3.6.1.5.5.8.2.2", "1.3.6.1.5.5.8.2.2"}},
		"a name for a usage":     {usages: []string{"clientAuth"}},
		"a usage with a gap":     {usages: []string{"1..3"}},
		"a usage with zeros":     {usages: []string{"1.03.6"}},
		"no object identifier":   {usages: []string{"7.1"}},
		"a number that is large": {usages: []string{"1.3.99999999999"}},
		"an empty usage":         {usages: []string{""}},
	} {
		if p, err := ParseVPNProfile(tc.lifetime, tc.suffix, tc.usages); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// Whatever was issued under a CA that was revoked is to be replaced.
func TestRevokedVPNCAHasItsCertificatesReplaced(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	withVPN(t, a, dir, c)
	if !a.VPNReplaceBefore().IsZero() {
		t.Error("nothing was revoked yet")
	}
	r := Rotation{Dir: dir, Now: c.Now}
	rotate(t, r, "vpn")
	follow(t, a)
	before, err := a.IssueVPN(device, publicKey(t), VPNProfile{})
	if err != nil {
		t.Fatal(err)
	}
	c.now = c.now.Add(time.Hour)
	if err := r.Revoke("vpn-ca", "stolen", false); err != nil {
		t.Fatal(err)
	}
	if revoked := follow(t, a); !slices.Equal(revoked, []string{"vpn"}) {
		t.Errorf("revoked: %v", revoked)
	}
	if !a.VPNReplaceBefore().Equal(c.now) {
		t.Errorf("replaced is what is older than %s", a.VPNReplaceBefore())
	}
	if verifies(leaf(t, before), a.VPNClients(), c.now) || len(anchors(t, a)) != 1 {
		t.Error("gateways are told to trust the stolen CA")
	}
	after, err := a.IssueVPN(device, publicKey(t), VPNProfile{})
	if err != nil || !verifies(leaf(t, after), a.VPNClients(), c.now) {
		t.Errorf("the successor: %v", err)
	}
}

func anchors(t *testing.T, a *Authority) [][]byte {
	t.Helper()
	list, err := a.VPNTrust()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// A gateway's bundle says whose VPN clients it is to let in; nobody else's does.
func TestGatewaysGetTheVPNCA(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	gate, operator := filepath.Join(t.TempDir(), "gate"), filepath.Join(t.TempDir(), "operator")
	if err := a.WriteGate(gate, "vpn1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(gate, "vpn-ca.crt")); err == nil {
		t.Error("a VPN CA that is not there")
	}
	withVPN(t, a, dir, c)
	rotate(t, Rotation{Dir: dir, Now: c.Now}, "vpn")
	follow(t, a)
	if err := a.RenewBundle(gate, mtls.RoleGate, "vpn1"); err != nil {
		t.Fatal(err)
	}
	got, err := mtls.ReadCertificates(filepath.Join(gate, "vpn-ca.crt"))
	if err != nil || len(got) != 2 {
		t.Fatalf("gate trusts %d VPN CAs, the current and the next are needed: %v", len(got), err)
	}
	// All that a VPN server knows, and all that a client may bring along.
	roots, brought := x509.NewCertPool(), x509.NewCertPool()
	for _, anchor := range got {
		roots.AddCert(anchor)
		if anchor.CheckSignatureFrom(anchor) != nil || !anchor.MaxPathLenZero {
			t.Errorf("%s is not an anchor", anchor.Subject)
		}
	}
	brought.AppendCertsFromPEM(pemOf(t, dir))
	accepts := func(cert *Certificate, err error) bool {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		_, err = leaf(t, cert).Verify(x509.VerifyOptions{Roots: roots, Intermediates: brought, CurrentTime: c.now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		return err == nil
	}
	if !accepts(a.IssueVPN(device, publicKey(t), VPNProfile{})) {
		t.Error("a VPN server refuses VPN clients")
	}
	if accepts(a.IssueDevice(device, publicKey(t), 0)) {
		t.Error("a VPN server takes the device's own certificate")
	}
	if err := (Rotation{Dir: dir, Now: c.Now}).Switch("vpn", true); err != nil {
		t.Fatal(err)
	}
	follow(t, a)
	if !accepts(a.IssueVPN(device, publicKey(t), VPNProfile{})) {
		t.Error("the next CA is not known when it issues")
	}
	if err := a.WriteOperator(operator, "anna"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(operator, "vpn-ca.crt")); err == nil {
		t.Error("an operator is told to trust VPN clients")
	}
}
