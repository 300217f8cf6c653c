//go:build linux

package chip_test

import (
	"bytes"
	"crypto/ecdsa"
	"testing"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/bootlog"
	"pfoertner/internal/attest/bootlog/bootlogtest"
	"pfoertner/internal/attest/chip"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

func challengeFor(t testing.TB, ek *chip.Endorsement, ak, tls *chip.Key) (*agentv1.Challenge, *attest.Expectation) {
	t.Helper()
	claim, err := attest.ParseClaim(chip.Hello(ek, ak, tls), tls.Public().(*ecdsa.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	ch, e, err := claim.NewChallenge()
	if err != nil {
		t.Fatal(err)
	}
	return ch, e
}

// enrolment is one, between a machine and a collector, message by message.
type enrolment struct {
	pc       *pc
	ek       *chip.Endorsement
	ak, tls  *chip.Key
	exporter []byte

	hello       *agentv1.Hello
	transcript  []byte
	claim       *attest.Claim
	challenge   *agentv1.Challenge
	expectation *attest.Expectation
}

func newEnrolment(t testing.TB, p *pc) *enrolment {
	t.Helper()
	e := &enrolment{pc: p, ek: p.endorsement(t), ak: p.newAK(t), tls: p.newKey(t), exporter: bytes.Repeat([]byte{7}, 32)}
	e.open(t)
	return e
}

// open says hello, and has the collector ask.
func (e *enrolment) open(t testing.TB) {
	t.Helper()
	e.hello = &agentv1.Hello{Token: "token", Csr: must(attest.NewRequest(e.tls))(t), Tpm: chip.Hello(e.ek, e.ak, e.tls)}
	e.transcript = must(attest.Transcript(e.hello))(t)
	key := must(attest.ParseRequest(e.hello.GetCsr()))(t)
	e.claim = must(attest.ParseClaim(e.hello.GetTpm(), key))(t)
	var err error
	if e.challenge, e.expectation, err = e.claim.NewChallenge(); err != nil {
		t.Fatal(err)
	}
}

func (e *enrolment) answer(t testing.TB) *agentv1.Proof {
	t.Helper()
	return must(e.pc.Answer(e.ek, e.ak, e.tls, e.challenge, e.exporter, e.transcript))(t)
}

func (e *enrolment) verify(a *agentv1.Proof) (*attest.Attested, error) {
	return e.expectation.Verify(a, e.exporter, e.transcript)
}

func TestGenuineMachineEnrols(t *testing.T) {
	p, m := newPC(t), newMaker(t, "ACME")
	certificate := m.certificate(t, p.endorsementKey(t), "id:49465800")
	p.store(t, 0x01C00002, certificate)
	p.boot(t, bootlogtest.SecureBoot())
	e := newEnrolment(t, p)

	if got := e.claim.Certificates; len(got) != 1 || !bytes.Equal(got[0], certificate) {
		t.Errorf("certificates %x", got)
	}
	if e.hello.GetTpm().GetManufacturer() != "IBM" || e.hello.GetTpm().GetFirmwareVersion() == "" {
		t.Errorf("the TPM says it is by %q, firmware %q", e.hello.GetTpm().GetManufacturer(), e.hello.GetTpm().GetFirmwareVersion())
	}
	got, err := e.verify(e.answer(t))
	if err != nil {
		t.Fatal(err)
	}
	if got.BootError != nil || got.Boot.SecureBoot != bootlog.Yes || len(got.Boot.Loaders) != 2 {
		t.Errorf("boot %+v, %v", got.Boot, got.BootError)
	}
	if !bytes.Equal(got.PCRs[7], bootlogtest.SecureBoot().PCR(7)) {
		t.Errorf("PCR 7: %x", got.PCRs[7])
	}
	if len(must(e.claim.EndorsementHash())(t)) != 32 || len(must(e.claim.Fingerprint())(t)) != 29 {
		t.Error("the endorsement key has no hash or fingerprint")
	}
}

// A key for the VPN is certified like the TLS key, but cannot be taken for it.
func TestKeyForTheVPN(t *testing.T) {
	p := newPC(t)
	ak, vpn := p.newAK(t), p.newKey(t)
	public, key := must(attest.ParseAttestationKey(ak.Area()))(t), must(attest.ParseSigningKey(vpn.Area()))(t)
	nonce, exporter := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	message, signature, err := p.Certify(ak, vpn, attest.Qualify(attest.PurposeVPN, nonce, exporter))
	if err != nil {
		t.Fatal(err)
	}
	if err := attest.VerifyCertify(public, key, attest.Qualify(attest.PurposeVPN, nonce, exporter), message, signature); err != nil {
		t.Error(err)
	}
	wantError(t, attest.VerifyCertify(public, key, attest.Qualify(attest.PurposeCertify, nonce, exporter), message, signature), attest.ErrReplay)
}

// Without values the log alone must lead to the quote.
func TestQuoteIsOpenedByTheLogAlone(t *testing.T) {
	p := newPC(t)
	p.boot(t, bootlogtest.SecureBoot())
	e := newEnrolment(t, p)
	a := e.answer(t)
	a.PcrValues = nil
	got, err := e.verify(a)
	if err != nil || got.BootError != nil || got.Boot.SecureBoot != bootlog.Yes {
		t.Errorf("%+v, %v", got, err)
	}
	a.EventLog = bootlogtest.New().Log()
	got, err = e.verify(a)
	if err != nil || got.PCRs != nil || got.Boot.SecureBoot != bootlog.Unknown {
		t.Errorf("%+v, %v", got, err)
	}
	wantError(t, got.BootError, bootlog.ErrLog)
}

func TestManyPCRsAreQuoted(t *testing.T) {
	p := newPC(t)
	p.boot(t, bootlogtest.SecureBoot())
	all := make([]uint32, 24)
	for i := range all {
		all[i] = uint32(i)
	}
	q := must(p.Quote(p.newAK(t), all, make([]byte, 32)))(t)
	if len(q.Values) != 24 || !bytes.Equal(q.Values[7], bootlogtest.SecureBoot().PCR(7)) {
		t.Errorf("%x", q.Values)
	}
}

// What operating systems measure after the log has ended changes nothing.
func TestMeasurementsBesideTheLog(t *testing.T) {
	p := newPC(t)
	p.boot(t, bootlogtest.SecureBoot())
	log := p.Log
	p.boot(t, bootlogtest.New().Text(11, "enter-initrd"))
	p.Log = log
	e := newEnrolment(t, p)
	got, err := e.verify(e.answer(t))
	if err != nil || got.BootError != nil || got.Boot.SecureBoot != bootlog.Yes {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestClockFollowsThroughResets(t *testing.T) {
	p := newPC(t)
	ak := p.newAK(t)
	clock := func() attest.Clock {
		q := must(p.Quote(ak, attest.QuotedPCRs(), make([]byte, 32)))(t)
		public := must(attest.ParseAttestationKey(ak.Area()))(t)
		return must(attest.VerifyQuote(public, attest.QuotedPCRs(), make([]byte, 32), q.Message, q.Signature))(t).Clock
	}
	first := clock()
	if again := clock(); !again.Follows(first) {
		t.Errorf("%+v, then %+v", first, again)
	}
	p.powerCycle(t)
	if later := clock(); !later.Follows(first) || first.Follows(later) || later.ResetCount != first.ResetCount+1 {
		t.Errorf("%+v, after a reset %+v", first, later)
	}
}

func TestAnswerOnlyToProperChallenges(t *testing.T) {
	e := newEnrolment(t, newPC(t))
	for name, change := range map[string]func(*agentv1.Challenge){
		"short nonce":       func(c *agentv1.Challenge) { c.Nonce = c.Nonce[:31] },
		"no nonce to quote": func(c *agentv1.Challenge) { c.QuoteNonce = nil },
		"PCR 24":            func(c *agentv1.Challenge) { c.Pcrs = []uint32{24} },
		"PCRs in disorder":  func(c *agentv1.Challenge) { c.Pcrs = []uint32{7, 4} },
		"no secret":         func(c *agentv1.Challenge) { c.CredentialBlob = nil },
	} {
		e.open(t)
		change(e.challenge)
		if _, err := e.pc.Answer(e.ek, e.ak, e.tls, e.challenge, e.exporter, e.transcript); err == nil {
			t.Errorf("%s: answered", name)
		}
	}
}
