//go:build linux

package enrolment

import (
	"context"
	"io"
	"os"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"google.golang.org/protobuf/proto"

	"pfoertner/collector/attestation"
	"pfoertner/collector/endorsement"
	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
	"pfoertner/internal/e2e"
	"pfoertner/internal/e2e/swtpm"
	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// administration is an office that serves notebooks with a TPM of one maker,
// who makes programs (swtpm).
type administration struct {
	*office
	maker  *e2e.TPMMaker
	book   *attestation.Book
	bundle *endorsement.Bundle
	// seen is when devices reported last.
	seen map[string]time.Time
}

var unlimited = Limits{Attempts: Rate{1e6, 1e6}, AttemptsPerPeer: Rate{1e6, 1e6}, RefusalsPerPeer: Rate{1e6, 1e6}, Open: 10}

// newAdministration is for one test among many: making TPMs takes time.
func newAdministration(t *testing.T) *administration {
	t.Helper()
	t.Parallel()
	return administer(t)
}

func administer(t testing.TB) *administration {
	t.Helper()
	ad := &administration{maker: e2e.NewTPMMaker(t), seen: map[string]time.Time{}}
	h := newHouse(t)
	var err error
	ad.book, err = attestation.New(t.Context(), attestation.Options{Store: h.db, Device: h.Device, Now: h.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	ad.office = h.open(t, unlimited, ServerOptions{
		Book: ad.book, Endorsements: ad.believed,
		LastSeen: func(id string) time.Time { return ad.seen[id] },
	})
	return ad
}

func (ad *administration) believed() *endorsement.Bundle { return ad.bundle }

// believe lets the collector believe the maker, once it has made a TPM.
func (ad *administration) believe(t testing.TB) {
	t.Helper()
	bundle, err := endorsement.Shipped()
	if err != nil {
		t.Fatal(err)
	}
	var roots []byte
	for _, file := range ad.maker.Roots {
		pem, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, pem...)
	}
	if ad.bundle, _, err = bundle.AllowVirtual(roots); err != nil {
		t.Fatal(err)
	}
}

// notebook is a machine with a TPM, and the agent's keys in it.
type notebook struct {
	tpm     *swtpm.TPM
	chip    *chip.Chip
	ek      *chip.Endorsement
	ak, key *chip.Key
	serial  string
}

// notebook makes one with a TPM of the administration's maker.
func (ad *administration) notebook(t testing.TB, serial string) *notebook {
	t.Helper()
	n := withTPM(t, ad.maker.NewTPM(t), serial)
	// Its certificate is valid from now; the collector's clock stands.
	ad.clock.turn((max(0, time.Since(ad.clock.Now())) + 2*time.Second).Truncate(time.Second))
	if ad.bundle == nil {
		ad.believe(t)
	}
	return n
}

func withTPM(t testing.TB, tpm *swtpm.TPM, serial string) *notebook {
	t.Helper()
	n := &notebook{tpm: tpm, serial: serial}
	n.chip = chip.New(dial(tpm), nil)
	t.Cleanup(func() { _ = n.chip.Close() })
	n.install(t)
	return n
}

func dial(tpm *swtpm.TPM) func() (transport.TPMCloser, error) {
	return func() (transport.TPMCloser, error) { return linuxudstpm.Open(tpm.Socket) }
}

// install is what a fresh agent does: it reads who the TPM is, and makes keys.
func (n *notebook) install(t testing.TB) {
	t.Helper()
	n.ek, n.ak, n.key = must(n.chip.Endorsement())(t), must(n.chip.NewAK())(t), must(n.chip.NewKey())(t)
}

// reimage sets the notebook up anew, with TPM2_Clear.
func (n *notebook) reimage(t testing.TB) {
	t.Helper()
	if err := n.chip.Close(); err != nil {
		t.Fatal(err)
	}
	n.tpm.Clear(t)
	n.install(t)
}

// endorsement is how the inventory lists the notebook's endorsement key.
func (n *notebook) endorsement(t testing.TB) []byte {
	t.Helper()
	return must(attest.SPKI(must(n.ek.Key())(t)))(t)
}

func (n *notebook) fingerprint(t testing.TB) string {
	t.Helper()
	return must(attest.Fingerprint(must(n.ek.Key())(t)))(t)
}

// hello is what the notebook says first.
func (n *notebook) hello(t testing.TB, token string) *agentv1.Hello {
	t.Helper()
	return &agentv1.Hello{
		Capability: posture.Capability, AgentVersion: "test", Token: token, Csr: must(attest.NewRequest(n.key))(t),
		Machine: &agentv1.Machine{Vendor: "Lenovo", Model: "T14", Serial: n.serial},
		Tpm:     chip.Hello(n.ek, n.ak, n.key),
	}
}

// prove answers a challenge on the connection of ctx.
func (n *notebook) prove(ctx context.Context, hello *agentv1.Hello, c *agentv1.Challenge) (*agentv1.Proof, error) {
	exporter, err := mtls.Exporter(ctx)
	if err != nil {
		return nil, err
	}
	transcript, err := attest.Transcript(hello)
	if err != nil {
		return nil, err
	}
	return n.chip.Answer(n.ek, n.ak, n.key, c, exporter, transcript)
}

// prover answers a challenge; honest notebooks' is notebook.prove.
type prover func(ctx context.Context, hello *agentv1.Hello, c *agentv1.Challenge) (*agentv1.Proof, error)

// converse is an enrolment from hello to the answer.
func converse(t testing.TB, client agentv1.EnrolmentServiceClient, hello *agentv1.Hello, prove prover) (*agentv1.EnrolResponse, error) {
	t.Helper()
	stream, err := client.Enrol(t.Context())
	if err != nil {
		return nil, err
	}
	if err := stream.Send(helloMessage(hello)); err != nil && err != io.EOF {
		return nil, err
	}
	m, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	proof, err := prove(stream.Context(), hello, m.GetChallenge())
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&agentv1.EnrolRequest{Message: &agentv1.EnrolRequest_Proof{Proof: proof}})
	if err != nil && err != io.EOF {
		return nil, err
	}
	return stream.Recv()
}

// enrol is what an honest agent does.
func (ad *administration) enrol(t testing.TB, n *notebook, token string) (*agentv1.EnrolResponse, error) {
	t.Helper()
	return converse(t, ad.dial(t), n.hello(t, token), n.prove)
}

// mustEnrol returns the device that the notebook has become.
func (ad *administration) mustEnrol(t testing.TB, n *notebook, token string) *fleetv1.Device {
	t.Helper()
	answer, err := ad.enrol(t, n, token)
	if err != nil || answer.GetIssued() == nil {
		t.Fatalf("enrolling: %v, %v; refused: %+v", answer.GetPending(), err, ad.audited(t, recordRefused))
	}
	return ad.device(t, answer.GetIssued().GetDeviceId())
}

// expect puts an asset into the inventory, with the endorsement keys of
// notebooks as a delivery list has them.
func (ad *administration) expect(t testing.TB, asset, serial string, notebooks ...*notebook) {
	t.Helper()
	ad.stock(t, asset+";Lenovo;T14;"+serial+";;;;\n")
	ad.change.Lock()
	defer ad.change.Unlock()
	d := proto.CloneOf(ad.device(t, asset))
	for _, n := range notebooks {
		d.Asset.EndorsementKeysSha256 = append(d.Asset.EndorsementKeysSha256, n.endorsement(t))
	}
	if err := ad.save(t.Context(), []*fleetv1.Device{d}); err != nil {
		t.Fatal(err)
	}
}

// approve accepts the enrolment that waits, by two operators.
func (ad *administration) approve(t testing.TB, asset string, n *notebook) {
	t.Helper()
	ad.order(t, &fleetv1.Order{Device: asset, Reason: "compared", Action: &fleetv1.Order_Approve{Approve: &fleetv1.Approve{Fingerprint: n.fingerprint(t)}}})
}
