//go:build linux

package vpnkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
	"pfoertner/internal/e2e/swtpm"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

const (
	device  = "8f14e45f-ceea-467f-9f2b-0123456789ab"
	another = "9f14e45f-ceea-467f-9f2b-0123456789ab"
	day     = 24 * time.Hour
)

// machine has a real software TPM, and a directory for the keeper.
type machine struct {
	*chip.Chip
	ak    *chip.Key
	dir   string
	away  bool // the TPM does not answer
	clock time.Time
}

func (m *machine) NewVPNKey() (*chip.Key, error) {
	if m.away {
		return nil, chip.ErrUnavailable
	}
	return m.NewKey()
}

func (m *machine) LoadVPNKey(stored []byte) (*chip.Key, error) {
	if m.away {
		return nil, chip.ErrUnavailable
	}
	return m.LoadKey(stored)
}

func (m *machine) CertifyVPN(key *chip.Key, nonce, exporter []byte) (message, signature []byte, err error) {
	return m.Certify(m.ak, key, attest.Qualify(attest.PurposeVPN, nonce, exporter))
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{Chip: swtpm.New(t).Chip(t), dir: filepath.Join(t.TempDir(), "vpn"), clock: time.Now()}
	var err error
	if m.ak, err = m.NewAK(); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) keeper() *Keeper {
	k := New(m.dir, m)
	k.now = func() time.Time { return m.clock }
	return k
}

// issue is the collector: it certifies a key for a VPN client.
func (m *machine) issue(t *testing.T, r *agentv1.VpnKeyRequest, deviceID string, lifetime time.Duration) *agentv1.VpnCertificate {
	t.Helper()
	key, err := attest.ParseRequest(r.GetCsr())
	if err != nil {
		t.Fatal(err)
	}
	uri, err := mtls.URI(mtls.RoleVPN, deviceID)
	if err != nil {
		t.Fatal(err)
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "VPN CA"}, NotBefore: m.clock.Add(-day), NotAfter: m.clock.Add(9999 * day),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: m.clock, NotAfter: m.clock.Add(lifetime), URIs: []*url.URL{uri},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca, key, caKey)
	if err != nil {
		t.Fatal(err)
	}
	return &agentv1.VpnCertificate{Chain: [][]byte{der, caDER}}
}

// equip gets a certificate for 30 days.
func (m *machine) equip(t *testing.T) (sum []byte) {
	t.Helper()
	a, err := m.keeper().Begin(device)
	if err != nil {
		t.Fatal(err)
	}
	if sum, err = a.Complete(m.issue(t, a.Request(), device, 30*day)); err != nil {
		t.Fatal(err)
	}
	return sum
}

func wanted(sum []byte, renewBefore time.Duration) *agentv1.VpnKeyWanted {
	return &agentv1.VpnKeyWanted{RenewBefore: durationpb.New(renewBefore), CertificateSha256: sum}
}

func (m *machine) due(t *testing.T, deviceID string, w *agentv1.VpnKeyWanted) time.Duration {
	t.Helper()
	at, err := m.keeper().Due(deviceID, w)
	if err != nil {
		t.Fatal(err)
	}
	if at.IsZero() {
		return 0
	}
	return at.Sub(m.clock).Round(time.Minute)
}

func (m *machine) read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestProofIsWhatTheCollectorVerifies(t *testing.T) {
	m := newMachine(t)
	a, err := m.keeper().Begin(device)
	if err != nil {
		t.Fatal(err)
	}
	nonce, exporter := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	p, err := a.Prove(m, &agentv1.VpnKeyChallenge{Nonce: nonce}, exporter)
	if err != nil {
		t.Fatal(err)
	}
	r := a.Request()
	key, err := attest.ParseSigningKey(r.GetKeyPublic())
	if err != nil {
		t.Fatal(err)
	}
	ak, err := attest.ParseAttestationKey(m.ak.Area())
	if err != nil {
		t.Fatal(err)
	}
	if err := attest.Verify(key.Public, attest.VPNDigest(nonce, exporter, r.GetCsr()), p.GetSignature()); err != nil {
		t.Error(err)
	}
	if err := attest.VerifyCertify(ak, key, attest.Qualify(attest.PurposeVPN, nonce, exporter), p.GetCertify(), p.GetCertifySignature()); err != nil {
		t.Error(err)
	}
	if _, err := a.Prove(m, &agentv1.VpnKeyChallenge{Nonce: nonce[:16]}, exporter); err == nil {
		t.Error("signs for a short nonce")
	}
}

func TestWhenACertificateIsAskedFor(t *testing.T) {
	m := newMachine(t)
	if got := m.due(t, device, wanted(nil, 10*day)); got != 0 {
		t.Errorf("without one: in %s", got)
	}
	sum := m.equip(t)
	for name, tc := range map[string]struct {
		device string
		wanted *agentv1.VpnKeyWanted
		want   time.Duration
	}{
		"in time":                        {device, wanted(sum, 10*day), 20 * day},
		"never in the first half":        {device, wanted(sum, 29*day), 15 * day},
		"the collector knows no other":   {device, wanted(nil, 10*day), 0},
		"the collector knows a newer":    {device, wanted(make([]byte, 32), 10*day), 0},
		"the notebook is another device": {another, wanted(sum, 10*day), 0},
	} {
		if got := m.due(t, tc.device, tc.wanted); got != tc.want {
			t.Errorf("%s: in %s, want %s", name, got, tc.want)
		}
	}
	m.clock = m.clock.Add(30 * day)
	if got := m.due(t, device, wanted(sum, 10*day)); got != 0 {
		t.Errorf("one that has ended: in %s", got)
	}
}

// The files of another machine: its key does not load here, so there is none.
func TestCopiedFilesAreNoCertificate(t *testing.T) {
	m, private := newMachine(t), newMachine(t)
	sum := m.equip(t)
	if err := os.CopyFS(private.dir, os.DirFS(m.dir)); err != nil {
		t.Fatal(err)
	}
	if got := private.due(t, device, wanted(sum, 10*day)); got != 0 {
		t.Errorf("asked for in %s", got)
	}
	before := private.read(t, keyFile)
	private.equip(t)
	if bytes.Equal(before, private.read(t, keyFile)) {
		t.Error("the other machine's key stays")
	}
}

// A TPM that does not answer is no reason to make another key.
func TestSilentTPMChangesNothing(t *testing.T) {
	m := newMachine(t)
	sum := m.equip(t)
	before := m.read(t, keyFile)
	m.away = true
	if _, err := m.keeper().Due(device, wanted(sum, 10*day)); !errors.Is(err, chip.ErrUnavailable) {
		t.Errorf("due: %v", err)
	}
	if _, err := m.keeper().Begin(device); !errors.Is(err, chip.ErrUnavailable) {
		t.Errorf("begin: %v", err)
	}
	if !bytes.Equal(before, m.read(t, keyFile)) {
		t.Error("the key has changed")
	}
}

func TestKeyStaysForAYear(t *testing.T) {
	m := newMachine(t)
	m.equip(t)
	first := m.read(t, keyFile)
	m.clock = m.clock.Add(20 * day)
	m.equip(t)
	if !bytes.Equal(first, m.read(t, keyFile)) {
		t.Error("a renewal has made another key")
	}
	made := m.clock.Add(-keyLife - day)
	if err := os.Chtimes(filepath.Join(m.dir, keyFile), made, made); err != nil {
		t.Fatal(err)
	}
	m.equip(t)
	if bytes.Equal(first, m.read(t, keyFile)) {
		t.Error("a key of more than a year is certified again")
	}
}

func TestFilesAreForRootAndForOpenSSL(t *testing.T) {
	m := newMachine(t)
	m.equip(t)
	for name, kind := range map[string]string{keyFile: "TSS2 PRIVATE KEY", certificateFile: "CERTIFICATE"} {
		info, err := os.Stat(filepath.Join(m.dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
		if block, _ := pem.Decode(m.read(t, name)); block == nil || block.Type != kind {
			t.Errorf("%s holds no %s", name, kind)
		}
	}
	if info, err := os.Stat(m.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(filepath.Join(m.dir, nextFile)); err == nil {
		t.Error("the file of the change is left over")
	}
}

// Wherever a crash leaves the change, the next start has one of the pairs, whole.
func TestCrashLeavesAWholePair(t *testing.T) {
	m := newMachine(t)
	m.equip(t)
	oldKey, oldCertificate := m.read(t, keyFile), m.read(t, certificateFile)
	old := time.Unix(0, 0)
	if err := os.Chtimes(filepath.Join(m.dir, keyFile), old, old); err != nil {
		t.Fatal(err)
	}
	sum := m.equip(t)
	key, certificate := m.read(t, keyFile), m.read(t, certificateFile)
	next := append(bytes.Clone(key), certificate...)
	for name, files := range map[string]map[string][]byte{
		"before the key":         {keyFile: oldKey, certificateFile: oldCertificate, nextFile: next},
		"before the certificate": {keyFile: key, certificateFile: oldCertificate, nextFile: next},
		"before the end":         {keyFile: key, certificateFile: certificate, nextFile: next},
		"the very first":         {nextFile: next},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.RemoveAll(m.dir); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(m.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for file, content := range files {
				if err := os.WriteFile(filepath.Join(m.dir, file), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := m.due(t, device, wanted(sum, 10*day)); got != 20*day {
				t.Errorf("due in %s", got)
			}
			if !bytes.Equal(m.read(t, keyFile), key) || !bytes.Equal(m.read(t, certificateFile), certificate) {
				t.Error("key and certificate do not belong together")
			}
		})
	}
}

func TestWhatTheCollectorIssuesForOthersIsNotKept(t *testing.T) {
	m := newMachine(t)
	k := m.keeper()
	a, err := k.Begin(device)
	if err != nil {
		t.Fatal(err)
	}
	b, err := k.Begin(device)
	if err != nil {
		t.Fatal(err)
	}
	good := m.issue(t, a.Request(), device, 30*day)
	for name, answer := range map[string]*agentv1.VpnCertificate{
		"another key":    m.issue(t, b.Request(), device, 30*day),
		"another device": m.issue(t, a.Request(), another, 30*day),
		"garbage":        {Chain: [][]byte{{1, 2, 3}}},
		"another's CA":   {Chain: [][]byte{good.Chain[0], good.Chain[0]}},
		"a long chain":   {Chain: [][]byte{good.Chain[0], good.Chain[1], good.Chain[1], good.Chain[1], good.Chain[1]}},
	} {
		if _, err := a.Complete(answer); err == nil {
			t.Errorf("%s is kept", name)
		}
	}
	var refused *RefusedError
	if _, err := a.Complete(&agentv1.VpnCertificate{Refusal: "too many"}); !errors.As(err, &refused) || refused.Reason != "too many" {
		t.Errorf("refusal: %v", err)
	}
	if _, err := os.Stat(m.dir); err == nil {
		t.Error("something was written")
	}
	if _, err := a.Complete(good); err != nil {
		t.Error(err)
	}
}

func FuzzFiles(f *testing.F) {
	f.Add([]byte("-----BEGIN TSS2 PRIVATE KEY-----\nAA==\n-----END TSS2 PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if s := parse(content); s != nil && (s.key == nil && s.chain == nil || len(s.chain) == 0) {
			t.Error("something that is nothing")
		}
	})
}
