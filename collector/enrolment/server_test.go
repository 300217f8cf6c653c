package enrolment

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/attestation"
	"pfoertner/collector/authority"
	"pfoertner/collector/endorsement"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// office is a house with an open door: the enrolment service over TLS.
type office struct {
	*house
	authority *authority.Authority
	addr      string
}

func newOffice(t testing.TB, limits Limits) *office {
	t.Helper()
	return newHouse(t).open(t, limits, ServerOptions{})
}

// open opens the door of a house.
func (h *house) open(t testing.TB, limits Limits, options ServerOptions) *office {
	t.Helper()
	a, err := authority.Create(filepath.Join(t.TempDir(), "pki"), authority.Options{
		Addresses: []net.IP{net.IPv4(127, 0, 0, 1)}, Now: h.clock.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	config := mtls.ServerConfig(mtls.ServerOptions{
		Certificate: a.ServerCertificate, Clients: a.Devices(), Role: mtls.RoleDevice, Optional: true,
		Check: func(c *x509.Certificate) error { return acceptsCertificate(h.Registry, c) },
	})
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)), grpc.MaxRecvMsgSize(posture.MaxMessageBytes))
	options.Registry, options.Issuer, options.Limits, options.Now = h.Registry, a, limits, h.clock.Now
	agentv1.RegisterEnrolmentServiceServer(server, NewServer(options))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	t.Cleanup(server.Stop)
	return &office{h, a, l.Addr().String()}
}

// acceptsCertificate asks as the agents' listener does.
func acceptsCertificate(r *Registry, cert *x509.Certificate) error {
	_, id, err := mtls.Identity(cert)
	if err != nil {
		return err
	}
	spki, err := attest.SPKI(cert.PublicKey)
	if err != nil {
		return err
	}
	return r.Accepts(id, spki)
}

func (o *office) token(t testing.TB, asset string) string {
	t.Helper()
	token, _, err := o.CreateToken(t.Context(), "ops", asset, 0)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// permit allows assets a software key, by two operators.
func (o *office) permit(t testing.TB, assets ...string) {
	t.Helper()
	for _, asset := range assets {
		o.order(t, &fleetv1.Order{Device: asset, Reason: "no TPM", Action: &fleetv1.Order_AllowSoftwareKey{
			AllowSoftwareKey: &fleetv1.AllowSoftwareKey{Until: timestamppb.New(o.clock.Now().AddDate(0, 6, 0))},
		}})
	}
}

// order gives an order by two operators, or by one where that does.
func (o *office) order(t testing.TB, order *fleetv1.Order) {
	t.Helper()
	for _, operator := range []string{"ops-1", "ops-2"} {
		answer, err := o.GiveOrder(t.Context(), operator, order)
		if err != nil {
			t.Fatal(err)
		}
		if answer.GetDone() {
			return
		}
	}
	t.Fatal("two operators are not enough")
}

func (o *office) dial(t testing.TB) agentv1.EnrolmentServiceClient {
	t.Helper()
	config := mtls.ClientConfig(mtls.ClientOptions{Servers: o.authority.Servers(), ServerName: "127.0.0.1"})
	conn, err := grpc.NewClient(o.addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return agentv1.NewEnrolmentServiceClient(conn)
}

// attempt is one enrolment; its hooks let tests cheat.
type attempt struct {
	key     *ecdsa.PrivateKey
	hello   *agentv1.Hello
	signer  crypto.Signer                                  // nil: key
	digest  func(nonce, exporter, hello []byte) []byte     // nil: attest.EnrolDigest
	instead func(*agentv1.Challenge) *agentv1.EnrolRequest // nil: the proof
}

func newAttempt(t testing.TB, token, serial string) *attempt {
	t.Helper()
	key, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := attest.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	return &attempt{key: key, hello: &agentv1.Hello{
		Capability: posture.Capability, AgentVersion: "test", Token: token, Csr: csr,
		Machine: &agentv1.Machine{Vendor: "Lenovo", Model: "T14", Serial: serial},
	}}
}

func helloMessage(h *agentv1.Hello) *agentv1.EnrolRequest {
	return &agentv1.EnrolRequest{Message: &agentv1.EnrolRequest_Hello{Hello: h}}
}

func proofMessage(sig []byte) *agentv1.EnrolRequest {
	return &agentv1.EnrolRequest{Message: &agentv1.EnrolRequest_Proof{Proof: &agentv1.Proof{Signature: sig}}}
}

// try goes through with the attempt.
func (a *attempt) try(t testing.TB, client agentv1.EnrolmentServiceClient) (*agentv1.Issued, error) {
	t.Helper()
	stream, err := client.Enrol(t.Context())
	if err != nil {
		return nil, err
	}
	if err := stream.Send(helloMessage(a.hello)); err != nil && err != io.EOF {
		return nil, err
	}
	m, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	proof, err := a.prove(stream.Context(), m.GetChallenge())
	if err != nil {
		return nil, err
	}
	if a.instead != nil {
		proof = a.instead(m.GetChallenge())
	}
	if err := stream.Send(proof); err != nil && err != io.EOF {
		return nil, err
	}
	m, err = stream.Recv()
	return m.GetIssued(), err
}

func (a *attempt) prove(ctx context.Context, c *agentv1.Challenge) (*agentv1.EnrolRequest, error) {
	exporter, err := mtls.Exporter(ctx)
	if err != nil {
		return nil, err
	}
	transcript, err := attest.Transcript(a.hello)
	if err != nil {
		return nil, err
	}
	digest := attest.EnrolDigest
	if a.digest != nil {
		digest = a.digest
	}
	signer := a.signer
	if signer == nil {
		signer = a.key
	}
	sig, err := attest.Sign(signer, digest(c.GetNonce(), exporter, transcript))
	return proofMessage(sig), err
}

func TestExpectedNotebookBecomesADevice(t *testing.T) {
	o := newOffice(t, Limits{})
	o.stock(t, "NB-1;Lenovo;T14;PF1;inneres;;;\n")
	o.permit(t, "NB-1")
	a := newAttempt(t, o.token(t, "NB-1"), " pf1 ")
	issued, err := a.try(t, o.dial(t))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(issued.GetChain()[0])
	if err != nil {
		t.Fatal(err)
	}
	role, id, err := mtls.Identity(cert)
	if role != mtls.RoleDevice || id != issued.GetDeviceId() || err != nil || !a.key.PublicKey.Equal(cert.PublicKey) {
		t.Errorf("certificate of %s %s, %v", role, id, err)
	}
	if issued.GetAssetNumber() != "NB-1" || !issued.GetRenewAfter().AsTime().Equal(o.clock.Now().Add(8*time.Hour)) {
		t.Errorf("issued for %s, renewed after %s", issued.GetAssetNumber(), issued.GetRenewAfter().AsTime())
	}
	if !cert.NotAfter.Equal(o.clock.Now().Add(DefaultSoftwareLifetime)) {
		t.Errorf("a certificate for a software key ends at %s", cert.NotAfter)
	}
	trust, err := x509.ParseCertificate(issued.GetTrustBundle()[0])
	if err != nil || !trust.IsCA || len(issued.GetTrustBundle()) != 1 {
		t.Errorf("trust bundle: %v", err)
	}
	for _, r := range []*Registry{o.Registry, o.reload(t)} {
		d, ok := r.Device(id)
		if !ok || d.GetAsset().GetState() != active || d.GetAsset().GetAssetNumber() != "NB-1" ||
			!d.GetEnrolledAt().AsTime().Equal(o.clock.Now()) || !d.GetCertificateExpiresAt().AsTime().Equal(cert.NotAfter) {
			t.Errorf("device %v", d)
		}
		if err := acceptsCertificate(r, cert); err != nil {
			t.Errorf("its certificate: %v", err)
		}
	}
	r := o.lastAudit(t, "device.enrolled")
	fingerprint, _ := attest.Fingerprint(a.key.Public())
	if r.DeviceID != id || r.AssetNumber != "NB-1" || r.Details["key_fingerprint"] != fingerprint {
		t.Errorf("audit: %+v", r)
	}
}

func TestNewTokenReplacesTheCredentialOfADevice(t *testing.T) {
	o := newOffice(t, Limits{})
	o.stock(t, "NB-1;;;;;;;\n")
	o.permit(t, "NB-1")
	enrol := func() (*agentv1.Issued, *x509.Certificate) {
		issued, err := newAttempt(t, o.token(t, "NB-1"), "x").try(t, o.dial(t))
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(issued.GetChain()[0])
		if err != nil {
			t.Fatal(err)
		}
		return issued, cert
	}
	first, firstCert := enrol()
	second, secondCert := enrol()
	if first.GetDeviceId() != second.GetDeviceId() {
		t.Errorf("ids %s and %s", first.GetDeviceId(), second.GetDeviceId())
	}
	if acceptsCertificate(o.Registry, firstCert) == nil || acceptsCertificate(o.Registry, secondCert) != nil {
		t.Error("the wrong one of two certificates is accepted")
	}
}

func TestNotebookThatNeverGotItsCertificateGetsItOnceMore(t *testing.T) {
	o := newOffice(t, Limits{})
	o.stock(t, "NB-1;;;PF1;;;;\n")
	o.permit(t, "NB-1")
	client := o.dial(t)
	token := o.token(t, "NB-1")
	lost := newAttempt(t, token, "PF1")
	first, err := lost.try(t, client)
	if err != nil {
		t.Fatal(err)
	}
	again, err := lost.try(t, client)
	if err != nil {
		t.Fatalf("the same key with the same token: %v", err)
	}
	if again.GetDeviceId() != first.GetDeviceId() {
		t.Errorf("device %s became %s", first.GetDeviceId(), again.GetDeviceId())
	}
	if _, err := newAttempt(t, token, "PF1").try(t, client); err == nil {
		t.Error("a used token enrolled another key")
	}
	o.clock.turn(72 * time.Hour)
	if _, err := lost.try(t, client); err == nil {
		t.Error("an expired token still gives certificates")
	}
}

// Whatever the reason, a stranger sees the same; the audit log tells it.
func TestRefusalsLookAlikeAndAreAudited(t *testing.T) {
	o := newOffice(t, Limits{Attempts: Rate{1e6, 1e6}, AttemptsPerPeer: Rate{1e6, 1e6}, RefusalsPerPeer: Rate{1e6, 1e6}, Open: 10})
	o.stock(t, "NB-1;;;PF1;;;;\nNB-2;;;;;;;\nNB-3;;;;;;;\nNB-TPM;;;;;;tpm;\n")
	o.permit(t, "NB-1", "NB-2", "NB-3")
	client := o.dial(t)
	used := o.token(t, "NB-1")
	if _, err := newAttempt(t, used, "PF1").try(t, client); err != nil {
		t.Fatal(err)
	}
	expired := o.token(t, "NB-1")
	o.clock.turn(72 * time.Hour)
	state := func(asset string, s fleetv1.AssetState) string {
		token := o.token(t, asset)
		if _, err := o.SetState(t.Context(), "ops", asset, s, ""); err != nil {
			t.Fatal(err)
		}
		return token
	}
	with := func(a *attempt, change func(*attempt)) *attempt { change(a); return a }
	other := newAttempt(t, "", "")
	for name, tc := range map[string]struct {
		attempt *attempt
		kind    string
		reason  string
	}{
		"unknown token":      {newAttempt(t, "PFT-AAAA-BBBB", "PF1"), "token.refused", "unknown"},
		"no token":           {newAttempt(t, "", "PF1"), "enrolment.refused", "no_token"},
		"used token":         {newAttempt(t, used, "PF1"), "token.refused", "used"},
		"expired token":      {newAttempt(t, expired, "PF1"), "token.refused", "expired"},
		"another machine":    {newAttempt(t, o.token(t, "NB-1"), "PF2"), "device.serial_mismatch", "serial"},
		"machine says none":  {newAttempt(t, o.token(t, "NB-1"), ""), "device.serial_mismatch", "serial"},
		"suspended asset":    {newAttempt(t, state("NB-2", suspended), ""), "enrolment.refused", "asset_suspended"},
		"retired asset":      {newAttempt(t, state("NB-3", retired), ""), "enrolment.refused", "asset_retired"},
		"TPM demanded":       {newAttempt(t, o.token(t, "NB-TPM"), ""), "alarm.downgrade", "downgrade"},
		"no request":         {with(newAttempt(t, o.token(t, "NB-1"), "PF1"), func(a *attempt) { a.hello.Csr = nil }), "enrolment.refused", "csr"},
		"request cut off":    {with(newAttempt(t, o.token(t, "NB-1"), "PF1"), func(a *attempt) { a.hello.Csr = a.hello.Csr[:len(a.hello.Csr)-2] }), "enrolment.refused", "csr"},
		"request of another": {with(newAttempt(t, o.token(t, "NB-1"), "PF1"), func(a *attempt) { a.hello.Csr = other.hello.Csr }), "enrolment.refused", "proof"},
		"signed by another":  {with(newAttempt(t, o.token(t, "NB-1"), "PF1"), func(a *attempt) { a.signer = other.key }), "enrolment.refused", "proof"},
		"relayed": {with(newAttempt(t, o.token(t, "NB-1"), "PF1"), func(a *attempt) {
			a.digest = func(nonce, _, hello []byte) []byte { return attest.EnrolDigest(nonce, make([]byte, 32), hello) }
		}), "enrolment.refused", "proof"},
		"another nonce": {with(newAttempt(t, o.token(t, "NB-1"), "PF1"), func(a *attempt) {
			a.digest = func(_, exporter, hello []byte) []byte { return attest.EnrolDigest(make([]byte, 32), exporter, hello) }
		}), "enrolment.refused", "proof"},
		"proof of a renewal": {with(newAttempt(t, o.token(t, "NB-1"), "PF1"), func(a *attempt) { a.digest = attest.RenewDigest }), "enrolment.refused", "proof"},
		"no proof": {with(newAttempt(t, o.token(t, "NB-1"), "PF1"), func(a *attempt) {
			a.instead = func(*agentv1.Challenge) *agentv1.EnrolRequest { return proofMessage(nil) }
		}), "enrolment.refused", "proof"},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(o.audited(t, tc.kind))
			issued, err := tc.attempt.try(t, client)
			if issued != nil {
				t.Fatal("issued")
			}
			if s := status.Convert(err); s.Code() != codes.PermissionDenied || s.Message() != "enrolment refused" || len(s.Details()) != 0 {
				t.Errorf("the stranger sees %v", err)
			}
			if n := len(o.audited(t, tc.kind)); n != before+1 {
				t.Fatalf("%d new audit records %s", n-before, tc.kind)
			}
			r := o.lastAudit(t, tc.kind)
			if r.Details["reason"] != tc.reason {
				t.Errorf("audit: %+v", r)
			}
			if token := tc.attempt.hello.GetToken(); token != "" && strings.Contains(r.Details["detail"], token) {
				t.Error("the audit log has the token")
			}
		})
	}
	if got := len(o.audited(t, "device.enrolled")); got != 1 {
		t.Errorf("%d devices enrolled", got)
	}
}

// The proof of an honest notebook, taken to the collector over the attacker's
// own connection with the collector's own nonce.
func TestRelayedProofIsRefused(t *testing.T) {
	o := newOffice(t, Limits{})
	o.stock(t, "NB-1;;;;;;;\n")
	o.permit(t, "NB-1")
	honest := newAttempt(t, o.token(t, "NB-1"), "")
	victim, err := o.dial(t).Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Send(helloMessage(honest.hello)); err != nil {
		t.Fatal(err)
	}
	if _, err := victim.Recv(); err != nil {
		t.Fatal(err)
	}
	attacker := *honest
	attacker.instead = func(c *agentv1.Challenge) *agentv1.EnrolRequest {
		proof, err := honest.prove(victim.Context(), c) // the victim signs what it is given
		if err != nil {
			t.Error(err)
		}
		return proof
	}
	if _, err := attacker.try(t, o.dial(t)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("relayed: %v", err)
	}
}

func TestNonsenseIsRefusedClearly(t *testing.T) {
	o := newOffice(t, Limits{})
	o.stock(t, "NB-1;;;;;;;\n")
	o.permit(t, "NB-1")
	client := o.dial(t)
	long := newAttempt(t, strings.Repeat("x", posture.MaxStringBytes+1), "")
	oversize := newAttempt(t, "x", "")
	oversize.hello.Tpm = &agentv1.TpmIdentity{EkPublic: make([]byte, posture.MaxMessageBytes)}
	again := newAttempt(t, o.token(t, "NB-1"), "")
	again.instead = func(*agentv1.Challenge) *agentv1.EnrolRequest { return helloMessage(again.hello) }
	for name, tc := range map[string]struct {
		send func() error
		code codes.Code
		text string
	}{
		"proof without hello": {func() error { return first(t, client, proofMessage(nil)) }, codes.InvalidArgument, "not a hello"},
		"empty message":       {func() error { return first(t, client, &agentv1.EnrolRequest{}) }, codes.InvalidArgument, "not a hello"},
		"text too long":       {func() error { _, err := long.try(t, client); return err }, codes.InvalidArgument, "token"},
		"message too large":   {func() error { _, err := oversize.try(t, client); return err }, codes.ResourceExhausted, "larger than max"},
		"hello twice":         {func() error { _, err := again.try(t, client); return err }, codes.InvalidArgument, "not a proof"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tc.send(); status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%v, want %s %q", err, tc.code, tc.text)
			}
		})
	}
}

// first sends one message and returns the answer's error.
func first(t testing.TB, client agentv1.EnrolmentServiceClient, m *agentv1.EnrolRequest) error {
	stream, err := client.Enrol(t.Context())
	if err != nil {
		return err
	}
	if err := stream.Send(m); err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

func TestStrangersAreLimited(t *testing.T) {
	o := newOffice(t, Limits{Attempts: Rate{100, 100}, AttemptsPerPeer: Rate{100, 100}, RefusalsPerPeer: Rate{1.0 / 60, 3}, Open: 10})
	o.stock(t, "NB-1;;;;;;;\n")
	o.permit(t, "NB-1")
	client := o.dial(t)
	for range 3 {
		if _, err := newAttempt(t, "guess", "").try(t, client); status.Code(err) != codes.PermissionDenied {
			t.Fatal(err)
		}
	}
	if _, err := newAttempt(t, o.token(t, "NB-1"), "").try(t, client); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("after three refusals: %v", err)
	}
	if n := len(o.audited(t, "token.refused")); n != 3 {
		t.Errorf("%d audit records", n)
	}
	o.clock.turn(time.Minute)
	if _, err := newAttempt(t, o.token(t, "NB-1"), "").try(t, client); err != nil {
		t.Errorf("a minute later: %v", err)
	}
}

func TestOpenAttemptsAreLimited(t *testing.T) {
	o := newOffice(t, Limits{Attempts: Rate{100, 100}, AttemptsPerPeer: Rate{100, 100}, RefusalsPerPeer: Rate{100, 100}, Open: 1})
	client := o.dial(t)
	waiting, err := client.Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := waiting.Send(helloMessage(newAttempt(t, "x", "").hello)); err != nil {
		t.Fatal(err)
	}
	if _, err := waiting.Recv(); err != nil { // challenged: it has the place
		t.Fatal(err)
	}
	if _, err := newAttempt(t, "x", "").try(t, client); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a second one: %v", err)
	}
}

func TestPeersAreForgottenInGenerations(t *testing.T) {
	c := &clock{now: time.Now()}
	p := newPeerLimiter(Rate{PerSecond: 1, Burst: 2}, c.Now)
	one := netip.MustParseAddr("192.0.2.1")
	six, neighbour := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	if !p.take(one) || p.empty(one) || !p.take(one) || p.take(one) || !p.empty(one) {
		t.Error("not a bucket of two")
	}
	if p.empty(netip.MustParseAddr("::ffff:192.0.2.1")) != true {
		t.Error("the same address in another notation has a bucket of its own")
	}
	p.take(six)
	p.take(neighbour)
	if !p.empty(six) {
		t.Error("addresses of one /64 have buckets of their own")
	}
	c.turn(time.Second)
	if p.empty(one) {
		t.Error("the bucket does not fill up")
	}
	for i := range 3 * maxPeers {
		p.take(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if n := len(p.young) + len(p.elders); n > 2*maxPeers {
		t.Errorf("%d addresses remembered", n)
	}
}

func TestDeviceCertificateIsNoObstacleToEnrolAgain(t *testing.T) {
	o := newOffice(t, Limits{})
	o.stock(t, "NB-1;;;;;;;\n")
	o.permit(t, "NB-1")
	a := newAttempt(t, o.token(t, "NB-1"), "")
	issued, err := a.try(t, o.dial(t))
	if err != nil {
		t.Fatal(err)
	}
	pair := &tls.Certificate{Certificate: issued.GetChain(), PrivateKey: a.key}
	config := mtls.ClientConfig(mtls.ClientOptions{
		Certificate: func() (*tls.Certificate, error) { return pair, nil }, Servers: o.authority.Servers(), ServerName: "127.0.0.1",
	})
	conn, err := grpc.NewClient(o.addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := newAttempt(t, o.token(t, "NB-1"), "").try(t, agentv1.NewEnrolmentServiceClient(conn)); err != nil {
		t.Error(err)
	}
}

func TestSilentStrangerIsSentAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		defer end()
		began := time.Now()
		err := NewServer(ServerOptions{}).Enrol(&silentStream{rawStream{ctx: ctx}})
		if status.Code(err) != codes.DeadlineExceeded || time.Since(began) != helloTimeout {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

// silentStream never says anything.
type silentStream struct{ rawStream }

func (s *silentStream) Recv() (*agentv1.EnrolRequest, error) {
	<-s.ctx.Done()
	return nil, s.ctx.Err()
}

// What a stranger says of itself cannot move an operator's cursor, or fill the
// audit log.
func TestTextsOfStrangersAreLegible(t *testing.T) {
	o := newOffice(t, Limits{})
	a := newAttempt(t, "PFT-AAAA", "PF1\x1b[2J"+strings.Repeat("ä", 2000))
	if _, err := a.try(t, o.dial(t)); status.Code(err) != codes.PermissionDenied {
		t.Fatal(err)
	}
	got := o.lastAudit(t, recordToken).Details["serial"]
	if !strings.HasPrefix(got, "PF1[2Jää") || !utf8.ValidString(got) || len(got) > maxLegible+utf8.UTFMax {
		t.Errorf("%d bytes: %.20q", len(got), got)
	}
}

func TestOutcomesAreCounted(t *testing.T) {
	metrics := prometheus.NewRegistry()
	o := newHouse(t).open(t, Limits{Attempts: Rate{100, 100}, AttemptsPerPeer: Rate{1.0 / 60, 2}, RefusalsPerPeer: Rate{1, 100}, Open: 10}, ServerOptions{Metrics: NewMetrics(metrics)})
	o.stock(t, "NB-1;;;;;;;\n")
	o.permit(t, "NB-1")
	for _, token := range []string{o.token(t, "NB-1"), "guess", "one too many"} {
		_, _ = newAttempt(t, token, "").try(t, o.dial(t)) // the counts tell
	}
	got := map[string]float64{}
	for _, family := range must(metrics.Gather())(t) {
		for _, m := range family.GetMetric() {
			got[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
		}
	}
	if want := map[string]float64{"issued": 1, "refused": 1, "limited": 1}; !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

// A challenge is valid for 60 s.
func TestChallengeThatIsNotAnsweredEnds(t *testing.T) {
	o := newOffice(t, Limits{})
	over, hello := o.overTLS(t), must(proto.Marshal(helloMessage(newAttempt(t, "x", "").hello)))(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(over)
		defer end()
		began := time.Now()
		err := NewServer(ServerOptions{}).Enrol(&muteStream{rawStream{ctx: ctx, messages: [][]byte{hello}}})
		if status.Code(err) != codes.DeadlineExceeded || time.Since(began) != time.Minute {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

// muteStream says its messages, and nothing more.
type muteStream struct{ rawStream }

func (s *muteStream) Recv() (*agentv1.EnrolRequest, error) {
	if len(s.messages) > 0 {
		return s.rawStream.Recv()
	}
	<-s.ctx.Done()
	return nil, s.ctx.Err()
}

// FuzzEnrol feeds what a stranger sends, byte by byte, to the handler.
func FuzzEnrol(f *testing.F) {
	o := newOffice(f, Limits{})
	o.stock(f, "NB-1;;;;;;;\n")
	o.permit(f, "NB-1")
	a := newAttempt(f, o.token(f, "NB-1"), "")
	for _, m := range []*agentv1.EnrolRequest{helloMessage(a.hello), helloMessage(&agentv1.Hello{}), proofMessage([]byte("x")), {}} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
	}
	hello, err := proto.Marshal(helloMessage(a.hello))
	if err != nil {
		f.Fatal(err)
	}
	sig, err := attest.Sign(a.key, make([]byte, 32))
	if err != nil {
		f.Fatal(err)
	}
	proof, err := proto.Marshal(proofMessage(sig))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hello, proof)
	for _, name := range []string{"rsa", "ecc"} {
		h, p := recorded(f, name)
		whole := must(proto.Marshal(helloMessage(h)))(f)
		f.Add(whole, must(proto.Marshal(&agentv1.EnrolRequest{Message: &agentv1.EnrolRequest_Proof{Proof: p}}))(f))
		f.Add(whole, proof)
	}
	everything := Limits{Attempts: Rate{1e9, 1e9}, AttemptsPerPeer: Rate{1e9, 1e9}, RefusalsPerPeer: Rate{1e9, 1e9}, Open: 10}
	bundle, err := endorsement.Shipped()
	if err != nil {
		f.Fatal(err)
	}
	server := NewServer(ServerOptions{
		Registry: o.Registry, Issuer: o.authority, Limits: everything, Now: o.clock.Now,
		Book: noTPMs{}, Endorsements: func() *endorsement.Bundle { return bundle },
	})
	ctx := o.overTLS(f)
	f.Fuzz(func(t *testing.T, one, two []byte) {
		stream := &rawStream{ctx: ctx, messages: [][]byte{one, two}}
		if err := server.Enrol(stream); err == nil || stream.issued {
			t.Errorf("accepted: %v", err)
		}
	})
}

// noTPMs is a Book that knows of none.
type noTPMs struct{}

func (noTPMs) Known(string) (attestation.Known, bool) { return attestation.Known{}, false }
func (noTPMs) Put(attestation.Known)                  {}
func (noTPMs) Follow(context.Context, string, []byte, time.Time, attest.Clock) error {
	return attestation.ErrRefused
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

// recorded are hello and proof of an enrolment that was recorded with a TPM
// (package chip).
func recorded(t testing.TB, name string) (*agentv1.Hello, *agentv1.Proof) {
	t.Helper()
	var r struct{ Hello, Proof []byte }
	if err := json.Unmarshal(must(os.ReadFile("../../internal/attest/testdata/enrolment-"+name+".json"))(t), &r); err != nil {
		t.Fatal(err)
	}
	hello, proof := &agentv1.Hello{}, &agentv1.Proof{}
	if err := errors.Join(proto.Unmarshal(r.Hello, hello), proto.Unmarshal(r.Proof, proof)); err != nil {
		t.Fatal(err)
	}
	return hello, proof
}

// overTLS is a context as gRPC gives it to handlers of a TLS connection.
func (o *office) overTLS(t testing.TB) context.Context {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	server := tls.Server(near, mtls.ServerConfig(mtls.ServerOptions{
		Certificate: o.authority.ServerCertificate, Clients: o.authority.Devices(), Role: mtls.RoleDevice, Optional: true,
	}))
	client := tls.Client(far, mtls.ClientConfig(mtls.ClientOptions{Servers: o.authority.Servers(), ServerName: "127.0.0.1"}))
	go client.Handshake()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	return peer.NewContext(context.Background(), &peer.Peer{
		Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, AuthInfo: credentials.TLSInfo{State: server.ConnectionState()},
	})
}

// rawStream is a stream of bytes.
type rawStream struct {
	ctx      context.Context
	messages [][]byte
	issued   bool
}

func (s *rawStream) Recv() (*agentv1.EnrolRequest, error) {
	if len(s.messages) == 0 {
		return nil, io.EOF
	}
	b := s.messages[0]
	s.messages = s.messages[1:]
	m := &agentv1.EnrolRequest{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return m, nil
}

func (s *rawStream) Send(m *agentv1.EnrolResponse) error {
	s.issued = s.issued || m.GetIssued() != nil
	return nil
}

func (s *rawStream) Context() context.Context     { return s.ctx }
func (s *rawStream) SetHeader(metadata.MD) error  { return nil }
func (s *rawStream) SendHeader(metadata.MD) error { return nil }
func (s *rawStream) SetTrailer(metadata.MD)       {}
func (s *rawStream) SendMsg(any) error            { return nil }
func (s *rawStream) RecvMsg(any) error            { return io.EOF }

// FuzzReadHello tries what a stranger may claim of a TPM, past the protobuf: what
// is read can be asked about, and no answer that was made up is one.
func FuzzReadHello(f *testing.F) {
	for _, name := range []string{"rsa", "ecc"} {
		h, _ := recorded(f, name)
		f.Add(h.GetCsr(), h.GetTpm().GetEkPublic(), h.GetTpm().GetAkPublic(), h.GetTpm().GetTlsKeyPublic(), h.GetTpm().GetEkCertificates()[0], "IFX")
	}
	bundle, err := endorsement.Shipped()
	if err != nil {
		f.Fatal(err)
	}
	s := NewServer(ServerOptions{Endorsements: func() *endorsement.Bundle { return bundle }})
	f.Fuzz(func(t *testing.T, csr, ek, ak, key, certificate []byte, maker string) {
		a, err := readHello(&agentv1.Hello{Csr: csr, Tpm: &agentv1.TpmIdentity{
			EkPublic: ek, AkPublic: ak, TlsKeyPublic: key, EkCertificates: [][]byte{certificate}, Manufacturer: strings.ToValidUTF8(maker, ""),
		}})
		if err != nil {
			return
		}
		challenge, judge, err := a.ask(make([]byte, 32))
		if err != nil || len(challenge.GetCredentialBlob()) == 0 || len(a.ekSHA256) != 32 || a.fingerprint == "" {
			t.Fatalf("read, and cannot be asked about: %v", err)
		}
		if judge(&agentv1.Proof{Activation: certificate}) == nil {
			t.Error("a proof of nothing")
		}
		if v, _, doubts := s.vouch(a); v == genuine || doubts == nil {
			t.Errorf("vouched for by %d, %v", v, doubts)
		}
	})
}
