package intake

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/collector/attestation"
	"pfoertner/internal/attest"
	"pfoertner/internal/attest/attesttest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	observed = posturev1.ReadingState_READING_STATE_OBSERVED
	failed   = posturev1.ReadingState_READING_STATE_FAILED
)

// tpmNotebook is a notebook whose key is in a TPM.
type tpmNotebook struct {
	*notebook
	tpm *attesttest.TPM
	// tls is the key of the certificate.
	tls      attesttest.Key
	question []byte // of the newest question
}

// enrolledInTPM makes a device with a TPM known and active.
func (h *house) enrolledInTPM(t testing.TB, id string) *tpmNotebook {
	t.Helper()
	p := attesttest.New(t)
	tls := attesttest.NewKey(t)
	n := h.enrolledWith(t, id, tls.PrivateKey)
	h.door.mu.Lock()
	h.door.protection[id] = fleetv1.KeyProtection_KEY_PROTECTION_TPM
	h.door.mu.Unlock()
	h.book.Put(attestation.Known{DeviceID: id, EndorsementKey: p.EK.Area, AttestationKey: p.AK.Area, Since: time.Now()})
	return &tpmNotebook{notebook: n, tpm: p, tls: tls}
}

// connects opens a stream as a present agent does, and does not quote yet.
func (n *tpmNotebook) connects() *tpmNotebook {
	n.t.Helper()
	n.open()
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.ClientHello{Capability: 3}}})
	w := n.receive().GetWelcome()
	n.nonce, n.question = w.GetNonce(), w.GetQuoteNonce()
	if len(n.question) != 32 {
		n.t.Fatalf("asked for %x", n.question)
	}
	return n
}

// asked waits for the next question.
func (n *tpmNotebook) asked() *tpmNotebook {
	n.t.Helper()
	for n.question = nil; n.question == nil; {
		n.question = n.receive().GetCollect().GetQuoteNonce()
	}
	return n
}

// quotes answers the question.
func (n *tpmNotebook) quotes(change ...func(*agentv1.Quote)) *tpmNotebook {
	n.t.Helper()
	q := n.tpm.Quote(n.t, n.question, n.exporter())
	for _, f := range change {
		f(q)
	}
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Quote{Quote: q}})
	return n
}

// reports sends a full report, and waits until it is acknowledged: then all that
// was sent before it was worked on.
func (n *notebook) reports() *notebook {
	n.t.Helper()
	r := n.full(evidence("amd64"))
	n.send(message(r))
	for {
		if n.receive().GetAcknowledgement().GetSequence() == r.GetSequence() {
			return n
		}
	}
}

func (h *house) stands(t testing.TB, id string, state posturev1.ReadingState, reason string) {
	t.Helper()
	if r := h.book.Attestation(id).GetReading(); r.GetState() != state || r.GetReason() != reason {
		t.Errorf("%s stands at %v, want %s %q", id, r, state, reason)
	}
}

func TestQuoteIsJudgedBeforeTheFirstReport(t *testing.T) {
	h := newHouse(t)
	n := h.enrolledInTPM(t, deviceA).connects().quotes()
	n.reports()
	h.stands(t, deviceA, observed, "")
}

func TestWhoHasNoTPMIsNotAsked(t *testing.T) {
	h := newHouse(t)
	n := h.enrolled(t, deviceA).open()
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.ClientHello{Capability: 3}}})
	if w := n.receive().GetWelcome(); w == nil || len(w.GetQuoteNonce()) > 0 {
		t.Errorf("welcome %v", w)
	}
	if err := h.CollectAndWait(t.Context(), deviceA, true); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("collect: %v", err)
	}
}

func TestAgentThatCannotQuoteProvesNothing(t *testing.T) {
	h := newHouse(t)
	n := h.enrolledInTPM(t, deviceA)
	n.connects().quotes().reports()
	n.conn.Close()
	n.says(2) // goes on, as one that withholds what it can
	n.reports()
	h.stands(t, deviceA, failed, "the agent is too old to quote")
}

// Somebody on the line lets the quote of a first stream arrive when the notebook
// has given that up and quoted on a second one. It needs no key for that, so it
// must not have the notebook suspended.
func TestAttackQuoteHeldUpOnTheLineSuspendsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolledInTPM(t, deviceA).connects()
		heldUp := n.tpm.Quote(t, n.question, n.exporter())
		first := n.notebook.copied()
		time.Sleep(20 * time.Second)
		n.connects().quotes().reports()
		defer n.conn.Close()

		first.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Quote{Quote: heldUp}})
		first.ends(codes.Aborted)
		if a := h.alarmed(); len(a) > 0 {
			t.Errorf("alarms %v", a)
		}
		h.stands(t, deviceA, observed, "")
	})
}

func TestQuoteThatDoesNotComeInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolledInTPM(t, deviceA)
		n.connects().quotes().reports()
		n.conn.Close()
		synctest.Wait()
		n.connects() // the quote of before is still good, until this one is due
		defer n.conn.Close()
		time.Sleep(connectQuoteTimeout - time.Second)
		n.reports()
		h.stands(t, deviceA, observed, "")
		time.Sleep(2 * time.Second)
		h.stands(t, deviceA, failed, "no quote within 2m0s")
		n.quotes().reports() // too late: it is for a question that has ended
		h.stands(t, deviceA, failed, "no quote within 2m0s")
		began := time.Now()
		n.asked()
		if d := time.Since(began); d < 9*time.Minute-3*time.Second || d > 11*time.Minute {
			t.Errorf("asked again after %s", d)
		}
		n.quotes().reports()
		h.stands(t, deviceA, observed, "")
	})
}

func TestQuotesAreAskedForEveryEightHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolledInTPM(t, deviceA).connects().quotes()
		defer n.conn.Close()
		n.reports()
		began := time.Now()
		n.asked()
		if d := time.Since(began); d < 7*time.Hour+12*time.Minute || d > 8*time.Hour+48*time.Minute {
			t.Errorf("asked after %s", d)
		}
		time.Sleep(quoteTimeout - time.Second)
		h.stands(t, deviceA, observed, "")
		n.quotes().reports()
		time.Sleep(2 * time.Second)
		h.stands(t, deviceA, observed, "")
	})
}

func TestQuestionsAreSpreadOut(t *testing.T) {
	times := map[time.Duration]int{}
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolledInTPM(t, deviceA).connects()
		defer n.conn.Close()
		for range 10 {
			n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Quote{Quote: &agentv1.Quote{Nonce: n.question, Failure: "busy"}}})
			began := time.Now()
			n.asked()
			times[time.Since(began)]++
		}
	})
	if len(times) < 5 {
		t.Errorf("asked after %v", times)
	}
}

func TestTPMThatDoesNotQuoteKeepsItsStream(t *testing.T) {
	h := newHouse(t)
	n := h.enrolledInTPM(t, deviceA).connects()
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Quote{Quote: &agentv1.Quote{Nonce: n.question, Failure: "TPM is not available"}}})
	n.reports()
	h.stands(t, deviceA, failed, "the notebook does not quote: TPM is not available")
	if len(h.alarmed()) > 0 {
		t.Error("alarm")
	}
}

func TestQuestionIsAnsweredOnce(t *testing.T) {
	for name, send := range map[string]func(n *tpmNotebook){
		"replayed":  func(n *tpmNotebook) { n.quotes().quotes() },
		"not asked": func(n *tpmNotebook) { n.question = make([]byte, 32); n.quotes() },
		"no nonce":  func(n *tpmNotebook) { n.question = nil; n.quotes() },
		"of another stream": func(n *tpmNotebook) {
			first := n.question
			n.conn.Close()
			n.connects()
			n.question = first
			n.quotes()
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newHouse(t).enrolledInTPM(t, deviceA).connects()
			send(n)
			n.ends(codes.InvalidArgument)
		})
	}
}

func TestQuoteThatDoesNotVerifyEndsTheStream(t *testing.T) {
	for name, quote := range map[string]func(n *tpmNotebook) *agentv1.Quote{
		"another connection": func(n *tpmNotebook) *agentv1.Quote { return n.tpm.Quote(n.t, n.question, make([]byte, 32)) },
		"another TPM":        func(n *tpmNotebook) *agentv1.Quote { return attesttest.New(n.t).Quote(n.t, n.question, n.exporter()) },
		"another nonce": func(n *tpmNotebook) *agentv1.Quote {
			q := n.tpm.Quote(n.t, make([]byte, 32), n.exporter())
			q.Nonce = n.question
			return q
		},
		"other PCR values": func(n *tpmNotebook) *agentv1.Quote {
			q := n.tpm.Quote(n.t, n.question, n.exporter())
			q.PcrValues[0] = make([]byte, 32)
			return q
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			n := h.enrolledInTPM(t, deviceA)
			for range 2 {
				n.connects()
				n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Quote{Quote: quote(n)}})
				n.ends(codes.PermissionDenied)
			}
			h.stands(t, deviceA, failed, "the TPM's statement does not verify")
			if k := h.shelf.kinds("alarm.attestation"); k != 1 { // not one for every attempt
				t.Errorf("%d records", k)
			}
			if len(h.alarmed()) > 0 {
				t.Error("the device is suspended")
			}
		})
	}
}

func TestQuoteThatCannotBeStoredEndsTheStream(t *testing.T) {
	h := newHouse(t)
	n := h.enrolledInTPM(t, deviceA).connects()
	h.shelf.err = errors.New("disk full")
	n.quotes().ends(codes.Unavailable)
	h.stands(t, deviceA, failed, "the TPM has never quoted")
}

// The TPM of a virtual machine was copied with its disk: whichever of the two
// comes second is found out by its clock, however long after the other.
func TestCopiedTPMSuspendsTheDevice(t *testing.T) {
	h := newHouse(t)
	n := h.enrolledInTPM(t, deviceA)
	clone := *n.tpm
	n.tpm.Clock.Milliseconds += 1000
	n.connects().quotes().reports()
	n.conn.Close()
	copied := *n.notebook
	other := &tpmNotebook{notebook: &copied, tpm: &clone, tls: n.tls}
	other.connects().quotes().ends(codes.PermissionDenied)
	if a := h.alarmed(); len(a) != 1 || a[0].id != deviceA || a[0].kind != "cloned" || !strings.Contains(a[0].detail, "ms cannot come after") {
		t.Errorf("alarms %v", a)
	}
	for _, n := range []*tpmNotebook{n, other} {
		if err := connect(t, h, pairOf(n.notebook)); status.Code(err) != codes.Unavailable {
			t.Errorf("after the alarm: %v", err)
		}
	}
}

func TestCollectOnDemandWaitsForReportAndQuote(t *testing.T) {
	for name, tc := range map[string]struct {
		quote  bool
		answer func(n *tpmNotebook)
		code   codes.Code
	}{
		"report":           {false, func(n *tpmNotebook) { n.reports() }, codes.OK},
		"report and quote": {true, func(n *tpmNotebook) { n.asked().quotes().reports() }, codes.OK},
		"quote and report": {true, func(n *tpmNotebook) { n.asked().reports(); n.quotes() }, codes.OK},
		"no quote": {true, func(n *tpmNotebook) {
			n.asked()
			n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Quote{Quote: &agentv1.Quote{Nonce: n.question, Failure: "busy"}}})
			n.reports()
		}, codes.FailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				defer h.server.Stop()
				n := h.enrolledInTPM(t, deviceA).connects().quotes()
				defer n.conn.Close()
				n.reports()
				time.Sleep(time.Minute)
				done := make(chan error, 1)
				go func() { done <- h.CollectAndWait(t.Context(), deviceA, tc.quote) }()
				synctest.Wait()
				old := n.full(evidence("amd64"))
				old.CollectedAgo.Seconds = 30 // was read before the request
				time.Sleep(29 * time.Second)
				n.send(message(old))
				synctest.Wait()
				select {
				case err := <-done:
					t.Fatalf("before it was answered: %v", err)
				default:
				}
				tc.answer(n)
				if err := <-done; status.Code(err) != tc.code {
					t.Errorf("ended with %v", err)
				}
			})
		})
	}
	if err := newHouse(t).CollectAndWait(t.Context(), deviceB, false); status.Code(err) != codes.Unavailable {
		t.Errorf("offline: %v", err)
	}
}

// waiting counts who waits for what the device was asked for.
func (n *notebook) waiting(h *house) int {
	st := h.session(n.id)
	st.waiting.Lock()
	defer st.waiting.Unlock()
	return len(st.waiters)
}

func TestCollectOnDemandEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolledInTPM(t, deviceA).connects().quotes()
		n.reports()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if err := h.CollectAndWait(ctx, deviceA, true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nobody answers: %v", err)
		}
		if w := n.waiting(h); w > 0 {
			t.Errorf("%d still wait", w)
		}
		go func() {
			time.Sleep(time.Second)
			n.conn.Close()
		}()
		if err := h.CollectAndWait(t.Context(), deviceA, true); status.Code(err) != codes.Unavailable {
			t.Errorf("it goes: %v", err)
		}
	})
}

// FuzzQuoteMessage feeds the path of a quote what a device may send.
func FuzzQuoteMessage(f *testing.F) {
	h := newHouse(f)
	n := h.enrolledInTPM(f, deviceA)
	ctx := h.overTLS(f, n.notebook)
	f.Add([]byte("message"), []byte("signature"), []byte("value"), []byte("log"), "failure")
	q := n.tpm.Quote(f, make([]byte, 32), make([]byte, 32))
	f.Add(q.GetMessage(), q.GetSignature(), q.GetPcrValues()[0], q.GetEventLog(), "")
	f.Fuzz(func(t *testing.T, message, signature, value, log []byte, failure string) {
		stream := &rawStream{ctx: ctx}
		st := newSession(h.Service, stream, deviceA, nil, nil, nil, func(error) {})
		st.questions.quotes = true
		nonce := st.question(ctx, time.Hour)
		defer st.questions.stop()
		err := st.quote(ctx, &agentv1.Quote{
			Nonce: nonce, Message: message, Signature: signature, PcrValues: [][]byte{value}, EventLog: log, Failure: failure,
		})
		if code := status.Code(err); len(message) > 0 && code != codes.PermissionDenied || len(message) == 0 && code != codes.OK {
			t.Errorf("quote: %v", err)
		}
		if h.book.Attestation(deviceA).GetReading().GetState() != failed {
			t.Error("it proves something")
		}
	})
}

// renewInTPM goes through with a renewal by a key in the TPM.
func (n *tpmNotebook) renewInTPM(key attesttest.Key, change ...func(*agentv1.RenewalProof, []byte)) {
	n.t.Helper()
	csr, err := attest.NewRequest(key)
	if err != nil {
		n.t.Fatal(err)
	}
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Renewal{Renewal: &agentv1.RenewalRequest{Csr: csr, TlsKeyPublic: key.Area}}})
	nonce := n.challenged()
	sig, err := attest.Sign(key, attest.RenewDigest(nonce, n.exporter(), csr))
	if err != nil {
		n.t.Fatal(err)
	}
	proof := &agentv1.RenewalProof{Signature: sig}
	proof.Certify, proof.CertifySignature = n.tpm.Certify(n.t, key, attest.Qualify(attest.PurposeCertify, nonce, n.exporter()))
	for _, f := range change {
		f(proof, nonce)
	}
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_RenewalProof{RenewalProof: proof}})
}

func (n *tpmNotebook) challenged() []byte {
	n.t.Helper()
	for {
		m := n.receive()
		if c := m.GetRenewalChallenge(); c != nil {
			return c.GetNonce()
		}
	}
}

func (n *tpmNotebook) issued() *agentv1.Issued {
	n.t.Helper()
	for {
		if i := n.receive().GetIssued(); i != nil {
			return i
		}
	}
}

func TestRenewalInTheTPM(t *testing.T) {
	for name, same := range map[string]bool{"the same key": true, "a new key": false} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			n := h.enrolledInTPM(t, deviceA).connects().quotes()
			key := n.tls
			if !same {
				key = attesttest.NewKey(t)
			}
			clock := n.tpm.Clock
			n.renewInTPM(key)
			chain := n.issued().GetChain()
			if k, _ := h.book.Known(deviceA); k.Clock == clock {
				t.Error("the clock of the certification is not remembered")
			}
			renewed := &tpmNotebook{notebook: &notebook{t: t, house: h, id: deviceA, key: key.PrivateKey, chain: chain}, tpm: n.tpm, tls: key}
			n.conn.Close()
			renewed.connects().quotes().reports()
		})
	}
}

func TestRenewalOfATPMThatProvesNothing(t *testing.T) {
	for name, change := range map[string]func(n *tpmNotebook, p *agentv1.RenewalProof, nonce []byte){
		"no certification": func(_ *tpmNotebook, p *agentv1.RenewalProof, _ []byte) { p.Certify = nil },
		"of another key": func(n *tpmNotebook, p *agentv1.RenewalProof, nonce []byte) {
			p.Certify, p.CertifySignature = n.tpm.Certify(n.t, attesttest.NewKey(n.t), attest.Qualify(attest.PurposeCertify, nonce, n.exporter()))
		},
		"for another purpose": func(n *tpmNotebook, p *agentv1.RenewalProof, nonce []byte) {
			p.Certify, p.CertifySignature = n.tpm.Certify(n.t, n.tls, attest.Qualify(attest.PurposeVPN, nonce, n.exporter()))
		},
		"for another connection": func(n *tpmNotebook, p *agentv1.RenewalProof, nonce []byte) {
			p.Certify, p.CertifySignature = n.tpm.Certify(n.t, n.tls, attest.Qualify(attest.PurposeCertify, nonce, make([]byte, 32)))
		},
		"by another TPM": func(n *tpmNotebook, p *agentv1.RenewalProof, nonce []byte) {
			p.Certify, p.CertifySignature = attesttest.New(n.t).Certify(n.t, n.tls, attest.Qualify(attest.PurposeCertify, nonce, n.exporter()))
		},
		"without the key": func(_ *tpmNotebook, p *agentv1.RenewalProof, _ []byte) { p.Signature = []byte("x") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			n := h.enrolledInTPM(t, deviceA).connects()
			before := h.door.key[deviceA]
			n.renewInTPM(n.tls, func(p *agentv1.RenewalProof, nonce []byte) { change(n, p, nonce) })
			n.ends(codes.PermissionDenied)
			if !bytes.Equal(h.door.key[deviceA], before) || len(h.door.previous) > 0 {
				t.Error("the key was replaced")
			}
			if len(h.alarmed()) > 0 {
				t.Error("the device is suspended")
			}
		})
	}
}

func TestRenewalByACopiedTPMSuspendsTheDevice(t *testing.T) {
	h := newHouse(t)
	n := h.enrolledInTPM(t, deviceA)
	clone := *n.tpm
	n.tpm.Clock.Milliseconds += 1000
	n.connects().quotes().reports()
	n.tpm = &clone
	n.renewInTPM(n.tls)
	n.ends(codes.PermissionDenied)
	if a := h.alarmed(); len(a) != 1 || a[0].kind != "cloned" {
		t.Errorf("alarms %v", a)
	}
}

// Malware with the rights of the agent could ask for a key that it can carry
// away.
func TestRenewalDownToSoftwareIsRefused(t *testing.T) {
	h := newHouse(t)
	n := h.enrolledInTPM(t, deviceA).connects()
	_, csr := freshKey(t)
	n.askRenewal(csr)
	n.ends(codes.PermissionDenied)
	if k := h.shelf.kinds("alarm.downgrade"); k != 1 {
		t.Errorf("%d records", k)
	}
	// A key whose area is not what a TPM keeps to itself.
	n.connects()
	csr, err := attest.NewRequest(n.tls)
	if err != nil {
		t.Fatal(err)
	}
	area := bytes.Clone(n.tls.Area)
	area[7] ^= 2 // fixedTPM
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Renewal{Renewal: &agentv1.RenewalRequest{Csr: csr, TlsKeyPublic: area}}})
	n.ends(codes.InvalidArgument)
}

func TestCertificateInSoftwareLivesShorter(t *testing.T) {
	h := newHouse(t)
	_, issued := h.enrolled(t, deviceA).hello().renew()
	if d := lifetime(t, issued); d < 23*time.Hour || d > 25*time.Hour {
		t.Errorf("in software it lives %s", d)
	}
	n := h.enrolledInTPM(t, deviceB).connects()
	n.renewInTPM(n.tls)
	if d := lifetime(t, n.issued()); d < 71*time.Hour || d > 73*time.Hour {
		t.Errorf("in the TPM it lives %s", d)
	}
}

func TestSuspensionEndsARenewalThatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolledInTPM(t, deviceA).connects()
		defer n.conn.Close()
		before := h.door.key[deviceA]
		key := attesttest.NewKey(t)
		csr, err := attest.NewRequest(key)
		if err != nil {
			t.Fatal(err)
		}
		n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Renewal{Renewal: &agentv1.RenewalRequest{Csr: csr, TlsKeyPublic: key.Area}}})
		n.challenged()
		began := time.Now()
		h.door.set(deviceA, suspended)
		n.ends(codes.PermissionDenied)
		if d := time.Since(began); d > time.Second {
			t.Errorf("it took %s", d)
		}
		if !bytes.Equal(h.door.key[deviceA], before) {
			t.Error("renewed all the same")
		}
	})
}
