//go:build linux

package enrolment

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"math/big"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/bootlog/bootlogtest"
	"pfoertner/internal/attest/chip"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// BenchmarkEnrolTPM is all work of verifying one enrolment, from Hello to the
// decision, with an answer that a TPM gave before. Beside it, in the same run,
// the bare signature and certificate operations that nobody can do without;
// ratio is how much of the whole those are. What is measured is the time of the
// processor, with the garbage collector's: of one core, whatever else runs. The
// bars are 300/s and 0.7.
func BenchmarkEnrolTPM(b *testing.B) {
	p := prepare(b)
	var whole, bare time.Duration
	n := 0
	for b.Loop() {
		start := spent(b)
		p.verify(b)
		between := spent(b)
		p.bare(b)
		whole, bare = whole+between-start, bare+spent(b)-between
		n++
	}
	b.ReportMetric(float64(n)/whole.Seconds(), "enrolments/s")
	b.ReportMetric(bare.Seconds()/whole.Seconds(), "ratio")
	b.ReportMetric(0, "ns/op")
}

// spent is the processor time of this process.
func spent(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// prepared is an enrolment of a notebook on the delivery list, whose TPM has
// answered.
type prepared struct {
	server   *Server
	hello    *agentv1.Hello
	exporter []byte
	proof    *agentv1.Proof
	// judge judges proof; it is of the challenge that proof answers.
	judge func(*agentv1.Proof) error

	issuing   *x509.Certificate
	ek        *rsa.PublicKey
	challenge *agentv1.Challenge
}

func prepare(b *testing.B) *prepared {
	b.Helper()
	ad := administer(b)
	n := ad.notebook(b, "PF1")
	log := bootlogtest.SecureBoot()
	for range 80 { // as long as logs are: 30 kB
		log.Raw(5, 0x80000006, make([]byte, 300))
	}
	boot(b, n, log)
	n.chip = chip.New(dial(n.tpm), func() ([]byte, error) { return log.Log(), nil })
	b.Cleanup(func() { _ = n.chip.Close() })
	n.install(b)
	ad.expect(b, "NB-1", "PF1", n)
	p := &prepared{
		server: NewServer(ServerOptions{Registry: ad.Registry, Book: ad.book, Endorsements: ad.believed, Now: ad.clock.Now}),
		hello:  n.hello(b, ""), exporter: bytes.Repeat([]byte{7}, 32),
		ek: must(n.ek.Key())(b).(*rsa.PublicKey),
	}
	a := must(readHello(p.hello))(b)
	var err error
	if p.challenge, p.judge, err = a.ask(p.exporter); err != nil {
		b.Fatal(err)
	}
	p.proof = must(n.chip.Answer(n.ek, n.ak, n.key, p.challenge, p.exporter, must(attest.Transcript(p.hello))(b)))(b)
	certificate := must(x509.ParseCertificate(n.ek.Certificates[0]))(b)
	for _, authority := range ad.bundle.Authorities() {
		if certificate.CheckSignatureFrom(authority.Certificate) == nil {
			p.issuing = authority.Certificate
		}
	}
	return p
}

// boot measures what a log says, as firmware and boot loaders do.
func boot(b *testing.B, n *notebook, log *bootlogtest.Builder) {
	b.Helper()
	tpm := must(dial(n.tpm)())(b)
	defer tpm.Close()
	for _, e := range log.Events {
		if e.Type == 3 { // measures nothing
			continue
		}
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(e.PCR), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: e.Digest}}},
		}.Execute(tpm)
		if err != nil {
			b.Fatal(err)
		}
	}
}

// verify is what the server does between the messages.
func (p *prepared) verify(b *testing.B) {
	a, err := readHello(p.hello)
	if err != nil {
		b.Fatal(err)
	}
	if _, _, err := a.ask(p.exporter); err != nil {
		b.Fatal(err)
	}
	if err := p.judge(p.proof); err != nil {
		b.Fatal(err)
	}
	c, err := p.server.consider(b.Context(), a)
	if err != nil {
		b.Fatal(err)
	}
	if r := decide(c.facts); r.outcome != issue {
		b.Fatalf("%+v: %v", r, c.doubts)
	}
}

// bare is: read the request and verify its signature, read the endorsement
// certificate and verify that of the authority below the root, encrypt to the
// endorsement key, verify proof, certification and quote.
func (p *prepared) bare(b *testing.B) {
	request, err := x509.ParseCertificateRequest(p.hello.GetCsr())
	if err != nil || request.CheckSignature() != nil {
		b.Fatal("request")
	}
	certificate, err := x509.ParseCertificate(p.hello.GetTpm().GetEkCertificates()[0])
	if err != nil || certificate.CheckSignatureFrom(p.issuing) != nil {
		b.Fatal("certificate")
	}
	if _, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, p.ek, make([]byte, 32), []byte("IDENTITY\x00")); err != nil {
		b.Fatal(err)
	}
	ak, err := attest.ParseAttestationKey(p.hello.GetTpm().GetAkPublic())
	if err != nil {
		b.Fatal(err)
	}
	transcript, err := attest.Transcript(p.hello)
	if err != nil {
		b.Fatal(err)
	}
	said := attest.EnrolDigest(p.challenge.GetNonce(), p.exporter, transcript)
	if !ecdsa.VerifyASN1(request.PublicKey.(*ecdsa.PublicKey), said, p.proof.GetSignature()) ||
		!signed(ak.Public, p.proof.GetCertify(), p.proof.GetCertifySignature()) ||
		!signed(ak.Public, p.proof.GetQuote(), p.proof.GetQuoteSignature()) {
		b.Fatal("proof")
	}
}

// signed verifies a TPMT_SIGNATURE by ECDSA with SHA-256.
func signed(key *ecdsa.PublicKey, message, signature []byte) bool {
	digest := sha256.Sum256(message)
	size := int(binary.BigEndian.Uint16(signature[4:]))
	r, s := signature[6:6+size], signature[8+size:]
	return ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(r), new(big.Int).SetBytes(s))
}
