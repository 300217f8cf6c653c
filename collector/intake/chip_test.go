//go:build linux

package intake

import (
	"bytes"
	"crypto/tls"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/collector/attestation"
	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
	"pfoertner/internal/e2e/swtpm"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// machine is a notebook with a real TPM program, reached as the agent reaches
// the one of its machine.
type machine struct {
	*notebook
	tpm  *swtpm.TPM
	chip *chip.Chip
	ak   *chip.Key
	tls  *chip.Key
}

// machine makes a device with a TPM known and active.
func (h *house) machine(t testing.TB, id string) *machine {
	t.Helper()
	m := &machine{tpm: swtpm.New(t)}
	m.chip = m.tpm.Chip(t)
	m.ak, m.tls = must(m.chip.NewAK())(t), must(m.chip.NewKey())(t)
	ek := must(m.chip.Endorsement())(t)
	m.notebook = h.certified(t, id, m.tls.Public())
	m.signer = m.tls
	h.door.mu.Lock()
	h.door.protection[id] = fleetv1.KeyProtection_KEY_PROTECTION_TPM
	h.door.mu.Unlock()
	h.book.Put(attestation.Known{DeviceID: id, EndorsementKey: ek.Area, AttestationKey: m.ak.Area(), Since: time.Now(), Virtual: true})
	return m
}

// switchedOn starts the machine's TPM with the keys that were made in it.
func (m *machine) switchedOn(ak, tls []byte) *machine {
	m.t.Helper()
	m.tpm.On(m.t)
	m.chip = m.tpm.Chip(m.t)
	m.ak, m.tls = must(m.chip.LoadKey(ak))(m.t), must(m.chip.LoadKey(tls))(m.t)
	m.signer = m.tls
	return m
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// copied is another machine, switched off, with a copy of the TPM's state, and of
// the agent's files.
func (m *machine) copied() *machine {
	m.t.Helper()
	return &machine{notebook: m.notebook.copied(), tpm: m.tpm.Copy(m.t)}
}

// quotes connects, and quotes as asked.
func (m *machine) quotes() *machine {
	m.t.Helper()
	m.open()
	m.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.ClientHello{Capability: 3}}})
	w := m.receive().GetWelcome()
	m.nonce = w.GetNonce()
	q := must(m.chip.Quote(m.ak, attest.QuotedPCRs(), attest.Qualify(attest.PurposeQuote, w.GetQuoteNonce(), m.exporter())))(m.t)
	m.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Quote{Quote: &agentv1.Quote{
		Nonce: w.GetQuoteNonce(), Message: q.Message, Signature: q.Signature, PcrValues: q.Values,
	}}})
	return m
}

// Two programs go on from one state. Which of them is the original nobody can
// tell: both are out.
func TestAttackCopiedVirtualTPM(t *testing.T) {
	h := newHouse(t)
	original := h.machine(t, deviceA)
	original.quotes().reports()
	original.leaves()
	ak, tlsKey := must(original.ak.Stored())(t), must(original.tls.Stored())(t)
	original.tpm.Off() // what is copied is the state of a machine that is switched off
	clone := original.copied()
	// Both are switched on: the same number of starts, each with time of its own.
	original.switchedOn(ak, tlsKey)
	clone.switchedOn(ak, tlsKey).quotes().reports()
	clone.leaves()
	clone.tpm.Off()
	// The clone is switched on once more, and the original is behind.
	clone.switchedOn(ak, tlsKey).quotes().reports()
	clone.leaves()
	original.quotes().ends(codes.PermissionDenied)
	if a := h.alarmed(); len(a) != 1 || a[0].kind != "cloned" {
		t.Fatalf("alarms %v", a)
	}
	for name, m := range map[string]*machine{"original": original, "clone": clone} {
		if err := connect(t, h, &tls.Certificate{Certificate: m.chain, PrivateKey: m.signer}); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAttestationKeyIsReplacedInTheTPM(t *testing.T) {
	for name, tc := range map[string]struct {
		key  func(m *machine) *chip.Key // that the new one is activated as
		ends codes.Code
	}{
		"in the same TPM": {func(m *machine) *chip.Key { return nil }, codes.OK},
		"in another TPM": {func(m *machine) *chip.Key {
			return must(swtpm.New(m.t).Chip(m.t).NewAK())(m.t)
		}, codes.PermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			m := h.machine(t, deviceA).quotes()
			next := must(m.chip.NewAK())(t)
			asked := next
			if foreign := tc.key(m); foreign != nil {
				asked = foreign
			}
			csr := must(attest.NewRequest(m.tls))(t)
			m.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Renewal{Renewal: &agentv1.RenewalRequest{
				Csr: csr, TlsKeyPublic: m.tls.Area(), AkPublic: asked.Area(),
			}}})
			var challenge *agentv1.RenewalChallenge
			for challenge == nil {
				challenge = m.receive().GetRenewalChallenge()
			}
			ek := must(m.chip.Endorsement())(t)
			secret, err := m.chip.Activate(next, ek, challenge.GetCredentialBlob(), challenge.GetEncryptedSecret())
			if (err != nil) != (asked != next) {
				t.Fatalf("activating: %v", err)
			}
			proof := &agentv1.RenewalProof{
				Signature:  must(attest.Sign(m.tls, attest.RenewDigest(challenge.GetNonce(), m.exporter(), csr)))(t),
				Activation: attest.Activation(secret, csr, m.exporter()),
			}
			proof.Certify, proof.CertifySignature, err = m.chip.Certify(m.ak, m.tls, attest.Qualify(attest.PurposeCertify, challenge.GetNonce(), m.exporter()))
			if err != nil {
				t.Fatal(err)
			}
			m.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_RenewalProof{RenewalProof: proof}})
			if tc.ends != codes.OK {
				m.ends(tc.ends)
				if k, _ := h.book.Known(deviceA); !bytes.Equal(k.AttestationKey, m.ak.Area()) {
					t.Error("the key was replaced")
				}
				return
			}
			for m.receive().GetIssued() == nil {
			}
			m.leaves()
			m.quotes().reports() // the answer was lost: the key of before is still good
			m.leaves()
			old := m.ak
			m.ak = next
			m.quotes().reports()
			m.leaves()
			m.ak = old
			m.quotes().ends(codes.PermissionDenied)
		})
	}
}

// BenchmarkConnect measures a connection up to the first acknowledgement: with a
// key in software, and with a key in the TPM and a quote. Their ratio is to be
// under 3.
func BenchmarkConnect(b *testing.B) {
	h := newHouse(b)
	software, tpm := h.enrolled(b, deviceA), h.machine(b, deviceB)
	ev := evidence("amd64")
	var inSoftware, inTPM time.Duration
	for b.Loop() {
		began := time.Now()
		software.says(3)
		software.awaited(ev)
		inSoftware += time.Since(began)
		software.leaves()
		began = time.Now()
		tpm.quotes()
		tpm.awaited(ev)
		inTPM += time.Since(began)
		tpm.leaves()
	}
	b.ReportMetric(float64(inSoftware.Microseconds())/float64(b.N), "µs/software")
	b.ReportMetric(float64(inTPM.Microseconds())/float64(b.N), "µs/tpm")
	b.ReportMetric(float64(inTPM)/float64(inSoftware), "ratio")
}

// awaited reports and waits for the acknowledgement.
func (n *notebook) awaited(ev *posturev1.Evidence) {
	n.t.Helper()
	n.send(message(n.full(ev)))
	for n.receive().GetAcknowledgement() == nil {
	}
}

// leaves closes the connection, and waits until the collector has seen it.
func (n *notebook) leaves() {
	n.t.Helper()
	n.conn.Close()
	ctx := within(n.t)
	for online := true; online; online, _, _ = n.house.Online(n.id) {
		if ctx.Err() != nil {
			n.t.Fatal("the collector does not see that the notebook has left")
		}
		runtime.Gosched()
	}
}
