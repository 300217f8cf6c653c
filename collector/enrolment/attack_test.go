//go:build linux

package enrolment

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"pfoertner/collector/authority"
	"pfoertner/collector/endorsement"
	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
	"pfoertner/internal/e2e"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Each attack on enrolment, with real TPMs (swtpm) over real connections: ours,
// and that of somebody who wants in.

// refuses checks that an attempt was refused as all are, recorded as this, and
// made no device.
func (ad *administration) refuses(t *testing.T, record, reason string, attempt func() (*agentv1.EnrolResponse, error)) {
	t.Helper()
	before, devices := len(ad.audited(t, record)), len(ad.audited(t, "device.enrolled"))
	answer, err := attempt()
	if s := status.Convert(err); s.Code() != codes.PermissionDenied || s.Message() != "enrolment refused" || len(s.Details()) != 0 {
		t.Errorf("the stranger sees %v, %v", answer, err)
	}
	all := ad.audited(t, record)
	if len(all) != before+1 || all[before].Details["reason"] != reason {
		t.Errorf("recorded as %s: %+v, want %s", record, all[before:], reason)
	}
	if n := len(ad.audited(t, "device.enrolled")); n != devices {
		t.Errorf("%d devices more", n-devices)
	}
}

func (ad *administration) state(t testing.TB, asset string) fleetv1.AssetState {
	t.Helper()
	return ad.device(t, asset).GetAsset().GetState()
}

// A private PC with a genuine TPM and a token that was stolen.
func TestAttackStolenTokenOnAPrivatePC(t *testing.T) {
	ad := newAdministration(t)
	ours, private := ad.notebook(t, "PF1"), ad.notebook(t, "PF1")
	ad.expect(t, "NB-1", "PF1")
	ad.expect(t, "NB-2", "", ours)
	stolen := ad.token(t, "NB-1")
	for _, token := range []string{stolen, stolen, ""} {
		answer, err := ad.enrol(t, private, token)
		if err != nil || answer.GetPending() == nil || ad.state(t, "NB-1") != pending {
			t.Fatalf("%v, %v", answer, err)
		}
	}
	ad.order(t, &fleetv1.Order{Device: "NB-1", Action: &fleetv1.Order_Reject{Reject: &fleetv1.Reject{}}})
	ad.refuses(t, recordRefused, "endorsement_blocked", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, private, ad.token(t, "NB-1")) })
	// Where the endorsement key is known there is nothing to wait for.
	ad.refuses(t, recordConflict, "endorsement_conflict", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, private, ad.token(t, "NB-2")) })
	if ad.state(t, "NB-2") != expected {
		t.Error("anybody can suspend an asset by its token")
	}
}

func TestAttackPrivatePCWithoutAToken(t *testing.T) {
	ad := newAdministration(t)
	private := ad.notebook(t, "PF1")
	ad.expect(t, "NB-1", "PF1")
	ad.refuses(t, recordRefused, "endorsement_unknown", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, private, "") })
	ad.refuses(t, recordToken, "unknown", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, private, "PFT-AAAA") })
	if ad.state(t, "NB-1") != expected {
		t.Error("a stranger made something pending")
	}
}

func TestAttackSpoofedSerial(t *testing.T) {
	ad := newAdministration(t)
	ours, private := ad.notebook(t, "PF1"), ad.notebook(t, "SPOOFED")
	ad.expect(t, "NB-1", "PF1", ours)
	ad.expect(t, "NB-2", "PF2")
	ad.refuses(t, recordSerial, "serial", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, private, ad.token(t, "NB-2")) })
	ours.serial = "PF2"
	ad.refuses(t, recordSerial, "serial", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, ours, "") })
	// The right serial number proves nothing.
	private.serial = "PF1"
	ad.refuses(t, recordRefused, "endorsement_unknown", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, private, "") })
}

func TestAttackForgedEndorsementCertificate(t *testing.T) {
	ad := newAdministration(t)
	ours := ad.notebook(t, "")
	forged := withTPM(t, e2e.NewTPMMaker(t).NewTPM(t), "")
	ad.expect(t, "NB-1", "", forged)
	ad.expect(t, "NB-2", "")
	token := ad.token(t, "NB-2")
	for name, certificates := range map[string][][]byte{
		"by another maker of that name": forged.ek.Certificates,
		"of another endorsement key":    ours.ek.Certificates,
		"no certificate":                {[]byte("certificate")},
	} {
		t.Run(name, func(t *testing.T) {
			forged.ek.Certificates = certificates
			ad.refuses(t, recordEndorsed, "endorsement", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, forged, token) })
			if r := ad.lastAudit(t, recordEndorsed); r.AssetNumber != "NB-1" || r.Details["endorsement_key"] != forged.fingerprint(t) || r.Details["detail"] == "" {
				t.Errorf("audit: %+v", r)
			}
		})
	}
	if ad.state(t, "NB-1") != expected {
		t.Error("a forged certificate suspends an asset")
	}
	// The token is still good, when the missing authority has been added.
	if answer, err := ad.enrol(t, ours, token); err != nil || answer.GetPending() == nil {
		t.Errorf("%v, %v", answer, err)
	}
}

func TestAttackVirtualTPMWhereNoneIsAllowed(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n)
	shipped := must(endorsement.Shipped())(t)
	ad.bundle = shipped
	virtual := func(t *testing.T) {
		t.Helper()
		ad.refuses(t, recordEndorsed, "endorsement", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, n, "") })
		if detail := ad.lastAudit(t, recordEndorsed).Details["detail"]; !strings.Contains(detail, endorsement.ErrVirtual.Error()) {
			t.Errorf("recorded as %s", detail)
		}
	}
	virtual(t)
	n.ek.Certificates = nil // it still states who made it
	virtual(t)
}

// Old answers, whole and in parts, on a new connection with a new challenge.
func TestAttackReplay(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n)
	hello := n.hello(t, "")
	var old *agentv1.Proof
	_, err := converse(t, ad.dial(t), hello, func(ctx context.Context, hello *agentv1.Hello, c *agentv1.Challenge) (*agentv1.Proof, error) {
		var err error
		old, err = n.prove(ctx, hello, c)
		return old, err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, replay := range map[string]func(fresh *agentv1.Proof) *agentv1.Proof{
		"hello and proof": func(*agentv1.Proof) *agentv1.Proof { return old },
		"activation":      func(p *agentv1.Proof) *agentv1.Proof { p.Activation = old.GetActivation(); return p },
		"signature":       func(p *agentv1.Proof) *agentv1.Proof { p.Signature = old.GetSignature(); return p },
		"certify": func(p *agentv1.Proof) *agentv1.Proof {
			p.Certify, p.CertifySignature = old.GetCertify(), old.GetCertifySignature()
			return p
		},
		"quote": func(p *agentv1.Proof) *agentv1.Proof {
			p.Quote, p.QuoteSignature = old.GetQuote(), old.GetQuoteSignature()
			return p
		},
		"quoted values": func(p *agentv1.Proof) *agentv1.Proof {
			p.PcrValues[0] = make([]byte, 32)
			p.PcrValues[0][1] = 1
			return p
		},
		"software proof": func(p *agentv1.Proof) *agentv1.Proof { return &agentv1.Proof{Signature: p.GetSignature()} },
	} {
		t.Run(name, func(t *testing.T) {
			ad.refuses(t, recordRefused, "proof", func() (*agentv1.EnrolResponse, error) {
				return converse(t, ad.dial(t), hello, func(ctx context.Context, hello *agentv1.Hello, c *agentv1.Challenge) (*agentv1.Proof, error) {
					fresh, err := n.prove(ctx, hello, c)
					return replay(fresh), err
				})
			})
		})
	}
}

// A challenge is answered once: who guessed wrong does not guess again.
func TestAttackSecondAnswerToOneChallenge(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n)
	stream := must(ad.dial(t).Enrol(t.Context()))(t)
	hello := n.hello(t, "")
	if err := stream.Send(helloMessage(hello)); err != nil {
		t.Fatal(err)
	}
	challenge := must(stream.Recv())(t).GetChallenge()
	good := must(n.prove(stream.Context(), hello, challenge))(t)
	for _, proof := range []*agentv1.Proof{{Signature: good.GetSignature()}, good} {
		// Either may fail, as soon as the stream has ended.
		_ = stream.Send(&agentv1.EnrolRequest{Message: &agentv1.EnrolRequest_Proof{Proof: proof}})
	}
	if answer, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%v, %v", answer, err)
	}
	if ad.state(t, "NB-1") != expected {
		t.Error("enrolled")
	}
}

// manInTheMiddle is trusted by the notebook, for whatever reason, and passes its
// messages on over a connection of his own.
type manInTheMiddle struct {
	agentv1.UnimplementedEnrolmentServiceServer
	collector agentv1.EnrolmentServiceClient
	answer    chan error
}

func (m *manInTheMiddle) Enrol(victim enrolStream) error {
	collector, err := m.collector.Enrol(victim.Context())
	for range 2 { // hello and challenge, proof and certificate
		var from *agentv1.EnrolRequest
		if from, err = victim.Recv(); err != nil {
			break
		}
		if err = collector.Send(from); err != nil {
			break
		}
		var back *agentv1.EnrolResponse
		if back, err = collector.Recv(); err != nil {
			break
		}
		if err = victim.Send(back); err != nil {
			break
		}
	}
	m.answer <- err
	return err
}

func TestAttackRelayedConnection(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n)
	his := must(authority.Create(filepath.Join(t.TempDir(), "pki"), authority.Options{Addresses: []net.IP{net.IPv4(127, 0, 0, 1)}}))(t)
	man := &manInTheMiddle{collector: ad.dial(t), answer: make(chan error, 1)}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(mtls.ServerConfig(mtls.ServerOptions{
		Certificate: his.ServerCertificate, Clients: his.Devices(), Role: mtls.RoleDevice, Optional: true,
	}))))
	agentv1.RegisterEnrolmentServiceServer(server, man)
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	config := mtls.ClientConfig(mtls.ClientOptions{Servers: his.Servers(), ServerName: "127.0.0.1"})
	conn := must(grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(config))))(t)
	t.Cleanup(func() { conn.Close() })

	ad.refuses(t, recordRefused, "proof", func() (*agentv1.EnrolResponse, error) {
		return converse(t, agentv1.NewEnrolmentServiceClient(conn), n.hello(t, ""), n.prove)
	})
	if err := <-man.answer; status.Code(err) != codes.PermissionDenied {
		t.Errorf("the man in the middle got %v", err)
	}
}

// A private PC shows our endorsement key and certificates, which are no secret.
func TestAttackEndorsementKeyOfOurs(t *testing.T) {
	ad := newAdministration(t)
	ours, private := ad.notebook(t, ""), ad.notebook(t, "")
	ad.expect(t, "NB-1", "", ours)
	hello := private.hello(t, "")
	hello.Tpm = chip.Hello(ours.ek, private.ak, private.key)
	ad.refuses(t, recordRefused, "proof", func() (*agentv1.EnrolResponse, error) {
		return converse(t, ad.dial(t), hello, guess(t, private))
	})
}

// An attestation key of another TPM, with our TPM at hand: it does not open
// secrets for others' keys.
func TestAttackAttestationKeyOfAnotherTPM(t *testing.T) {
	ad := newAdministration(t)
	ours, private := ad.notebook(t, ""), ad.notebook(t, "")
	ad.expect(t, "NB-1", "", ours)
	hello := private.hello(t, "")
	hello.Tpm.EkPublic, hello.Tpm.EkCertificates = ours.ek.Area, ours.ek.Certificates
	var c *agentv1.Challenge
	ad.refuses(t, recordRefused, "proof", func() (*agentv1.EnrolResponse, error) {
		return converse(t, ad.dial(t), hello, func(ctx context.Context, hello *agentv1.Hello, challenge *agentv1.Challenge) (*agentv1.Proof, error) {
			c = challenge
			return guess(t, private)(ctx, hello, challenge)
		})
	})
	if _, err := ours.chip.Activate(ours.ak, ours.ek, c.GetCredentialBlob(), c.GetEncryptedSecret()); err == nil {
		t.Error("our TPM opened a secret for the attestation key of another")
	}
}

// guess proves everything that a machine can prove of its own TPM, and guesses
// the secret.
func guess(t testing.TB, n *notebook) prover {
	return func(ctx context.Context, hello *agentv1.Hello, c *agentv1.Challenge) (*agentv1.Proof, error) {
		exporter, transcript := must(mtls.Exporter(ctx))(t), must(attest.Transcript(hello))(t)
		certify, certifySignature, err := n.chip.Certify(n.ak, n.key, attest.Qualify(attest.PurposeCertify, c.GetNonce(), exporter))
		if err != nil {
			return nil, err
		}
		q := must(n.chip.Quote(n.ak, c.GetPcrs(), attest.Qualify(attest.PurposeQuote, c.GetQuoteNonce(), exporter)))(t)
		return &agentv1.Proof{
			Signature:  must(attest.Sign(n.key, attest.EnrolDigest(c.GetNonce(), exporter, transcript)))(t),
			Activation: attest.Activation(make([]byte, 32), transcript, exporter),
			Certify:    certify, CertifySignature: certifySignature,
			Quote: q.Message, QuoteSignature: q.Signature, PcrValues: q.Values,
		}, nil
	}
}

// Whoever is root on one of ours wants a certificate for a key that can be
// carried away.
func TestAttackKeyOutsideTheTPM(t *testing.T) {
	ad := newAdministration(t)
	ours, private := ad.notebook(t, ""), ad.notebook(t, "")
	ad.expect(t, "NB-1", "", ours)
	software := must(attest.NewKey())(t)

	request := ours.hello(t, "")
	request.Csr = must(attest.NewRequest(software))(t)
	elsewhere := ours.hello(t, "")
	elsewhere.Csr, elsewhere.Tpm.TlsKeyPublic = must(attest.NewRequest(private.key))(t), private.key.Area()
	unrestricted := ours.hello(t, "")
	unrestricted.Tpm.AkPublic = unrestricted.Tpm.GetTlsKeyPublic()

	ad.refuses(t, recordRefused, "tpm_keys", func() (*agentv1.EnrolResponse, error) {
		return converse(t, ad.dial(t), request, ours.prove)
	})
	ad.refuses(t, recordRefused, "tpm_keys", func() (*agentv1.EnrolResponse, error) {
		return converse(t, ad.dial(t), unrestricted, ours.prove)
	})
	// A key of the right kind, in another TPM: ours certifies only its own.
	ad.refuses(t, recordRefused, "proof", func() (*agentv1.EnrolResponse, error) {
		return converse(t, ad.dial(t), elsewhere, func(ctx context.Context, hello *agentv1.Hello, c *agentv1.Challenge) (*agentv1.Proof, error) {
			p, err := ours.prove(ctx, hello, c)
			if err != nil {
				return nil, err
			}
			exporter, transcript := must(mtls.Exporter(ctx))(t), must(attest.Transcript(hello))(t)
			p.Signature, err = attest.Sign(private.key, attest.EnrolDigest(c.GetNonce(), exporter, transcript))
			return p, err
		})
	})
}

func TestAttackTPMOfAnotherAsset(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n)
	ad.expect(t, "NB-2", "")
	first := ad.mustEnrol(t, n, "")
	conflict := func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, n, ad.token(t, "NB-2")) }
	ad.refuses(t, recordConflict, "endorsement_conflict", conflict)
	if ad.state(t, "NB-1") != active || ad.state(t, "NB-2") != expected || ad.lastAudit(t, recordConflict).AssetNumber != "NB-1" {
		t.Error("a conflict changes assets")
	}
	// Also when it was retired: it comes back as nothing else.
	ad.order(t, &fleetv1.Order{Device: first.GetId(), Action: &fleetv1.Order_Retire{Retire: &fleetv1.Retire{}}})
	ad.refuses(t, recordConflict, "endorsement_conflict", conflict)
	ad.refuses(t, recordRefused, "asset_retired", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, n, "") })
}

func TestAttackTPMOfASuspendedAsset(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n)
	ad.mustEnrol(t, n, "")
	token := ad.token(t, "NB-1")
	ad.order(t, &fleetv1.Order{Device: "NB-1", Action: &fleetv1.Order_Suspend{Suspend: &fleetv1.Suspend{}}})
	for _, token := range []string{"", token} {
		ad.refuses(t, recordRefused, "asset_suspended", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, n, token) })
	}
}

// TPM2_Clear, by somebody who found a notebook of ours: the endorsement key is
// still known, and that is not enough.
func TestAttackClearedTPM(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n)
	ad.mustEnrol(t, n, "")
	spent := ad.token(t, "NB-1")
	ad.mustEnrol(t, n, spent)
	n.reimage(t)
	ad.refuses(t, recordRefused, "reimage", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, n, "") })
	ad.refuses(t, recordToken, "used", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, n, spent) })
}

func TestAttackDowngradeToSoftware(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n) // never came
	ad.expect(t, "NB-2", "")
	ad.expect(t, "NB-3", "", ad.notebook(t, ""))
	ad.mustEnrol(t, n, "")
	ad.permit(t, "NB-1", "NB-3") // even so: the TPM has to be exchanged first
	for _, asset := range []string{"NB-1", "NB-2", "NB-3"} {
		ad.refuses(t, recordDowngrade, "downgrade", func() (*agentv1.EnrolResponse, error) {
			issued, err := newAttempt(t, ad.token(t, asset), "").try(t, ad.dial(t))
			return &agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Issued{Issued: issued}}, err
		})
	}
	if ad.state(t, "NB-1") != active {
		t.Error("a downgrade suspends the asset")
	}
}

func TestAttackTokenUsedTwice(t *testing.T) {
	ad := newAdministration(t)
	ours, private := ad.notebook(t, ""), ad.notebook(t, "")
	ad.expect(t, "NB-1", "", ours)
	token := ad.token(t, "NB-1")
	ad.mustEnrol(t, ours, token)
	ad.refuses(t, recordToken, "used", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, private, token) })
	if r := ad.lastAudit(t, recordToken); r.AssetNumber != "NB-1" || strings.Contains(r.Details["detail"], token) {
		t.Errorf("audit: %+v", r)
	}
}

// A software key can be copied: once its certificate has expired, only a token
// helps.
func TestAttackExpiredSoftwareKeyIsNotRecovered(t *testing.T) {
	ad := newAdministration(t)
	ad.expect(t, "NB-1", "")
	ad.permit(t, "NB-1")
	token := ad.token(t, "NB-1")
	a := newAttempt(t, token, "")
	must(a.try(t, ad.dial(t)))(t)
	ad.clock.turn(DefaultSoftwareLifetime)
	again := func(token string) func() (*agentv1.EnrolResponse, error) {
		hello := proto.CloneOf(a.hello)
		hello.Token = token
		return func() (*agentv1.EnrolResponse, error) {
			_, err := (&attempt{key: a.key, hello: hello}).try(t, ad.dial(t))
			return nil, err
		}
	}
	ad.refuses(t, recordRefused, "no_token", again(""))
	must(newAttempt(t, ad.token(t, "NB-1"), "").try(t, ad.dial(t)))(t)
}

// Who copied the key may have a token, too, that was made before: when two
// operators take the notebook back, it opens nothing.
func TestAttackTokenFromBeforeTheAlarm(t *testing.T) {
	ad := newAdministration(t)
	ad.expect(t, "NB-1", "")
	ad.permit(t, "NB-1")
	stolen := ad.token(t, "NB-1")
	must(newAttempt(t, ad.token(t, "NB-1"), "").try(t, ad.dial(t)))(t)
	if err := ad.Alarm(t.Context(), ad.device(t, "NB-1").GetId(), "stale_key", ""); err != nil {
		t.Fatal(err)
	}
	ad.order(t, resume("NB-1"))
	ad.refuses(t, recordToken, "expired", func() (*agentv1.EnrolResponse, error) {
		_, err := newAttempt(t, stolen, "").try(t, ad.dial(t))
		return nil, err
	})
	must(newAttempt(t, ad.token(t, "NB-1"), "").try(t, ad.dial(t)))(t)
}

// A virtual machine's TPM that was copied: both come back after their
// certificate expired, and the second contradicts the first.
func TestAttackClonedTPMRecovers(t *testing.T) {
	ad := newAdministration(t)
	n := ad.notebook(t, "")
	ad.expect(t, "NB-1", "", n)
	d := ad.mustEnrol(t, n, "")
	kept := must(n.ak.Stored())(t)
	if err := n.chip.Close(); err != nil {
		t.Fatal(err)
	}
	n.tpm.Off()
	twin := &notebook{tpm: n.tpm.Copy(t)}
	twin.tpm.On(t)
	twin.chip = chip.New(dial(twin.tpm), nil)
	t.Cleanup(func() { _ = twin.chip.Close() })
	twin.ek, twin.ak, twin.key = must(twin.chip.Endorsement())(t), must(twin.chip.LoadKey(kept))(t), must(twin.chip.NewKey())(t)

	for range 2 { // the original goes on: one start more
		n.tpm.On(t)
		ad.mustEnrol(t, n, "")
		n.tpm.Off()
	}
	ad.refuses(t, recordRefused, "cloned", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, twin, "") })
	if a := ad.device(t, "NB-1").GetAsset(); a.GetState() != suspended || a.GetAlarm().GetKind() != "cloned" {
		t.Errorf("the asset is %s, %v", stateName(a.GetState()), a.GetAlarm())
	}
	if ad.lastAudit(t, "alarm.cloned").DeviceID != d.GetId() {
		t.Error("no alarm")
	}
	n.tpm.On(t)
	ad.refuses(t, recordRefused, "asset_suspended", func() (*agentv1.EnrolResponse, error) { return ad.enrol(t, n, "") })
}

// Whether an endorsement key is ours cannot be asked by those who do not have
// it: who cannot prove it sees the same, at the same step.
func TestAttackAskingForEndorsementKeys(t *testing.T) {
	ad := newAdministration(t)
	listed, retired, stranger := ad.notebook(t, ""), ad.notebook(t, ""), ad.notebook(t, "")
	ad.expect(t, "NB-1", "", listed)
	ad.expect(t, "NB-2", "", retired)
	ad.order(t, &fleetv1.Order{Device: "NB-2", Action: &fleetv1.Order_Retire{Retire: &fleetv1.Retire{}}})
	for name, ek := range map[string]*chip.Endorsement{"listed": listed.ek, "retired": retired.ek, "unknown": stranger.ek} {
		t.Run(name, func(t *testing.T) {
			hello := stranger.hello(t, "")
			hello.Tpm = chip.Hello(ek, stranger.ak, stranger.key)
			asked := false
			ad.refuses(t, recordRefused, "proof", func() (*agentv1.EnrolResponse, error) {
				return converse(t, ad.dial(t), hello, func(ctx context.Context, hello *agentv1.Hello, c *agentv1.Challenge) (*agentv1.Proof, error) {
					asked = true
					return guess(t, stranger)(ctx, hello, c)
				})
			})
			if !asked {
				t.Error("refused before it was asked to prove anything")
			}
		})
	}
}
