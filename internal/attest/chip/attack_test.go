//go:build linux

package chip_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"google.golang.org/protobuf/proto"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/bootlog"
	"pfoertner/internal/attest/bootlog/bootlogtest"
	"pfoertner/internal/attest/chip"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// Each attack on the identity of a machine, with two TPMs as two PCs: ours, and
// that of somebody who wants in.

func TestAttackCopiedFilesOnAnotherPC(t *testing.T) {
	ours, theirs := newPC(t), newPC(t)
	for name, key := range map[string]*chip.Key{"TLS key": ours.newKey(t), "attestation key": ours.newAK(t)} {
		_, err := theirs.LoadKey(stored(t, key))
		if !errors.Is(err, chip.ErrForeign) || !errors.Is(err, tpm2.TPMRCIntegrity) {
			t.Errorf("%s: %v", name, err)
		}
		must(ours.LoadKey(stored(t, key)))(t)
	}
}

func TestAttackReimagedTPMKeepsItsIdentityButNoKeys(t *testing.T) {
	p := newPC(t)
	key := p.newKey(t)
	kept, ek := stored(t, key), p.endorsement(t)
	p.Clear(t)
	_, err := p.LoadKey(kept)
	wantError(t, err, chip.ErrForeign)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = key.Sign(nil, make([]byte, 32), crypto.SHA256)
	wantError(t, err, chip.ErrForeign)
	if again := p.endorsement(t); !bytes.Equal(again.Area, ek.Area) {
		t.Error("the endorsement key is another after TPM2_Clear")
	}
	e := newEnrolment(t, p)
	if _, err := e.verify(e.answer(t)); err != nil {
		t.Errorf("it cannot enrol again: %v", err)
	}
}

func TestAttackKeysOfAnotherKind(t *testing.T) {
	p := newPC(t)
	e := newEnrolment(t, p)
	csr := e.tls.Public().(*ecdsa.PublicKey)
	// Genuine keys of this TPM, in the wrong places.
	for name, change := range map[string]func(*agentv1.TpmIdentity){
		"attestation key is not restricted":       func(id *agentv1.TpmIdentity) { id.AkPublic = id.TlsKeyPublic },
		"attestation key can leave the TPM":       func(id *agentv1.TpmIdentity) { id.AkPublic = attribute(id.AkPublic, 3, 0x02) },
		"attestation key can move to a parent":    func(id *agentv1.TpmIdentity) { id.AkPublic = attribute(id.AkPublic, 3, 0x10) },
		"attestation key was made outside":        func(id *agentv1.TpmIdentity) { id.AkPublic = attribute(id.AkPublic, 3, 0x20) },
		"attestation key has part in the lockout": func(id *agentv1.TpmIdentity) { id.AkPublic = attribute(id.AkPublic, 2, 0x04) },
		"TLS key is restricted":                   func(id *agentv1.TpmIdentity) { id.TlsKeyPublic = id.AkPublic },
		"TLS key was made outside":                func(id *agentv1.TpmIdentity) { id.TlsKeyPublic = attribute(id.TlsKeyPublic, 3, 0x20) },
		"TLS key decrypts too":                    func(id *agentv1.TpmIdentity) { id.TlsKeyPublic = attribute(id.TlsKeyPublic, 1, 0x02) },
		"endorsement key is a storage key":        func(id *agentv1.TpmIdentity) { id.EkPublic = attest.StorageKey().Area },
		"certificate is for another key":          func(id *agentv1.TpmIdentity) { id.TlsKeyPublic = p.newKey(t).Area() },
	} {
		id := proto.Clone(e.hello.GetTpm()).(*agentv1.TpmIdentity)
		change(id)
		if _, err := attest.ParseClaim(id, csr); !errors.Is(err, attest.ErrKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// attribute flips an attribute of a public area: byte i of four.
func attribute(area []byte, i int, bit byte) []byte {
	changed := bytes.Clone(area)
	changed[4+i] ^= bit
	return changed
}

// A private PC with a genuine TPM claims to be ours: it can show our public
// endorsement key and certificate, but not open what is encrypted for it.
func TestAttackEndorsementKeyOfAnotherPC(t *testing.T) {
	ours, theirs := newPC(t), newPC(t)
	e := newEnrolment(t, theirs)
	genuine := e.ek
	e.ek = ours.endorsement(t)
	e.open(t)
	if _, err := theirs.Activate(e.ak, genuine, e.challenge.GetCredentialBlob(), e.challenge.GetEncryptedSecret()); err == nil {
		t.Error("a secret for another TPM was opened")
	}
	// Our own TPM, misused as an oracle, opens secrets for its own keys only.
	if _, err := ours.Activate(ours.newAK(t), e.ek, e.challenge.GetCredentialBlob(), e.challenge.GetEncryptedSecret()); err == nil {
		t.Error("a secret for another attestation key was opened")
	}
	// So the best they can send is a guess.
	a := forged(t, e, genuine)
	_, err := e.verify(a)
	wantError(t, err, attest.ErrActivation)
}

// forged is everything that a PC can prove, and a guessed secret.
func forged(t *testing.T, e *enrolment, genuine *chip.Endorsement) *agentv1.Proof {
	t.Helper()
	own := *e
	own.ek = genuine
	own.open(t)
	a := own.answer(t)
	nonce, quoteNonce := e.challenge.GetNonce(), e.challenge.GetQuoteNonce()
	a.Signature = must(attest.Sign(e.tls, attest.EnrolDigest(nonce, e.exporter, e.transcript)))(t)
	a.Certify, a.CertifySignature, _ = e.pc.Certify(e.ak, e.tls, attest.Qualify(attest.PurposeCertify, nonce, e.exporter))
	q := must(e.pc.Quote(e.ak, attest.QuotedPCRs(), attest.Qualify(attest.PurposeQuote, quoteNonce, e.exporter)))(t)
	a.Quote, a.QuoteSignature, a.PcrValues = q.Message, q.Signature, q.Values
	a.Activation = attest.Activation(make([]byte, 32), e.transcript, e.exporter)
	return a
}

// Old or relayed answers, part by part: each of them is noticed by itself.
func TestAttackReplayAndRelay(t *testing.T) {
	p := newPC(t)
	e := newEnrolment(t, p)
	old := e.answer(t)
	if _, err := e.verify(old); err != nil {
		t.Fatal(err)
	}
	e.open(t)
	fresh := e.answer(t)
	relayed := func() *agentv1.Proof { // the notebook's answer on a connection with the attacker
		other := *e
		other.exporter = bytes.Repeat([]byte{8}, 32)
		return other.answer(t)
	}()
	for name, tc := range map[string]struct {
		change func(a *agentv1.Proof)
		want   error
	}{
		"nothing":           {func(*agentv1.Proof) {}, nil},
		"old proof":         {func(a *agentv1.Proof) { become(a, old) }, attest.ErrActivation},
		"old activation":    {func(a *agentv1.Proof) { a.Activation = old.Activation }, attest.ErrActivation},
		"old signature":     {func(a *agentv1.Proof) { a.Signature = old.Signature }, attest.ErrProof},
		"old certify":       {func(a *agentv1.Proof) { takeCertify(a, old) }, attest.ErrReplay},
		"old quote":         {func(a *agentv1.Proof) { takeQuote(a, old) }, attest.ErrReplay},
		"relayed proof":     {func(a *agentv1.Proof) { become(a, relayed) }, attest.ErrActivation},
		"relayed signature": {func(a *agentv1.Proof) { a.Signature = relayed.Signature }, attest.ErrProof},
		"relayed certify":   {func(a *agentv1.Proof) { takeCertify(a, relayed) }, attest.ErrReplay},
		"relayed quote":     {func(a *agentv1.Proof) { takeQuote(a, relayed) }, attest.ErrReplay},
		"quote in place of certify": {func(a *agentv1.Proof) {
			a.Certify, a.CertifySignature = a.Quote, a.QuoteSignature
		}, attest.ErrStatement},
		"certify in place of quote": {func(a *agentv1.Proof) {
			a.Quote, a.QuoteSignature = a.Certify, a.CertifySignature
		}, attest.ErrStatement},
		"certify, changed":             {func(a *agentv1.Proof) { a.Certify[20] ^= 1 }, attest.ErrStatement},
		"quote, changed":               {func(a *agentv1.Proof) { a.Quote[len(a.Quote)-1] ^= 1 }, attest.ErrStatement},
		"other values":                 {func(a *agentv1.Proof) { a.PcrValues[3] = make([]byte, 31) }, attest.ErrPCRs},
		"values in another order":      {func(a *agentv1.Proof) { a.PcrValues[0], a.PcrValues[1] = make([]byte, 32), bytes.Repeat([]byte{1}, 32) }, attest.ErrPCRs},
		"too few values":               {func(a *agentv1.Proof) { a.PcrValues = a.PcrValues[:7] }, attest.ErrPCRs},
		"for another purpose":          {func(a *agentv1.Proof) { recertify(t, e, a, e.tls, attest.PurposeVPN) }, attest.ErrReplay},
		"certify of another key":       {func(a *agentv1.Proof) { recertify(t, e, a, p.newKey(t), attest.PurposeCertify) }, attest.ErrOtherKey},
		"by another attestation key":   {func(a *agentv1.Proof) { byAnotherAK(t, e, a) }, attest.ErrStatement},
		"quote of other PCRs":          {func(a *agentv1.Proof) { requote(t, e, a, 0, 2, 4, 8, 11, 12, 13, 14) }, attest.ErrPCRs},
		"quote of fewer PCRs":          {func(a *agentv1.Proof) { requote(t, e, a, 0, 2, 4, 11, 12, 13, 14) }, attest.ErrPCRs},
		"quote of more PCRs":           {func(a *agentv1.Proof) { requote(t, e, a, 0, 1, 2, 4, 7, 11, 12, 13, 14) }, attest.ErrPCRs},
		"an empty proof":               {func(a *agentv1.Proof) { proto.Reset(a) }, attest.ErrActivation},
		"a proof by the software only": {func(a *agentv1.Proof) { become(a, &agentv1.Proof{Signature: a.GetSignature()}) }, attest.ErrActivation},
	} {
		a := proto.CloneOf(fresh)
		tc.change(a)
		_, err := e.verify(a)
		if tc.want == nil && err != nil || !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
}

func become(a, from *agentv1.Proof) {
	proto.Reset(a)
	proto.Merge(a, from)
}

func takeCertify(a, from *agentv1.Proof) {
	a.Certify, a.CertifySignature = from.GetCertify(), from.GetCertifySignature()
}

func takeQuote(a, from *agentv1.Proof) {
	a.Quote, a.QuoteSignature = from.GetQuote(), from.GetQuoteSignature()
}

func recertify(t *testing.T, e *enrolment, a *agentv1.Proof, key *chip.Key, purpose attest.Purpose) {
	t.Helper()
	var err error
	a.Certify, a.CertifySignature, err = e.pc.Certify(e.ak, key, attest.Qualify(purpose, e.challenge.GetNonce(), e.exporter))
	if err != nil {
		t.Fatal(err)
	}
}

func byAnotherAK(t *testing.T, e *enrolment, a *agentv1.Proof) {
	t.Helper()
	other := *e
	other.ak = e.pc.newAK(t)
	recertify(t, &other, a, e.tls, attest.PurposeCertify)
}

func requote(t *testing.T, e *enrolment, a *agentv1.Proof, pcrs ...uint32) {
	t.Helper()
	q := must(e.pc.Quote(e.ak, pcrs, attest.Qualify(attest.PurposeQuote, e.challenge.GetQuoteNonce(), e.exporter)))(t)
	a.Quote, a.QuoteSignature = q.Message, q.Signature
	if len(q.Values) == len(a.PcrValues) {
		a.PcrValues = q.Values
	}
}

// A key that is not in the TPM has no name that a TPM would certify: here the
// certificate request is by the software key of somebody who also has our TPM
// at hand.
func TestAttackTLSKeyOutsideTheTPM(t *testing.T) {
	ours, theirs := newPC(t), newPC(t)
	e := newEnrolment(t, ours)
	e.tls = theirs.newKey(t) // any key with the right attributes, elsewhere
	e.open(t)
	_, _, err := ours.Certify(e.ak, e.tls, make([]byte, 32))
	wantError(t, err, chip.ErrForeign)
	own := *e
	own.tls = ours.newKey(t)
	a := own.answer(t)
	a.Signature = must(attest.Sign(e.tls, attest.EnrolDigest(e.challenge.GetNonce(), e.exporter, e.transcript)))(t)
	_, err = e.verify(a)
	wantError(t, err, attest.ErrOtherKey)
}

func TestAttackTamperedEventLog(t *testing.T) {
	p := newPC(t)
	off := bootlogtest.New()
	off.Variable(7, "SecureBoot", []byte{0}).Variable(7, "PK", []byte("platform key")).Separator(7).Separator(4)
	p.boot(t, off)
	e := newEnrolment(t, p)
	a := e.answer(t)
	if got := must(e.verify(a))(t); got.Boot.SecureBoot != bootlog.No {
		t.Fatalf("%+v, %v", got.Boot, got.BootError)
	}
	for name, log := range map[string][]byte{
		"of another machine": bootlogtest.SecureBoot().Log(),
		"with other data": bootlogtest.New().Variable(7, "SecureBoot", []byte{0}).Variable(7, "PK", []byte("platform key")).Separator(7).Separator(4).
			Edit(0, func(e *bootlogtest.Event) { e.Data = bootlogtest.VariableData("SecureBoot", []byte{1}) }).Log(),
		"none":     nil,
		"cut off":  p.Log[:len(p.Log)-1],
		"too long": make([]byte, bootlog.MaxBytes+1),
	} {
		a.EventLog = log
		got, err := e.verify(a)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Boot.SecureBoot != bootlog.Unknown || got.Boot.DB != nil {
			t.Errorf("%s: %+v", name, got.Boot)
		}
		wantError(t, got.BootError, bootlog.ErrLog)
	}
}

// A copied TPM state is the same TPM twice. The clock tells.
func TestAttackClonedTPM(t *testing.T) {
	first := newPC(t)
	ak := first.newAK(t)
	kept, public := stored(t, ak), must(attest.ParseAttestationKey(ak.Area()))(t)
	first.Off()
	copied := first.Copy(t)
	first.On(t)
	copied.On(t)
	second := pcWith(t, copied)
	clock := func(p *pc) attest.Clock {
		k := must(p.LoadKey(kept))(t)
		q := must(p.Quote(k, attest.QuotedPCRs(), make([]byte, 32)))(t)
		return must(attest.VerifyQuote(public, attest.QuotedPCRs(), make([]byte, 32), q.Message, q.Signature))(t).Clock
	}
	before := clock(first)
	first.powerCycle(t)
	seen := clock(first)
	if !seen.Follows(before) {
		t.Errorf("the original does not go on: %+v, %+v", before, seen)
	}
	if other := clock(second); other.Follows(seen) {
		t.Errorf("the copy goes on where the original is: %+v, %+v", seen, other)
	}
}
