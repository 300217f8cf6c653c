package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/authority"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// house is a whole collector on loopback, in a directory of its own.
type house struct {
	*Program
	config Config
	stop   func()
}

// newHouse makes the keys of a collector and starts it with the default
// configuration, changed as a test needs it.
func newHouse(t testing.TB, change ...func(*Config)) *house {
	t.Helper()
	c, err := loadConfig("")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(&c)
	}
	c.State = t.TempDir()
	c.Listen.Agents, c.Listen.Gates, c.Listen.Operators, c.Listen.Health = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	_, err = authority.Create(filepath.Join(c.State, keysDir), authority.Options{
		DNSNames: []string{"localhost"}, Addresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	h := &house{config: c}
	h.start(t)
	t.Cleanup(func() { h.stop() })
	return h
}

// start opens and runs the collector on what its directory holds.
func (h *house) start(t testing.TB) {
	t.Helper()
	p, err := open(t.Context(), h.config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	h.Program = p
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	h.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the collector ended with: %v", err)
		}
		if err := p.Close(); err != nil {
			t.Errorf("closing the collector: %v", err)
		}
		h.stop = func() {}
	}
}

func (h *house) dial(t testing.TB, l net.Listener, certificate func() (*tls.Certificate, error)) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(mtls.ClientConfig(mtls.ClientOptions{
		Certificate: certificate, Servers: h.keys.Servers(), ServerName: "127.0.0.1",
	}))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// gate is a gateway's connection.
func (h *house) gate(t testing.TB, name string) gatev1.GateServiceClient {
	t.Helper()
	dir := t.TempDir()
	if err := h.keys.WriteGate(dir, name); err != nil {
		t.Fatal(err)
	}
	return gatev1.NewGateServiceClient(h.dial(t, h.gates, mtls.FromFiles(filepath.Join(dir, "gate.crt"), filepath.Join(dir, "gate.key"))))
}

// operator is an operator's connection.
func (h *house) operator(t testing.TB) *grpc.ClientConn {
	t.Helper()
	dir := t.TempDir()
	if err := h.keys.WriteOperator(dir, "anna"); err != nil {
		t.Fatal(err)
	}
	return h.dial(t, h.operators, mtls.FromFiles(filepath.Join(dir, "operator.crt"), filepath.Join(dir, "operator.key")))
}

// notebook is an enrolled device and the fingerprint of its VPN certificate.
type notebook struct {
	id, asset   string
	vpn         []byte
	certificate *tls.Certificate
	conn        *grpc.ClientConn
}

// enrol takes notebooks into the inventory and enrols each over the wire.
func (h *house) enrol(t testing.TB, count int) []*notebook {
	t.Helper()
	csv := "asset_number;unit;vpn_certificate_sha256\n"
	books := make([]*notebook, count)
	for i := range books {
		asset := fmt.Sprintf("NB-%05d", i)
		vpn := sha256.Sum256([]byte(asset))
		books[i] = &notebook{asset: asset, vpn: vpn[:]}
		csv += fmt.Sprintf("%s;inneres/it;%x\n", asset, vpn)
	}
	answer, err := h.registry.Import(t.Context(), "anna", []byte(csv))
	if err != nil || len(answer.GetErrors()) > 0 {
		t.Fatalf("importing: %v %v", err, answer.GetErrors())
	}
	stranger := agentv1.NewEnrolmentServiceClient(h.dial(t, h.agents, nil))
	for _, b := range books {
		h.allowSoftwareKey(t, b.asset)
		token, _, err := h.registry.CreateToken(t.Context(), "anna", b.asset, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		h.enrolOne(t, stranger, b, token)
	}
	return books
}

// allowSoftwareKey lets two operators allow an asset a key that is not in a TPM.
func (h *house) allowSoftwareKey(t testing.TB, asset string) {
	t.Helper()
	order := &fleetv1.Order{Device: asset, Reason: "test", Action: &fleetv1.Order_AllowSoftwareKey{
		AllowSoftwareKey: &fleetv1.AllowSoftwareKey{Until: timestamppb.New(time.Now().AddDate(0, 6, 0))},
	}}
	for _, operator := range []string{"anna", "bert"} {
		if _, err := h.registry.GiveOrder(t.Context(), operator, order); err != nil {
			t.Fatal(err)
		}
	}
}

func (h *house) enrolOne(t testing.TB, service agentv1.EnrolmentServiceClient, b *notebook, token string) {
	t.Helper()
	key, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	stream, err := service.Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	issued := answerChallenge(t, stream, key, token)
	b.id = issued.GetDeviceId()
	h.present(t, b, key, issued.GetChain())
}

// present lets a notebook come, from now on, with this key and certificate.
func (h *house) present(t testing.TB, b *notebook, key *ecdsa.PrivateKey, chain [][]byte) {
	t.Helper()
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	b.certificate = &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
	h.reach(t, b)
}

// reach dials the collector where it listens now.
func (h *house) reach(t testing.TB, b *notebook) {
	t.Helper()
	certificate := b.certificate
	b.conn = h.dial(t, h.agents, func() (*tls.Certificate, error) { return certificate, nil })
}

func answerChallenge(t testing.TB, stream grpc.BidiStreamingClient[agentv1.EnrolRequest, agentv1.EnrolResponse], key *ecdsa.PrivateKey, token string) *agentv1.Issued {
	t.Helper()
	csr, err := attest.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	hello := &agentv1.Hello{Capability: posture.Capability, AgentVersion: "test", Token: token, Machine: &agentv1.Machine{}, Csr: csr}
	if err := stream.Send(&agentv1.EnrolRequest{Message: &agentv1.EnrolRequest_Hello{Hello: hello}}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	exporter, err := mtls.Exporter(stream.Context())
	if err != nil {
		t.Fatal(err)
	}
	transcript, err := attest.Transcript(hello)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := attest.Sign(key, attest.EnrolDigest(answer.GetChallenge().GetNonce(), exporter, transcript))
	if err != nil {
		t.Fatal(err)
	}
	proof := &agentv1.Proof{Signature: signature}
	if err := stream.Send(&agentv1.EnrolRequest{Message: &agentv1.EnrolRequest_Proof{Proof: proof}}); err != nil {
		t.Fatal(err)
	}
	if answer, err = stream.Recv(); err != nil {
		t.Fatal(err)
	}
	return answer.GetIssued()
}

// reporter is a notebook's open stream.
type reporter struct {
	stream   grpc.BidiStreamingClient[agentv1.ConnectRequest, agentv1.ConnectResponse]
	nonce    []byte
	sequence uint64
}

// connect opens a notebook's stream.
func (b *notebook) connect(t testing.TB) *reporter {
	t.Helper()
	r, err := b.tryToConnect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (b *notebook) tryToConnect(ctx context.Context) (*reporter, error) {
	stream, err := agentv1.NewSessionServiceClient(b.conn).Connect(ctx)
	if err != nil {
		return nil, err
	}
	hello := &agentv1.ClientHello{Capability: posture.Capability, AgentVersion: "test"}
	// A stream that is refused says why when it is read.
	if err := stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: hello}}); err != nil && err != io.EOF {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return &reporter{stream: stream, nonce: answer.GetWelcome().GetNonce()}, nil
}

// prepared is full evidence with its digest.
type prepared struct {
	evidence *posturev1.Evidence
	digest   []byte
}

func prepare(t testing.TB, ev *posturev1.Evidence) prepared {
	t.Helper()
	digest, err := posture.Digest(ev)
	if err != nil {
		t.Fatal(err)
	}
	return prepared{ev, digest}
}

// report sends full evidence and waits for the acknowledgement.
func (r *reporter) report(t testing.TB, ev *posturev1.Evidence) {
	t.Helper()
	if err := r.send(prepare(t, ev)); err != nil {
		t.Fatal(err)
	}
}

func (r *reporter) send(p prepared) error {
	r.sequence++
	err := r.stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Report{Report: &agentv1.Report{
		Sequence: r.sequence, Nonce: r.nonce, CollectedAgo: durationpb.New(0), Digest: p.digest,
		Body: &agentv1.Report_Full{Full: p.evidence},
	}}})
	if err != nil {
		return err
	}
	for {
		answer, err := r.stream.Recv()
		if err != nil {
			return err
		}
		if answer.GetAcknowledgement().GetSequence() == r.sequence {
			return nil
		}
	}
}

// compliant is a notebook in good order, of the size that real ones report.
func compliant(now time.Time) *posturev1.Evidence {
	read := func(source string) *posturev1.Reading {
		return &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_OBSERVED, Source: source, ObservedAt: timestamppb.New(now), Duration: durationpb.New(time.Millisecond)}
	}
	yes, no := posturev1.Ternary_TERNARY_YES, posturev1.Ternary_TERNARY_NO
	disk := func() []*posturev1.StoragePath {
		return []*posturev1.StoragePath{{Layers: []*posturev1.StorageLayer{
			{Type: posturev1.LayerType_LAYER_TYPE_LINEAR},
			{
				Type: posturev1.LayerType_LAYER_TYPE_LUKS2, Cipher: "aes-xts-plain64", KeyBits: 512, Kdfs: []string{"argon2id"},
				TokenTypes: []string{"systemd-tpm2"}, Keyslots: 1, VerifiedBy: posturev1.VerifiedBy_VERIFIED_BY_HEADER,
				KeyFile: posturev1.KeyFile_KEY_FILE_NONE,
			},
			{Type: posturev1.LayerType_LAYER_TYPE_PARTITION}, {Type: posturev1.LayerType_LAYER_TYPE_DISK},
		}}}
	}
	volume := func(class posturev1.MountClass, fs string, paths []*posturev1.StoragePath) *posturev1.Volume {
		return &posturev1.Volume{Reading: read("/proc/1/mountinfo"), MountClass: class, Filesystem: fs, Paths: paths}
	}
	feed := func(origin string, security bool) *posturev1.Feed {
		return &posturev1.Feed{Origin: origin, Codename: "trixie", Security: security, ReleasedAt: timestamppb.New(now.Add(-time.Hour)), ValidUntil: timestamppb.New(now.Add(7 * 24 * time.Hour)), FetchedAt: timestamppb.New(now)}
	}
	client := func(product, version string, alive posturev1.Ternary) *posturev1.VpnClient {
		return &posturev1.VpnClient{
			Reading: read("files, processes, netlink"), Product: product, Version: version, Installed: yes, ServiceRunning: alive,
			InterfaceOperational: alive, SessionAlive: alive,
			ScopeV4: posturev1.RoutingScope_ROUTING_SCOPE_NONE, ScopeV6: posturev1.RoutingScope_ROUTING_SCOPE_NONE,
		}
	}
	return &posturev1.Evidence{
		Platform: &posturev1.Platform{
			Reading: read("/etc/os-release"), OperatingSystem: posturev1.OperatingSystem_OPERATING_SYSTEM_LINUX,
			Distribution: "debian", Version: "13", Codename: "trixie", KernelRelease: "6.12.48+deb13-amd64", Architecture: "amd64",
			BootId: "5f8c9d0e-3f43-4b1e-9d58-0f4d7f0a6a11", FormFactor: posturev1.FormFactor_FORM_FACTOR_NOTEBOOK, AgentVersion: "1.0.0",
			BootedAt: timestamppb.New(now.Add(-8 * time.Hour)),
			SupportEnds: []*posturev1.SupportEnd{
				{Kind: posturev1.SupportKind_SUPPORT_KIND_STANDARD, EndsAt: timestamppb.New(now.AddDate(2, 0, 0)), Source: "distro-info eol"},
				{Kind: posturev1.SupportKind_SUPPORT_KIND_LTS, EndsAt: timestamppb.New(now.AddDate(4, 0, 0)), Source: "distro-info eol-lts"},
			},
		},
		Volumes: &posturev1.Volumes{Reading: read("/proc/1/mountinfo, /proc/swaps"), Volumes: []*posturev1.Volume{
			volume(posturev1.MountClass_MOUNT_CLASS_ROOT, "ext4", disk()),
			volume(posturev1.MountClass_MOUNT_CLASS_HOME, "ext4", disk()),
			volume(posturev1.MountClass_MOUNT_CLASS_SWAP, "swap", disk()),
			volume(posturev1.MountClass_MOUNT_CLASS_BOOT, "ext4", []*posturev1.StoragePath{{Layers: []*posturev1.StorageLayer{
				{Type: posturev1.LayerType_LAYER_TYPE_PARTITION}, {Type: posturev1.LayerType_LAYER_TYPE_DISK}}}}),
			volume(posturev1.MountClass_MOUNT_CLASS_BOOT, "vfat", []*posturev1.StoragePath{{Layers: []*posturev1.StorageLayer{
				{Type: posturev1.LayerType_LAYER_TYPE_PARTITION}, {Type: posturev1.LayerType_LAYER_TYPE_DISK}}}}),
		}},
		Patch: &posturev1.Patch{
			Reading: read("/var/lib/apt/lists"), PackageSystem: "apt", InstalledPackages: 1893,
			Feeds:                  []*posturev1.Feed{feed("Debian", false), feed("Debian-Security", true)},
			SecurityFeedConfigured: yes, LastInstalledAt: timestamppb.New(now.Add(-24 * time.Hour)),
			KernelReading: read("/boot"), Kernel: &posturev1.Kernel{Running: "6.12.48+deb13-amd64", NewestInstalled: "6.12.48+deb13-amd64"},
			RebootPending: &posturev1.RebootPending{Pending: no},
		},
		Vpn: &posturev1.Vpn{
			Reading: read("netlink, processes, D-Bus"), RoutingReading: read("netlink"),
			Clients: []*posturev1.VpnClient{client("openvpn", "2.6.14-1", no), client("networkmanager", "1.52.1-1", no)},
			ScopeV4: posturev1.RoutingScope_ROUTING_SCOPE_NONE, ScopeV6: posturev1.RoutingScope_ROUTING_SCOPE_NONE,
		},
		Tpm:        &posturev1.Tpm{Reading: read("/sys/class/tpm"), Present: yes, Version: "2.0"},
		SecureBoot: &posturev1.SecureBoot{Reading: read("/sys/firmware/efi/efivars"), Enabled: yes, SetupMode: no},
		ScreenLock: &posturev1.ScreenLock{Reading: read("dconf"), Enforced: yes, IdleSeconds: 600},
		Firewall: &posturev1.Firewall{Reading: read("nftables, systemd"), Engines: []*posturev1.FirewallEngine{
			{Engine: "nftables", ServiceActive: yes, RulesLoaded: yes, InboundDefaultDrop: yes},
		}},
	}
}

// unencrypted is the same notebook with a plain root.
func unencrypted(now time.Time) *posturev1.Evidence {
	ev := compliant(now)
	ev.Volumes.Volumes[0].Paths[0].Layers = []*posturev1.StorageLayer{
		{Type: posturev1.LayerType_LAYER_TYPE_PARTITION}, {Type: posturev1.LayerType_LAYER_TYPE_DISK},
	}
	return ev
}

func admit(t testing.TB, gate gatev1.GateServiceClient, vpn []byte) (posturev1.Verdict, *gatev1.AdmitResponse) {
	t.Helper()
	answer, err := gate.Admit(t.Context(), &gatev1.AdmitRequest{Session: &gatev1.SessionFacts{
		SessionId: "test/" + t.Name(), CertificateSha256: vpn, Protocol: gatev1.Protocol_PROTOCOL_OPENVPN,
	}})
	if err != nil {
		t.Fatal(err)
	}
	l := &gatev1.Lease{}
	if err := proto.Unmarshal(answer.GetLease().GetLease(), l); err != nil {
		t.Fatal(err)
	}
	return l.GetVerdict(), answer
}

func TestNotebookInGoodOrderIsAdmittedAndAStrangerIsNot(t *testing.T) {
	h := newHouse(t)
	book := h.enrol(t, 1)[0]
	gate := h.gate(t, "vpn1")

	if v, _ := admit(t, gate, book.vpn); v == posturev1.Verdict_VERDICT_ADMIT {
		t.Fatal("admitted before anything was reported")
	}
	book.connect(t).report(t, compliant(time.Now()))
	if v, a := admit(t, gate, book.vpn); v != posturev1.Verdict_VERDICT_ADMIT {
		t.Errorf("got %s: %s", v, a.GetMessage())
	}
	if v, a := admit(t, gate, make([]byte, sha256.Size)); v != posturev1.Verdict_VERDICT_DENY || a.GetCode() == "" {
		t.Errorf("a stranger got %s, code %q", v, a.GetCode())
	}
}

func TestRefusalCodeLeadsToTheRuleThatFailed(t *testing.T) {
	h := newHouse(t)
	book := h.enrol(t, 1)[0]
	book.connect(t).report(t, unencrypted(time.Now()))
	v, answer := admit(t, h.gate(t, "vpn1"), book.vpn)
	if v != posturev1.Verdict_VERDICT_DENY {
		t.Fatalf("an unencrypted notebook got %s", v)
	}
	fleet := fleetv1.NewFleetServiceClient(h.operator(t))
	said, err := fleet.Explain(t.Context(), &fleetv1.ExplainRequest{Subject: &fleetv1.ExplainRequest_Code{Code: answer.GetCode()}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range said.GetExplanations()[0].GetResult().GetFindings() {
		if f.GetOutcome() == posturev1.Outcome_OUTCOME_FAIL && f.GetEffect() == posturev1.Effect_EFFECT_DENY {
			return
		}
	}
	t.Errorf("code %s explains no failed rule: %v", answer.GetCode(), said)
}

func TestRestartedCollectorDecidesAsBefore(t *testing.T) {
	h := newHouse(t)
	books := h.enrol(t, 2)
	for i, ev := range []*posturev1.Evidence{compliant(time.Now()), unencrypted(time.Now())} {
		books[i].connect(t).report(t, ev)
	}
	h.stop()
	h.start(t)
	gate := h.gate(t, "vpn1")
	if v, a := admit(t, gate, books[0].vpn); v != posturev1.Verdict_VERDICT_ADMIT {
		t.Errorf("the good one got %s after a restart: %s", v, a.GetMessage())
	}
	if v, _ := admit(t, gate, books[1].vpn); v != posturev1.Verdict_VERDICT_DENY {
		t.Errorf("the bad one got %s after a restart", v)
	}
}

func TestSuspendedDeviceIsDeniedAndItsStreamEnds(t *testing.T) {
	h := newHouse(t)
	book := h.enrol(t, 1)[0]
	stream := book.connect(t)
	stream.report(t, compliant(time.Now()))
	inventory := fleetv1.NewInventoryServiceClient(h.operator(t))
	_, err := inventory.SetState(t.Context(), &fleetv1.SetStateRequest{
		Device: book.asset, State: fleetv1.AssetState_ASSET_STATE_SUSPENDED, Reason: "lost on a train",
	})
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := admit(t, h.gate(t, "vpn1"), book.vpn); v != posturev1.Verdict_VERDICT_DENY {
		t.Errorf("a suspended device got %s", v)
	}
	for {
		if _, err := stream.stream.Recv(); err != nil {
			return // ended by the collector; the test's own time limit is the other way out
		}
	}
}
