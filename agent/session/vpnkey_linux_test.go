package session

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/agent/identity"
	"pfoertner/agent/testcollector"
	"pfoertner/internal/attest"
	"pfoertner/internal/attest/attesttest"
	"pfoertner/internal/e2e/swtpm"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// vpnOffice is a collector that issues VPN certificates, on a stream that one
// notebook has opened and made its first report on.
type vpnOffice struct {
	*testcollector.Collector
	tpm    *swtpm.TPM
	state  *identity.State
	agent  *running
	log    *journal
	stream *testcollector.Stream
	nonce  []byte
}

func newVPNOffice(t *testing.T) *vpnOffice {
	t.Helper()
	c := newChipOffice(t)
	c.Listen()
	o := &vpnOffice{Collector: c.Collector, log: &journal{}, nonce: bytes.Repeat([]byte{3}, attest.NonceBytes)}
	o.tpm, o.state = c.device(t)
	o.agent = start(t, c.Collector, o.state, func(a *agent) { a.Log = slog.New(slog.NewTextHandler(o.log, nil)) })
	o.stream, _ = opened(t, c.Collector)
	return o
}

// journal is what an agent logs.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(line []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(line)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// says waits until the agent has logged something so many times.
func (j *journal) says(t *testing.T, text string, times int) {
	t.Helper()
	for ctx := testcollector.Within(t); strings.Count(j.String(), text) < times; runtime.Gosched() {
		if ctx.Err() != nil {
			t.Fatalf("it does not say %q:\n%s", text, j)
		}
	}
}

// wants tells the notebook that certificates are issued, and which is known.
func (o *vpnOffice) wants(t *testing.T, sum []byte) {
	t.Helper()
	o.stream.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnKeyWanted{VpnKeyWanted: &agentv1.VpnKeyWanted{
		RenewBefore: durationpb.New(time.Minute), CertificateSha256: sum,
	}}})
}

// asked waits for a request.
func (o *vpnOffice) asked(t *testing.T) *agentv1.VpnKeyRequest {
	t.Helper()
	m := o.stream.Take(t)
	if m.GetVpnKey() == nil {
		t.Fatalf("not a request for a VPN certificate: %v", m)
	}
	return m.GetVpnKey()
}

func (o *vpnOffice) challenges(t *testing.T) {
	t.Helper()
	o.stream.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnKeyChallenge{VpnKeyChallenge: &agentv1.VpnKeyChallenge{Nonce: o.nonce}}})
}

func (o *vpnOffice) answers(t *testing.T, c *agentv1.VpnCertificate) {
	t.Helper()
	o.stream.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnCertificate{VpnCertificate: c}})
}

// proven waits for the proof of a request and verifies it.
func (o *vpnOffice) proven(t *testing.T, r *agentv1.VpnKeyRequest) *ecdsa.PublicKey {
	t.Helper()
	p := o.stream.Take(t).GetVpnKeyProof()
	exporter, err := mtls.Exporter(o.stream.Context())
	if err != nil {
		t.Fatal(err)
	}
	key, err := attest.ParseSigningKey(r.GetKeyPublic())
	if err != nil {
		t.Fatal(err)
	}
	if err := attest.Verify(key.Public, attest.VPNDigest(o.nonce, exporter, r.GetCsr()), p.GetSignature()); err != nil {
		t.Errorf("by the VPN key: %v", err)
	}
	id, err := o.state.Load()
	if err != nil {
		t.Fatal(err)
	}
	if same, ok := id.Key.Public().(*ecdsa.PublicKey); !ok || same.Equal(key.Public) {
		t.Error("the VPN key is the device key")
	}
	if len(p.GetCertify()) == 0 || len(p.GetCertifySignature()) == 0 {
		t.Error("the TPM vouches for nothing")
	}
	return key.Public
}

func (o *vpnOffice) certificate(t *testing.T, key *ecdsa.PublicKey, device string) *agentv1.VpnCertificate {
	t.Helper()
	uri, err := mtls.URI(mtls.RoleVPN, device)
	if err != nil {
		t.Fatal(err)
	}
	return &agentv1.VpnCertificate{Chain: o.Devices.Issue(t, testcollector.Subject{URI: uri.String(), Public: key}).Certificate}
}

// hold has the TPM work on something until release.
func (o *vpnOffice) hold(t *testing.T) (release func()) {
	t.Helper()
	select {
	case o.agent.turn <- struct{}{}:
	case <-testcollector.Within(t).Done():
		t.Fatal("the TPM is busy for ever")
	}
	release = sync.OnceFunc(func() { <-o.agent.turn })
	t.Cleanup(release) // also of a test that failed: the agent's end waits for it
	return release
}

// ends waits for the end of the stream.
func (o *vpnOffice) ends(t *testing.T) {
	t.Helper()
	select {
	case <-o.stream.Gone():
	case <-testcollector.Within(t).Done():
		t.Fatal("the stream goes on")
	}
}

func (o *vpnOffice) id(t *testing.T) string {
	t.Helper()
	id, err := o.state.Load()
	if err != nil {
		t.Fatal(err)
	}
	return id.DeviceID
}

// kept is the certificate that VPN programs find; nil: none.
func (o *vpnOffice) kept(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(filepath.Dir(o.state.Path()), VPNDirectory, "certificate.pem"))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("certificate.pem holds %q", text)
	}
	return block.Bytes
}

func TestVPNCertificateIsAskedForProvenAndPutInPlace(t *testing.T) {
	o := newVPNOffice(t)
	o.wants(t, nil)
	request := o.asked(t)
	o.challenges(t)
	certificate := o.certificate(t, o.proven(t, request), o.id(t))
	o.answers(t, certificate)
	o.log.says(t, "VPN certificate in place", 1)
	sum := sha256.Sum256(certificate.GetChain()[0])
	o.wants(t, sum[:])
	o.asksNothing(t)
	if !bytes.Equal(o.kept(t), certificate.GetChain()[0]) {
		t.Error("the certificate is not in place")
	}
	// The collector has forgotten it: the same key is certified again.
	o.wants(t, nil)
	if again := o.asked(t); !bytes.Equal(again.GetKeyPublic(), request.GetKeyPublic()) {
		t.Error("another key is to be certified")
	}
}

// asksNothing lets the TPM answer something else: the notebook asks for no
// certificate until then.
func (o *vpnOffice) asksNothing(t *testing.T) {
	t.Helper()
	nonce := bytes.Repeat([]byte{8}, attest.NonceBytes)
	o.stream.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Collect{Collect: &agentv1.Collect{QuoteNonce: nonce}}})
	for reported, quoted := false, false; !reported || !quoted; {
		switch m := o.stream.Take(t); {
		case m.GetReport() != nil:
			reported = true
			o.stream.Acknowledge(t, m.GetReport())
		case bytes.Equal(m.GetQuote().GetNonce(), nonce):
			quoted = true
		default:
			t.Fatalf("the notebook says %v", m)
		}
	}
}

func TestVPNCertificateThatIsNoneChangesNothing(t *testing.T) {
	o := newVPNOffice(t)
	own := o.id(t)
	refusals := 0
	for name, answer := range map[string]func(key *ecdsa.PublicKey) *agentv1.VpnCertificate{
		"refused": func(*ecdsa.PublicKey) *agentv1.VpnCertificate { return &agentv1.VpnCertificate{Refusal: "too many"} },
		"of another notebook": func(key *ecdsa.PublicKey) *agentv1.VpnCertificate {
			return o.certificate(t, key, "0f9a2c1e-7c55-4e1c-9a54-3f2f0a0c7d22")
		},
		"for another key": func(*ecdsa.PublicKey) *agentv1.VpnCertificate {
			return o.certificate(t, &attesttest.NewKey(t).PublicKey, own)
		},
		"nonsense": func(*ecdsa.PublicKey) *agentv1.VpnCertificate { return &agentv1.VpnCertificate{Chain: [][]byte{{1}}} },
	} {
		t.Run(name, func(t *testing.T) {
			o.wants(t, nil)
			request := o.asked(t)
			o.challenges(t)
			o.answers(t, answer(o.proven(t, request)))
			refusals++
			o.log.says(t, "no VPN certificate", refusals)
			o.asksNothing(t) // but an hour later
			if c := o.kept(t); c != nil {
				t.Errorf("in place is %x", c)
			}
		})
	}
}

// The collector may change its mind while the TPM works.
func TestWhatTheCollectorWantsMeanwhileCounts(t *testing.T) {
	o := newVPNOffice(t)
	o.wants(t, nil)
	request := o.asked(t)
	o.challenges(t)
	certificate := o.certificate(t, o.proven(t, request), o.id(t))
	release := o.hold(t)
	o.answers(t, certificate)
	o.wants(t, nil) // it has forgotten it already
	isPresent(t, o.stream)
	release()
	o.asked(t)
}

// Everything else goes on while a TPM takes its time.
func TestSlowTPMThatMakesAVPNKeyHoldsUpNoStream(t *testing.T) {
	o := newVPNOffice(t)
	release := o.hold(t)
	o.wants(t, nil)
	isPresent(t, o.stream)
	release()
	request := o.asked(t)
	release = o.hold(t)
	o.challenges(t)
	isPresent(t, o.stream)
	release()
	key := o.proven(t, request)
	release = o.hold(t)
	o.answers(t, o.certificate(t, key, o.id(t)))
	isPresent(t, o.stream)
	if o.kept(t) != nil {
		t.Error("the certificate is in place out of turn")
	}
	release()
}

// A VPN certificate can wait; what the notebook reports cannot.
func TestTPMThatMakesNoVPNKeyEndsNoStream(t *testing.T) {
	o := newVPNOffice(t)
	o.tpm.Off()
	o.wants(t, nil)
	o.log.says(t, "VPN certificate is not asked for", 1)
	isPresent(t, o.stream)
	o.tpm.On(t)
	o.wants(t, nil)
	o.asked(t)
	o.tpm.Off()
	o.challenges(t)
	o.log.says(t, "VPN key is not proven", 1)
	o.agent.machine.change(func(m *machine) { m.encrypted = false }, "volumes")
	o.stream.Report(t)
}

func TestVPNMessagesThatNobodyAskedForEndTheStream(t *testing.T) {
	for name, say := range map[string]func(o *vpnOffice){
		"challenge":   func(o *vpnOffice) { o.challenges(t) },
		"certificate": func(o *vpnOffice) { o.answers(t, &agentv1.VpnCertificate{Chain: [][]byte{{1}}}) },
		"second challenge": func(o *vpnOffice) {
			o.wants(t, nil)
			o.asked(t)
			defer o.hold(t)()
			o.challenges(t)
			isPresent(t, o.stream)
			o.challenges(t)
			o.ends(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newVPNOffice(t)
			say(o)
			o.ends(t)
		})
	}
}

func TestSoftwareKeyGetsNoVPNCertificate(t *testing.T) {
	c := testcollector.Start(t)
	state := c.Enrolled(t, time.Hour)
	start(t, c, state)
	s, _ := opened(t, c)
	o := &vpnOffice{Collector: c, stream: s, state: state}
	o.wants(t, nil)
	o.asksNothing(t)
	if _, err := os.Stat(filepath.Join(filepath.Dir(state.Path()), VPNDirectory)); !os.IsNotExist(err) {
		t.Errorf("there is a directory for it: %v", err)
	}
}
