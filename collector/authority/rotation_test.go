package authority

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pfoertner/collector/audit"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
)

const day = 24 * time.Hour

// journal is an audit log.
type journal []audit.Record

func (j *journal) record(records ...audit.Record) error {
	*j = append(*j, records...)
	return nil
}

func (j journal) kinds() (kinds []string) {
	for _, r := range j {
		kinds = append(kinds, r.Kind+" "+r.Details["ca"])
	}
	return kinds
}

// rotate makes the next CA of a kind, with the root that is still there.
func rotate(t *testing.T, r Rotation, kind string) {
	t.Helper()
	requests, err := r.Request([]string{kind}, "", Files{})
	if err != nil {
		t.Fatal(err)
	}
	install(t, r, Root{Dir: r.Dir, Now: r.Now}, requests)
}

// install lets the root sign requests, and installs them.
func install(t *testing.T, r Rotation, root Root, requests []byte) {
	t.Helper()
	certificates, err := root.Sign(requests, prints(t, requests))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Install(certificates); err != nil {
		t.Fatal(err)
	}
}

func prints(t *testing.T, requests []byte) (expected []string) {
	t.Helper()
	parsed, err := ParseRequests(requests)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range parsed {
		expected = append(expected, q.Fingerprint)
	}
	return expected
}

func follow(t *testing.T, a *Authority) []string {
	t.Helper()
	_, revoked, err := a.Follow()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Renew(); err != nil {
		t.Fatal(err)
	}
	return revoked
}

func states(t *testing.T, r Rotation, kind string) (names []string) {
	t.Helper()
	entries, _, err := List(r.Dir, r.now())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name, kind+"-ca") {
			names = append(names, e.Name+" "+string(e.State))
		}
	}
	return names
}

func verifies(cert *x509.Certificate, pool *x509.CertPool, at time.Time) bool {
	_, err := cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

// Through a whole rotation every certificate that has not ended is accepted,
// and with the predecessor's last one the predecessor is gone.
func TestEveryCertificateHoldsThroughARotation(t *testing.T) {
	for kind, tc := range map[string]struct {
		issue func(*Authority) *x509.Certificate
		pool  func(*Authority) *x509.CertPool
		life  time.Duration
	}{
		"device": {func(a *Authority) *x509.Certificate {
			c, err := a.IssueDevice(device, publicKey(t), 0)
			if err != nil {
				t.Fatal(err)
			}
			return leaf(t, c)
		}, (*Authority).Devices, DeviceLifetime},
		"gate": {func(a *Authority) *x509.Certificate {
			c, err := a.IssueGate("vpn1", publicKey(t))
			if err != nil {
				t.Fatal(err)
			}
			return leaf(t, c)
		}, (*Authority).Gates, PeerLifetime},
		"operator": {func(a *Authority) *x509.Certificate {
			c, err := a.IssueOperator("anna", publicKey(t))
			if err != nil {
				t.Fatal(err)
			}
			return leaf(t, c)
		}, (*Authority).Operators, PeerLifetime},
		"vpn": {func(a *Authority) *x509.Certificate {
			c, err := a.IssueVPN(device, publicKey(t), VPNProfile{Lifetime: maxVPNLifetime})
			if err != nil {
				t.Fatal(err)
			}
			return leaf(t, c)
		}, (*Authority).VPNClients, maxVPNLifetime},
	} {
		t.Run(kind, func(t *testing.T) {
			c := &clock{morning}
			a, dir := create(t, c)
			r := Rotation{Dir: dir, Now: c.Now}
			if kind == "vpn" {
				withVPN(t, a, dir, c)
			}
			first := tc.issue(a)
			rotate(t, r, kind)
			follow(t, a)
			if c.now = c.now.Add(time.Hour); kind == "vpn" {
				c.now = c.now.Add(VPNOverlap)
			}
			before := tc.issue(a)
			if first.CheckSignatureFrom(a.issuers[kind+"-ca"].cert) != nil {
				t.Error("the next CA issues before the switch")
			}
			if err := r.Switch(kind, false); err != nil {
				t.Fatal(err)
			}
			late := tc.issue(a) // this collector has not heard of the switch yet
			follow(t, a)
			after := tc.issue(a)
			if slices.Equal(after.AuthorityKeyId, before.AuthorityKeyId) {
				t.Error("the old CA issues after the switch")
			}
			for name, cert := range map[string]*x509.Certificate{"first": first, "before": before, "late": late, "after": after} {
				if !verifies(cert, tc.pool(a), c.now) {
					t.Errorf("%s is refused in the overlap", name)
				}
			}
			if got := states(t, r, kind); !slices.Equal(got, []string{kind + "-ca retiring", kind + "-ca-2 current"}) {
				t.Errorf("states: %v", got)
			}
			// The last second of the last certificate.
			c.now = late.NotAfter
			if !verifies(late, tc.pool(a), c.now) {
				t.Error("the last certificate is refused before its end")
			}
			c.now = c.now.Add(followEvery)
			if got := states(t, r, kind); !slices.Equal(got, []string{kind + "-ca-2 current"}) {
				t.Errorf("not gone: %v", got)
			}
			if verifies(late, tc.pool(a), late.NotAfter) {
				t.Error("the old CA is in the pool for ever")
			}
			if err := r.Tidy(); err != nil || there(dir, kind+"-ca") {
				t.Errorf("the old key is still there: %v", err)
			}
			if _, err := Load(dir, c.Now); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServerCAIsHandedOutLongBeforeItIssues(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	r := Rotation{Dir: dir, Now: c.Now}
	pool := func() *x509.CertPool { // what an agent that enrols now trusts
		pool := x509.NewCertPool()
		for _, der := range a.TrustBundle() {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			pool.AddCert(cert)
		}
		return pool
	}
	own := func() *x509.Certificate {
		pair, err := a.ServerCertificate()
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf
	}
	issued, err := a.IssueDevice(device, publicKey(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	if at := a.RenewAfter(leaf(t, issued)); at.Before(morning.Add(DeviceRenewAfter-clockSkew)) || at.After(morning.Add(DeviceRenewAfter)) {
		t.Errorf("renewal due at %v", at)
	}
	absent := pool()
	rotate(t, r, "server")
	follow(t, a)
	if at := a.RenewAfter(leaf(t, issued)); at.Sub(c.now) > 2*settleAfter {
		t.Errorf("who knows only the old CA renews at %v", at)
	}
	c.now = c.now.Add(2 * settleAfter)
	again, err := a.IssueDevice(device, publicKey(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	if at := a.RenewAfter(leaf(t, again)); at.Before(c.now.Add(20 * time.Hour)) {
		t.Errorf("who knows both renews again at %v", at)
	}
	present := pool()
	if len(a.TrustBundle()) != 2 || !verifies(own(), absent, c.now) || !verifies(own(), present, c.now) {
		t.Error("the next CA is not only handed out")
	}

	c.now = c.now.Add(ServerOverlap - time.Hour)
	if err := r.Switch("server", false); !errors.Is(err, ErrTooEarly) {
		t.Fatalf("an hour too early: %v", err)
	}
	c.now = c.now.Add(time.Hour)
	if err := r.Switch("server", false); err != nil {
		t.Fatal(err)
	}
	follow(t, a)
	if verifies(own(), absent, c.now) || !verifies(own(), present, c.now) {
		t.Error("the collector's certificate is not by the next CA")
	}
	_, chain := a.LeaseSigner()
	if _, err := mtls.VerifyLeaseSigner(chain, present, c.now); err != nil {
		t.Errorf("a gate refuses the leases: %v", err)
	}
	if _, err := mtls.VerifyLeaseSigner(chain, absent, c.now); err == nil {
		t.Error("the lease signer was not renewed")
	}
	if len(a.TrustBundle()) != 2 {
		t.Error("signers of reference values under the old CA are forgotten")
	}

	if err := r.SwitchBack("server"); err != nil {
		t.Fatal(err)
	}
	follow(t, a)
	if !verifies(own(), absent, c.now) {
		t.Error("switching back did not bring the old CA back")
	}
	if got := states(t, r, "server"); !slices.Equal(got, []string{"server-ca current", "server-ca-2 next"}) {
		t.Errorf("states: %v", got)
	}
	if err := r.SwitchBack("server"); err == nil {
		t.Error("switched back twice")
	}
}

// The whole ceremony with a root that this machine never sees.
func TestOfflineRoot(t *testing.T) {
	c := &clock{morning}
	var log, paper journal
	root := Root{Dir: filepath.Join(t.TempDir(), "safe"), Now: c.Now, Record: paper.record}
	if err := root.Create("Amt Nord", Files{}); err != nil {
		t.Fatal(err)
	}
	if err := root.Create("Amt Nord", Files{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second root: %v", err)
	}
	r := Rotation{Dir: filepath.Join(t.TempDir(), "state", "pki"), Now: c.Now, Record: log.record}
	requests, err := r.Request(Kinds(), "Amt Nord", Files{})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.Request(Kinds(), "Amt Nord", Files{}); err != nil || !slices.Equal(prints(t, again), prints(t, requests)) {
		t.Errorf("asked again, the keys are others: %v", err)
	}
	if _, err := Load(r.Dir, c.Now); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an authority without CAs: %v", err)
	}
	install(t, r, root, requests)
	a, err := Create(r.Dir, Options{DNSNames: []string{"collector.example"}, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.IssueDevice(device, publicKey(t), 0); err != nil {
		t.Error(err)
	}
	if _, err := Create(r.Dir, Options{DNSNames: []string{"x"}, Now: c.Now}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made again: %v", err)
	}
	if _, warnings, err := List(r.Dir, c.now); err != nil || len(warnings) != 0 {
		t.Errorf("%v, %v", warnings, err)
	}
	if there(r.Dir, rootFile) {
		if _, err := os.Stat(filepath.Join(r.Dir, "root-ca.key")); err == nil {
			t.Error("the root's key is here")
		}
	}
	if len(paper) != 5 || len(log) < 8 {
		t.Errorf("recorded: %v and %v", paper.kinds(), log.kinds())
	}
}

func TestRootSignsOnlyWhatWasCompared(t *testing.T) {
	c := &clock{morning}
	_, dir := create(t, c)
	root := Root{Dir: dir, Now: c.Now}
	requests, err := Rotation{Dir: dir, Now: c.Now}.Request([]string{"gate"}, "", Files{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	swapped, err := newRequest(kindGate, "", key)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := newRequest(issuingKind{title: "every CA"}, "", key)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		requests []byte
		expected []string
	}{
		"nothing compared": {requests, nil},
		"a swapped key":    {swapped, prints(t, requests)},
		"one too many":     {slices.Concat(requests, swapped), prints(t, requests)},
		"another CA":       {foreign, prints(t, swapped)},
		"a certificate":    {pemOf(t, dir), prints(t, requests)},
		"nothing":          {nil, prints(t, requests)},
	} {
		if signed, err := root.Sign(tc.requests, tc.expected); err == nil {
			t.Errorf("%s: signed %s", name, signed)
		}
	}
	if _, err := root.Sign(requests, prints(t, requests)); err != nil {
		t.Error(err)
	}
}

func TestInstallTakesOnlyWhatWasAskedFor(t *testing.T) {
	c := &clock{morning}
	_, dir := create(t, c)
	r := Rotation{Dir: dir, Now: c.Now}
	stranger := Root{Dir: filepath.Join(t.TempDir(), "stranger"), Now: c.Now}
	if err := stranger.Create("", Files{}); err != nil {
		t.Fatal(err)
	}
	requests, err := r.Request([]string{"gate"}, "", Files{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := newRequest(kindGate, "", key)
	if err != nil {
		t.Fatal(err)
	}
	// The gate's key, certified as the operators' CA.
	gateKey, err := openKey(filepath.Join(dir, "gate-ca-2.key"))
	if err != nil {
		t.Fatal(err)
	}
	wrongKind, err := newRequest(kindOperator, "", gateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"a key of others": other, "another kind": wrongKind} {
		signed, err := Root{Dir: dir, Now: c.Now}.Sign(text, prints(t, text))
		if err != nil {
			t.Fatal(err)
		}
		if names, err := r.Install(signed); err == nil {
			t.Errorf("%s: installed %v", name, names)
		}
	}
	signed, err := stranger.Sign(requests, prints(t, requests))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := mtls.ParseCertificates(signed)
	if err != nil {
		t.Fatal(err)
	}
	if names, err := r.Install(certificatesText([][]byte{certs[0].Raw})); err == nil {
		t.Errorf("by an unknown root: installed %v", names)
	}
	if got := states(t, r, "gate"); !slices.Equal(got, []string{"gate-ca current", "gate-ca-2 requested"}) {
		t.Errorf("after refusals: %v", got)
	}
	// A new root comes with its certificate: that is how a root is replaced.
	if _, err := r.Install(signed); err != nil {
		t.Error(err)
	}
	if roots, err := mtls.ReadCertificates(filepath.Join(dir, "root-ca.crt")); err != nil || len(roots) != 2 {
		t.Errorf("roots: %d, %v", len(roots), err)
	}
	if _, err := Load(dir, c.Now); err != nil {
		t.Error(err)
	}
}

func TestRevokedCAIsRefusedAtOnce(t *testing.T) {
	c := &clock{morning}
	var log journal
	a, dir := create(t, c)
	r := Rotation{Dir: dir, Now: c.Now, Record: log.record}
	issued, err := a.IssueDevice(device, publicKey(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	stolen := fingerprint(a.issuers["device-ca"].cert)
	if err := r.Revoke(stolen, "stolen", false); err == nil {
		t.Fatal("revoked without a successor")
	}
	rotate(t, r, "device")
	follow(t, a)
	if err := r.Revoke(stolen[:20], "stolen", false); err != nil {
		t.Fatal(err)
	}
	if revoked := follow(t, a); !slices.Equal(revoked, []string{"device"}) {
		t.Errorf("connections to cut: %v", revoked)
	}
	if verifies(leaf(t, issued), a.Devices(), c.now) {
		t.Error("a certificate of the stolen key is accepted")
	}
	if again, err := a.IssueDevice(device, publicKey(t), 0); err != nil || !verifies(leaf(t, again), a.Devices(), c.now) {
		t.Errorf("the successor does not issue: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "device-ca.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stolen key is still here: %v", err)
	}
	if err := r.Revoke("device-ca", "again", false); err == nil {
		t.Error("revoked twice")
	}
	if last := log[len(log)-1]; last.Kind != "authority.revoked" || last.Details["reason"] != "stolen" {
		t.Errorf("recorded: %+v", last)
	}

	// Without a successor nobody connects, which is what was asked for.
	if err := r.Revoke("device-ca-2", "stolen too", true); err != nil {
		t.Fatal(err)
	}
	follow(t, a)
	if _, err := a.IssueDevice(device, publicKey(t), 0); err == nil {
		t.Error("issued by a revoked CA")
	}
	rotate(t, r, "device")
	follow(t, a)
	if got := states(t, r, "device"); !slices.Equal(got, []string{"device-ca revoked", "device-ca-2 revoked", "device-ca-3 current"}) {
		t.Errorf("states: %v", got)
	}
	if _, err := a.IssueDevice(device, publicKey(t), 0); err != nil {
		t.Error(err)
	}
}

// A change breaks off at every write in turn, as by a crash or a full disk:
// what was there before works on, and the change can be made afterwards.
func TestBrokenOffRotationLeavesAWorkingAuthority(t *testing.T) {
	broken := errors.New("the disk is full")
	steps := map[string]func(r Rotation, signed []byte) error{
		"request": func(r Rotation, _ []byte) error {
			_, err := r.Request([]string{"operator"}, "", Files{})
			return err
		},
		"install": func(r Rotation, signed []byte) error { _, err := r.Install(signed); return err },
		"switch":  func(r Rotation, _ []byte) error { return r.Switch("gate", true) },
		"back":    func(r Rotation, _ []byte) error { return r.SwitchBack("server") },
		"revoke":  func(r Rotation, _ []byte) error { return r.Revoke("gate-ca", "stolen", false) },
	}
	for name, step := range steps {
		for at := 0; ; at++ {
			c := &clock{morning}
			a, dir := create(t, c)
			r := Rotation{Dir: dir, Now: c.Now}
			rotate(t, r, "gate")
			rotate(t, r, "server")
			if err := r.Switch("server", true); err != nil {
				t.Fatal(err)
			}
			requests, err := r.Request([]string{"device"}, "", Files{})
			if err != nil {
				t.Fatal(err)
			}
			signed, err := Root{Dir: dir, Now: c.Now}.Sign(requests, prints(t, requests))
			if err != nil {
				t.Fatal(err)
			}
			writes := 0
			faulty := r
			faulty.write = func(path string, content []byte) error {
				if writes++; writes > at {
					return broken
				}
				return writeFile(path, content)
			}
			if err := step(faulty, signed); err == nil {
				if at == 0 {
					t.Errorf("%s writes nothing", name)
				}
				break
			} else if !errors.Is(err, broken) {
				t.Fatalf("%s, write %d: %v", name, at, err)
			}
			for _, authority := range []*Authority{a, reload(t, dir, c)} {
				follow(t, authority)
				if _, err := authority.IssueGate("vpn1", publicKey(t)); err != nil {
					t.Errorf("%s, write %d: %v", name, at, err)
				}
			}
			if err := step(r, signed); err != nil {
				t.Errorf("%s after write %d: %v", name, at, err)
			}
			follow(t, a)
		}
	}
}

func reload(t *testing.T, dir string, c *clock) *Authority {
	t.Helper()
	a, err := Load(dir, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// What cannot be recorded does not happen.
func TestNothingHappensUnrecorded(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	rotate(t, Rotation{Dir: dir, Now: c.Now}, "gate")
	deaf := func(...audit.Record) error { return errors.New("the audit log is full") }
	r := Rotation{Dir: dir, Now: c.Now, Record: deaf}
	before, _ := registerText(dir)
	_, requestErr := r.Request([]string{"device"}, "", Files{})
	for name, err := range map[string]error{
		"request": requestErr, "switch": r.Switch("gate", true), "revoke": r.Revoke("gate-ca", "x", false),
		"move": Root{Dir: dir, Now: c.Now, Record: deaf}.Move(t.TempDir()),
	} {
		if err == nil {
			t.Errorf("%s without a record", name)
		}
	}
	if after, _ := registerText(dir); string(after) != string(before) {
		t.Errorf("changed: %s", after)
	}
	if _, err := os.Stat(filepath.Join(dir, "root-ca.key")); err != nil {
		t.Errorf("the root's key has moved: %v", err)
	}
	a.RecordTo(deaf)
	if _, err := a.IssueGate("vpn1", publicKey(t)); err == nil {
		t.Error("issued without a record")
	}
}

// After a break-in the collector's own keys are others', too: a new server CA
// alone would only certify them again.
func TestOwnKeysAreMadeAnewAfterABreakIn(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	r := Rotation{Dir: dir, Now: c.Now}
	rotate(t, r, "server")
	if err := r.Revoke("server-ca", "break-in", false); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"collector.key", "collector.crt", "lease-signer.key", "lease-signer.crt"} {
		if err := os.Remove(filepath.Join(dir, file)); err != nil {
			t.Fatal(err)
		}
	}
	again, err := Create(dir, Options{DNSNames: []string{"collector.example"}, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	if samePublic(again.collector.Leaf.PublicKey, a.collector.Leaf.PublicKey) || samePublic(again.signer.Leaf.PublicKey, a.signer.Leaf.PublicKey) {
		t.Error("a stolen key is in use again")
	}
	if !verifies(again.collector.Leaf, again.Servers(), c.now) || verifies(a.collector.Leaf, again.Servers(), c.now) {
		t.Error("the certificates are not by the new CA alone")
	}
}

func TestRootMovesAway(t *testing.T) {
	c := &clock{morning}
	_, dir := create(t, c)
	here, safe := Root{Dir: dir, Now: c.Now}, filepath.Join(t.TempDir(), "safe")
	if _, warnings, err := List(dir, c.now); err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "root's key") {
		t.Errorf("nobody is warned: %v, %v", warnings, err)
	}
	if err := here.Move(safe); err != nil {
		t.Fatal(err)
	}
	if _, warnings, err := List(dir, c.now); err != nil || len(warnings) != 0 {
		t.Errorf("%v, %v", warnings, err)
	}
	r := Rotation{Dir: dir, Now: c.Now}
	requests, err := r.Request([]string{"device"}, "", Files{})
	if err != nil {
		t.Fatal(err)
	}
	install(t, r, Root{Dir: safe, Now: c.Now}, requests)
	if err := here.Move(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("moved twice: %v", err)
	}
}

func TestBundlesAreRenewedForTheSameKey(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	bundle := filepath.Join(t.TempDir(), "vpn1")
	if err := a.WriteGate(bundle, "vpn1"); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(bundle, "gate.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"gate", "server"} {
		rotate(t, Rotation{Dir: dir, Now: c.Now}, kind)
	}
	c.now = c.now.Add(300 * day)
	for _, kind := range []string{"gate", "server"} {
		if err := (Rotation{Dir: dir, Now: c.Now}).Switch(kind, false); err != nil {
			t.Fatal(err)
		}
	}
	follow(t, a)
	if err := a.RenewBundle(bundle, mtls.RoleGate, "vpn2"); err == nil {
		t.Error("renewed under another name")
	}
	if err := a.RenewBundle(bundle, mtls.RoleOperator, "vpn1"); err == nil {
		t.Error("renewed as an operator")
	}
	if err := a.RenewBundle(bundle, mtls.RoleGate, "vpn1"); err != nil {
		t.Fatal(err)
	}
	pair, err := readPair(bundle, "gate") // checks that key and certificate match
	if err != nil || !pair.Leaf.NotAfter.Equal(c.now.Add(PeerLifetime)) || !sameFile(filepath.Join(bundle, "gate.key"), key) {
		t.Errorf("%v, %v", pair.Leaf.NotAfter, err)
	}
	if servers, err := mtls.ReadCertificates(filepath.Join(bundle, "server-ca.crt")); err != nil || len(servers) != 2 {
		t.Errorf("server CAs: %d, %v", len(servers), err)
	}
	c.now = c.now.Add(PeerLifetime + time.Second)
	if err := a.RenewBundle(bundle, mtls.RoleGate, "vpn1"); err == nil {
		t.Error("an ended certificate was renewed")
	}
}

func FuzzRegister(f *testing.F) {
	f.Add([]byte(`{"format": 1, "generations": [{"kind": "device", "name": "device-ca", "state": "current"}]}`))
	f.Add([]byte(`{"format": 1, "generations": [{"kind": "gate", "name": "gate-ca-2", "state": "retiring", "until": "2027-01-01T00:00:00Z"}]}`))
	f.Add([]byte(`{"format": 2}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseRegister(text)
		if err != nil {
			return
		}
		for _, g := range r.Generations {
			kind, err := kindNamed(g.Kind)
			if err != nil || filepath.Base(g.Name) != g.Name || !strings.HasPrefix(g.Name, kind.file) {
				t.Errorf("%+v leads out of the directory", g)
			}
		}
	})
}

func FuzzRequests(f *testing.F) {
	key, err := attest.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	good, err := newRequest(kindGate, "Amt Nord", key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		requests, err := ParseRequests(text)
		if err != nil {
			return
		}
		for _, q := range requests {
			if _, err := kindNamed(q.Kind); err != nil || q.Fingerprint == "" {
				t.Errorf("%+v", q)
			}
		}
	})
}
