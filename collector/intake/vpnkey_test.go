package intake

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/authority"
	"pfoertner/collector/enrolment"
	"pfoertner/internal/attest"
	"pfoertner/internal/attest/attesttest"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// cabinet keeps VPN certificates in memory. Its rules are those of
// enrolment.Registry, which has its own tests.
type cabinet struct {
	mu    sync.Mutex
	bound []*fleetv1.VpnCertificate
	may   error
	err   error
}

func (c *cabinet) Device(string) (*fleetv1.Device, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &fleetv1.Device{VpnCertificates: slices.Clone(c.bound)}, true
}

func (c *cabinet) MayHaveVPN(string) error { return c.may }

func (c *cabinet) BindVPN(_ context.Context, _ string, v *fleetv1.VpnCertificate) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.bound = append(c.bound, v)
	}
	return c.err
}

// vpnHouse issues VPN certificates.
type vpnHouse struct {
	*house
	cabinet *cabinet
	issuer  *authority.Authority
	now     time.Time
}

func newVPNHouse(t *testing.T) *vpnHouse {
	t.Helper()
	h := &vpnHouse{cabinet: &cabinet{}, issuer: vpnAuthority(t, true), now: time.Now()}
	profile, err := authority.ParseVPNProfile(72*time.Hour, "vpn.example", nil)
	if err != nil {
		t.Fatal(err)
	}
	vpn := &VPN{Issuer: h.issuer, Registry: h.cabinet, Profile: profile}
	h.house = newHouse(t, func(o *Options) { o.VPN, o.Now = vpn, func() time.Time { return h.now } })
	vpn.TPMs = h.book
	return h
}

// vpnAuthority is an authority with a VPN CA, if it is wanted.
func vpnAuthority(t *testing.T, wanted bool) *authority.Authority {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	a, err := authority.Create(dir, authority.Options{Addresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil || !wanted {
		return a
	}
	rotation := authority.Rotation{Dir: dir}
	requests, err := rotation.Request([]string{"vpn"}, "", authority.Files{})
	if err != nil {
		t.Fatal(err)
	}
	asked, err := authority.ParseRequests(requests)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := authority.Root{Dir: dir}.Sign(requests, []string{asked[0].Fingerprint})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rotation.Install(signed); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Follow(); err != nil {
		t.Fatal(err)
	}
	return a
}

// vpnAnswer waits for the next message about VPN keys.
func (n *notebook) vpnAnswer() *agentv1.ConnectResponse {
	n.t.Helper()
	for {
		m := n.receive()
		if m.GetVpnKeyChallenge() != nil || m.GetVpnCertificate() != nil || m.GetVpnKeyWanted() != nil {
			return m
		}
	}
}

// online is a notebook with a TPM that was told that VPN certificates are issued.
func (h *vpnHouse) online(t *testing.T) (*tpmNotebook, *agentv1.VpnKeyWanted) {
	t.Helper()
	n := h.enrolledInTPM(t, deviceA).connects().quotes()
	w := n.vpnAnswer().GetVpnKeyWanted()
	if w == nil {
		t.Fatal("not told that VPN certificates are issued")
	}
	return n, w
}

func requestFor(t *testing.T, key attesttest.Key) *agentv1.VpnKeyRequest {
	t.Helper()
	csr, err := attest.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	return &agentv1.VpnKeyRequest{Csr: csr, KeyPublic: key.Area}
}

func (n *notebook) askVPN(r *agentv1.VpnKeyRequest) *agentv1.ConnectResponse {
	n.t.Helper()
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_VpnKey{VpnKey: r}})
	return n.vpnAnswer()
}

// proof answers a challenge on a connection with this channel binding.
func (n *tpmNotebook) proof(key attesttest.Key, r *agentv1.VpnKeyRequest, nonce, exporter []byte) *agentv1.VpnKeyProof {
	n.t.Helper()
	p := &agentv1.VpnKeyProof{}
	var err error
	if p.Signature, err = attest.Sign(key, attest.VPNDigest(nonce, exporter, r.GetCsr())); err != nil {
		n.t.Fatal(err)
	}
	p.Certify, p.CertifySignature = n.tpm.Certify(n.t, key, attest.Qualify(attest.PurposeVPN, nonce, exporter))
	return p
}

// proveVPN sends a proof. A collector that neither takes nor refuses it hangs up
// in the end.
func (n *notebook) proveVPN(p *agentv1.VpnKeyProof) {
	n.t.Helper()
	conn := n.conn
	giveUp := time.AfterFunc(20*time.Second, func() { conn.Close() })
	n.t.Cleanup(func() { giveUp.Stop() })
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_VpnKeyProof{VpnKeyProof: p}})
}

func TestVPNCertificateForAKeyInTheTPM(t *testing.T) {
	h := newVPNHouse(t)
	n, wanted := h.online(t)
	if wanted.GetRenewBefore().AsDuration() != 24*time.Hour || len(wanted.GetCertificateSha256()) != 0 {
		t.Errorf("wanted: %v", wanted)
	}
	key := attesttest.NewKey(t)
	r := requestFor(t, key)
	n.proveVPN(n.proof(key, r, n.askVPN(r).GetVpnKeyChallenge().GetNonce(), n.exporter()))
	chain := n.vpnAnswer().GetVpnCertificate().GetChain()
	if len(chain) != 2 {
		t.Fatalf("a chain of %d", len(chain))
	}
	cert, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if role, id, err := mtls.Identity(cert); role != mtls.RoleVPN || id != deviceA || err != nil || !key.PublicKey.Equal(cert.PublicKey) {
		t.Errorf("issued for %s %s, %v", role, id, err)
	}
	sum := sha256.Sum256(chain[0])
	if b := h.cabinet.bound; len(b) != 1 || string(b[0].GetSha256()) != string(sum[:]) || !b[0].GetExpiresAt().AsTime().Equal(cert.NotAfter) {
		t.Errorf("bound: %v", b)
	}
	// The next stream names it: this notebook has it and asks for nothing.
	n.conn.Close()
	again := n.connects().quotes().vpnAnswer().GetVpnKeyWanted()
	if string(again.GetCertificateSha256()) != string(sum[:]) {
		t.Errorf("the next stream wants %x", again.GetCertificateSha256())
	}
}

func TestVPNCertificatesOfARevokedCADoNotCount(t *testing.T) {
	h := newVPNHouse(t)
	h.cabinet.bound = []*fleetv1.VpnCertificate{{Sha256: make([]byte, 32), IssuedAt: timestamppb.New(h.now.Add(-time.Hour))}}
	h.VPN.Issuer = revoked{h.issuer, h.now}
	if _, wanted := h.online(t); len(wanted.GetCertificateSha256()) != 0 {
		t.Error("a certificate under a revoked CA counts")
	}
}

type revoked struct {
	*authority.Authority
	at time.Time
}

func (r revoked) VPNReplaceBefore() time.Time { return r.at }

func TestWhoIsToldOfVPNCertificates(t *testing.T) {
	for name, tc := range map[string]struct {
		change     func(*vpnHouse)
		software   bool
		capability uint32
	}{
		"software key":     {software: true, capability: 3},
		"older agent":      {capability: 2},
		"switched off":     {change: func(h *vpnHouse) { h.VPN = nil }, capability: 3},
		"without a VPN CA": {change: func(h *vpnHouse) { h.VPN.Issuer = vpnAuthority(t, false) }, capability: 3},
	} {
		t.Run(name, func(t *testing.T) {
			h := newVPNHouse(t)
			if tc.change != nil {
				tc.change(h)
			}
			n := h.enrolledInTPM(t, deviceA).notebook
			if tc.software {
				n = h.enrolled(t, deviceB)
			}
			n.open()
			n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.ClientHello{Capability: tc.capability}}})
			// Whoever is not told and asks all the same is told why not.
			answer := n.askVPN(requestFor(t, attesttest.NewKey(t)))
			if answer.GetVpnKeyWanted() != nil {
				t.Error("told that VPN certificates are issued")
			}
			if why := answer.GetVpnCertificate().GetRefusal(); why == "" && tc.capability >= 3 {
				t.Errorf("not refused: %v", answer)
			}
		})
	}
}

func TestVPNKeysThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		request func(t *testing.T, n *tpmNotebook) *agentv1.VpnKeyRequest
		may     error
		want    string
	}{
		"a key outside the TPM": {func(t *testing.T, _ *tpmNotebook) *agentv1.VpnKeyRequest {
			_, csr := freshKey(t)
			return &agentv1.VpnKeyRequest{Csr: csr, KeyPublic: attesttest.NewKey(t).Area}
		}, nil, refusedRequest},
		"no public area": {func(t *testing.T, _ *tpmNotebook) *agentv1.VpnKeyRequest {
			_, csr := freshKey(t)
			return &agentv1.VpnKeyRequest{Csr: csr}
		}, nil, refusedKey},
		"an attestation key": {func(t *testing.T, _ *tpmNotebook) *agentv1.VpnKeyRequest {
			return requestFor(t, attesttest.NewAK(t))
		}, nil, refusedKey},
		"a request that is none": {func(t *testing.T, _ *tpmNotebook) *agentv1.VpnKeyRequest {
			return &agentv1.VpnKeyRequest{Csr: []byte("csr"), KeyPublic: attesttest.NewKey(t).Area}
		}, nil, refusedRequest},
		"the device key": {func(t *testing.T, n *tpmNotebook) *agentv1.VpnKeyRequest { return requestFor(t, n.tls) }, nil, refusedDevice},
		"too many":       {func(t *testing.T, _ *tpmNotebook) *agentv1.VpnKeyRequest { return requestFor(t, attesttest.NewKey(t)) }, enrolment.ErrTooMany, refusedTooMany},
	} {
		t.Run(name, func(t *testing.T) {
			h := newVPNHouse(t)
			h.cabinet.may = tc.may
			n, _ := h.online(t)
			if got := n.askVPN(tc.request(t, n)).GetVpnCertificate().GetRefusal(); got != tc.want {
				t.Errorf("refused with %q, want %q", got, tc.want)
			}
			n.reports() // the stream goes on
		})
	}
}

func TestVPNKeysAreNotAskedForAllTheTime(t *testing.T) {
	h := newVPNHouse(t)
	n, _ := h.online(t)
	r := requestFor(t, attesttest.NewKey(t))
	if n.askVPN(r).GetVpnKeyChallenge() == nil {
		t.Fatal("not challenged")
	}
	if got := n.askVPN(r).GetVpnCertificate().GetRefusal(); got != refusedPause {
		t.Errorf("asked again at once: %q", got)
	}
}

func TestVPNProofsThatProveNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		prove func(n *tpmNotebook, h *vpnHouse, key attesttest.Key, r *agentv1.VpnKeyRequest, nonce []byte) *agentv1.VpnKeyProof
		want  codes.Code
	}{
		"relayed over another connection": {func(n *tpmNotebook, _ *vpnHouse, key attesttest.Key, r *agentv1.VpnKeyRequest, nonce []byte) *agentv1.VpnKeyProof {
			return n.proof(key, r, nonce, make([]byte, 32))
		}, codes.PermissionDenied},
		"certified for another connection": {func(n *tpmNotebook, _ *vpnHouse, key attesttest.Key, r *agentv1.VpnKeyRequest, nonce []byte) *agentv1.VpnKeyProof {
			p := n.proof(key, r, nonce, n.exporter())
			p.Certify, p.CertifySignature = n.tpm.Certify(n.t, key, attest.Qualify(attest.PurposeVPN, nonce, make([]byte, 32)))
			return p
		}, codes.PermissionDenied},
		"another nonce": {func(n *tpmNotebook, _ *vpnHouse, key attesttest.Key, r *agentv1.VpnKeyRequest, _ []byte) *agentv1.VpnKeyProof {
			return n.proof(key, r, make([]byte, 32), n.exporter())
		}, codes.PermissionDenied},
		"certified for enrolment": {func(n *tpmNotebook, _ *vpnHouse, key attesttest.Key, r *agentv1.VpnKeyRequest, nonce []byte) *agentv1.VpnKeyProof {
			p := n.proof(key, r, nonce, n.exporter())
			p.Certify, p.CertifySignature = n.tpm.Certify(n.t, key, attest.Qualify(attest.PurposeCertify, nonce, n.exporter()))
			return p
		}, codes.PermissionDenied},
		"another key is certified": {func(n *tpmNotebook, _ *vpnHouse, key attesttest.Key, r *agentv1.VpnKeyRequest, nonce []byte) *agentv1.VpnKeyProof {
			p := n.proof(key, r, nonce, n.exporter())
			p.Certify, p.CertifySignature = n.tpm.Certify(n.t, attesttest.NewKey(n.t), attest.Qualify(attest.PurposeVPN, nonce, n.exporter()))
			return p
		}, codes.PermissionDenied},
		"certified by another TPM": {func(n *tpmNotebook, _ *vpnHouse, key attesttest.Key, r *agentv1.VpnKeyRequest, nonce []byte) *agentv1.VpnKeyProof {
			p := n.proof(key, r, nonce, n.exporter())
			p.Certify, p.CertifySignature = attesttest.New(n.t).Certify(n.t, key, attest.Qualify(attest.PurposeVPN, nonce, n.exporter()))
			return p
		}, codes.PermissionDenied},
		"without the key itself": {func(n *tpmNotebook, _ *vpnHouse, key attesttest.Key, r *agentv1.VpnKeyRequest, nonce []byte) *agentv1.VpnKeyProof {
			p := n.proof(key, r, nonce, n.exporter())
			p.Signature = n.proof(attesttest.NewKey(n.t), r, nonce, n.exporter()).GetSignature()
			return p
		}, codes.PermissionDenied},
		"too late": {func(n *tpmNotebook, h *vpnHouse, key attesttest.Key, r *agentv1.VpnKeyRequest, nonce []byte) *agentv1.VpnKeyProof {
			h.now = h.now.Add(proofTimeout + time.Second)
			return n.proof(key, r, nonce, n.exporter())
		}, codes.DeadlineExceeded},
		"not bound": {func(n *tpmNotebook, h *vpnHouse, key attesttest.Key, r *agentv1.VpnKeyRequest, nonce []byte) *agentv1.VpnKeyProof {
			h.cabinet.err = errors.New("disk full")
			return n.proof(key, r, nonce, n.exporter())
		}, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			h := newVPNHouse(t)
			n, _ := h.online(t)
			n.reports()
			key := attesttest.NewKey(t)
			r := requestFor(t, key)
			nonce := n.askVPN(r).GetVpnKeyChallenge().GetNonce()
			n.proveVPN(tc.prove(n, h, key, r, nonce))
			n.ends(tc.want)
			if len(h.cabinet.bound) != 0 {
				t.Error("bound all the same")
			}
		})
	}
}

func TestVPNChallengeIsAnsweredOnce(t *testing.T) {
	h := newVPNHouse(t)
	n, _ := h.online(t)
	key := attesttest.NewKey(t)
	r := requestFor(t, key)
	p := n.proof(key, r, n.askVPN(r).GetVpnKeyChallenge().GetNonce(), n.exporter())
	n.proveVPN(p)
	if n.vpnAnswer().GetVpnCertificate().GetRefusal() != "" {
		t.Fatal("refused")
	}
	n.proveVPN(p)
	n.ends(codes.InvalidArgument)
	if len(h.cabinet.bound) != 1 {
		t.Errorf("%d certificates", len(h.cabinet.bound))
	}
}

// A copy of the TPM certifies with a clock that was stated before.
func TestVPNKeyOfACopiedTPMSuspendsTheDevice(t *testing.T) {
	h := newVPNHouse(t)
	n, _ := h.online(t)
	n.reports()
	key := attesttest.NewKey(t)
	r := requestFor(t, key)
	n.tpm.Clock.Milliseconds -= min(n.tpm.Clock.Milliseconds, 1<<20)
	n.tpm.Clock.ResetCount--
	n.proveVPN(n.proof(key, r, n.askVPN(r).GetVpnKeyChallenge().GetNonce(), n.exporter()))
	n.ends(codes.PermissionDenied)
	if a := h.alarmed(); len(a) != 1 || a[0].kind != "cloned" || !strings.Contains(a[0].detail, "cannot come after") || len(h.cabinet.bound) != 0 {
		t.Errorf("alarms %v", a)
	}
}
