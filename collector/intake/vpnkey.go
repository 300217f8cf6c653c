package intake

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/attestation"
	"pfoertner/collector/authority"
	"pfoertner/collector/enrolment"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// VPNIssuer issues VPN client certificates (authority.Authority).
type VPNIssuer interface {
	IssueVPN(deviceID string, key crypto.PublicKey, p authority.VPNProfile) (*authority.Certificate, error)
	IssuesVPN() bool
	// VPNReplaceBefore is when what was issued earlier lost its worth; zero:
	// never.
	VPNReplaceBefore() time.Time
}

// VPNRegistry knows which VPN certificates are bound to a device
// (enrolment.Registry).
type VPNRegistry interface {
	Device(id string) (*fleetv1.Device, bool)
	// MayHaveVPN returns nil if the device may be issued one now.
	MayHaveVPN(deviceID string) error
	// BindVPN binds one that was just issued, and returns after the commit.
	BindVPN(ctx context.Context, deviceID string, c *fleetv1.VpnCertificate) error
}

// VPNTPMs knows the devices' TPMs (attestation.Book).
type VPNTPMs interface {
	Known(deviceID string) (attestation.Known, bool)
	// Certified verifies that the device's attestation key certifies a key.
	Certified(ctx context.Context, deviceID string, key *attest.Key, purpose attest.Purpose, asked attestation.Question, message, signature []byte) error
}

// VPN is what issuing VPN certificates takes. Nil: none are issued.
type VPN struct {
	Issuer   VPNIssuer
	Registry VPNRegistry
	TPMs     VPNTPMs
	Profile  authority.VPNProfile
}

const (
	// vpnCapability is that of agents that can have a VPN key.
	vpnCapability = 3
	// vpnPause is the least time between two requests of a stream.
	vpnPause = time.Minute
)

// Why there is no VPN certificate, as the agent is told.
const (
	refusedOff      = "this collector issues none"
	refusedNoCA     = "there is no VPN CA"
	refusedSoftware = "the device key is not in a TPM"
	refusedPause    = "asked for a moment ago"
	refusedTooMany  = "too many were issued today"
	refusedKey      = "the key is not one that the TPM has made for this"
	refusedRequest  = "the certificate request is malformed, or for another key"
	refusedDevice   = "the device key cannot be the VPN's too"
)

// vpnKeys is one stream's part in it.
type vpnKeys struct {
	*VPN
	deviceID string
	// spki is the device key of the stream.
	spki []byte
	// stated says what becomes of the stream when its TPM has stated something.
	stated    func(ctx context.Context, asked time.Time, err error) error
	now       func() time.Time
	log       *slog.Logger
	asked     time.Time
	challenge *vpnChallenge
}

// vpnChallenge waits for its proof.
type vpnChallenge struct {
	csr   []byte
	key   *attest.Key
	nonce []byte
	asked time.Time
}

// wanted is what an agent of this capability is told after Welcome; nil:
// nothing, because nothing would be issued to it.
func (v *vpnKeys) wanted(capability uint32) *agentv1.ConnectResponse {
	if capability < vpnCapability || v.refusal() != "" {
		return nil
	}
	d, _ := v.Registry.Device(v.deviceID)
	w := &agentv1.VpnKeyWanted{RenewBefore: durationpb.New(v.lifetime() / 3)}
	// The newest is the last; the ones before are about to end.
	if list := d.GetVpnCertificates(); len(list) > 0 && !list[len(list)-1].GetIssuedAt().AsTime().Before(v.Issuer.VPNReplaceBefore()) {
		w.CertificateSha256 = list[len(list)-1].GetSha256()
	}
	return &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnKeyWanted{VpnKeyWanted: w}}
}

func (v *vpnKeys) lifetime() time.Duration {
	if v.Profile.Lifetime == 0 {
		return authority.VPNLifetime
	}
	return v.Profile.Lifetime
}

// refusal says why nothing is issued on this stream; empty: something may be.
func (v *vpnKeys) refusal() string {
	if v.VPN == nil {
		return refusedOff
	}
	if !v.Issuer.IssuesVPN() {
		return refusedNoCA
	}
	if _, known := v.TPMs.Known(v.deviceID); !known {
		return refusedSoftware
	}
	return ""
}

// request answers a request with a challenge or a refusal.
func (v *vpnKeys) request(r *agentv1.VpnKeyRequest) *agentv1.ConnectResponse {
	v.challenge = nil
	if why := v.refusal(); why != "" {
		return v.refuse(why, nil)
	}
	now := v.now()
	if now.Before(v.asked.Add(vpnPause)) {
		return v.refuse(refusedPause, nil)
	}
	v.asked = now
	if err := v.Registry.MayHaveVPN(v.deviceID); errors.Is(err, enrolment.ErrTooMany) {
		return v.refuse(refusedTooMany, err)
	} else if err != nil {
		return v.refuse("the device may not have one", err)
	}
	key, err := attest.ParseSigningKey(r.GetKeyPublic())
	if err != nil {
		return v.refuse(refusedKey, err)
	}
	requested, err := attest.ParseRequest(r.GetCsr())
	if err != nil || !requested.Equal(key.Public) {
		return v.refuse(refusedRequest, err)
	}
	if spki, err := attest.SPKI(key.Public); err != nil || same(spki, v.spki) {
		return v.refuse(refusedDevice, err)
	}
	nonce := make([]byte, attest.NonceBytes)
	rand.Read(nonce) // never returns an error
	v.challenge = &vpnChallenge{csr: r.GetCsr(), key: key, nonce: nonce, asked: now}
	return &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnKeyChallenge{
		VpnKeyChallenge: &agentv1.VpnKeyChallenge{Nonce: nonce},
	}}
}

// refuse is an answer without a certificate; the stream goes on.
func (v *vpnKeys) refuse(why string, err error) *agentv1.ConnectResponse {
	v.log.Warn("VPN certificate refused", "device_id", v.deviceID, "reason", why, "error", err)
	return &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnCertificate{
		VpnCertificate: &agentv1.VpnCertificate{Refusal: why},
	}}
}

// prove verifies that the key is in the TPM of this device, issues its
// certificate and binds that to the device: the answer is sent when the
// collector knows it. A proof that does not verify ends the stream, and a TPM
// that contradicts itself suspends the device.
func (v *vpnKeys) prove(ctx context.Context, p *agentv1.VpnKeyProof, exporter []byte) (*agentv1.ConnectResponse, error) {
	c := v.challenge
	v.challenge = nil // a challenge is answered once
	if c == nil {
		return nil, invalid("a proof of a VPN key without a challenge")
	}
	if v.now().After(c.asked.Add(proofTimeout)) {
		return nil, status.Error(codes.DeadlineExceeded, "the challenge for the VPN key has ended")
	}
	if err := attest.Verify(c.key.Public, attest.VPNDigest(c.nonce, exporter, c.csr), p.GetSignature()); err != nil {
		return nil, status.Errorf(codes.PermissionDenied, "VPN key: %v", err)
	}
	asked := attestation.Question{Nonce: c.nonce, Exporter: exporter, Asked: c.asked}
	err := v.TPMs.Certified(ctx, v.deviceID, c.key, attest.PurposeVPN, asked, p.GetCertify(), p.GetCertifySignature())
	if err != nil {
		return nil, v.stated(ctx, c.asked, err)
	}
	return v.issue(ctx, c.key)
}

// issue issues and binds.
func (v *vpnKeys) issue(ctx context.Context, key *attest.Key) (*agentv1.ConnectResponse, error) {
	cert, err := v.Issuer.IssueVPN(v.deviceID, key.Public, v.Profile)
	if errors.Is(err, authority.ErrNoVPN) { // revoked meanwhile
		return v.refuse(refusedNoCA, nil), nil
	}
	if err != nil {
		return nil, v.failed(ctx, err)
	}
	sum := sha256.Sum256(cert.Chain[0])
	err = v.Registry.BindVPN(ctx, v.deviceID, &fleetv1.VpnCertificate{
		Sha256: sum[:], Serial: cert.Serial,
		IssuedAt: timestamppb.New(v.now()), ExpiresAt: timestamppb.New(cert.NotAfter),
	})
	switch {
	case errors.Is(err, enrolment.ErrTooMany):
		return v.refuse(refusedTooMany, err), nil
	case errors.Is(err, enrolment.ErrNotAccepted):
		return nil, status.Error(codes.PermissionDenied, err.Error())
	case err != nil:
		return nil, v.failed(ctx, err)
	}
	return &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnCertificate{
		VpnCertificate: &agentv1.VpnCertificate{Chain: cert.Chain},
	}}, nil
}

// failed is a failure of our own: the agent is told no more than that.
func (v *vpnKeys) failed(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	v.log.ErrorContext(ctx, "VPN certificate not issued", "device_id", v.deviceID, "error", err)
	return status.Error(codes.Unavailable, "the collector cannot issue VPN certificates now")
}

// vpn is the stream's part, made at its first use.
func (st *session) vpn() *vpnKeys {
	if st.vpnKeys == nil {
		st.vpnKeys = &vpnKeys{
			VPN: st.service.VPN, deviceID: st.deviceID, spki: st.spki,
			stated: st.stated, now: st.service.Now, log: st.service.Log,
		}
	}
	return st.vpnKeys
}

// wantVPNKey tells an agent after Welcome that it gets VPN certificates.
func (st *session) wantVPNKey(capability uint32) error {
	if m := st.vpn().wanted(capability); m != nil {
		return st.send(m)
	}
	return nil
}

func (st *session) requestVPNKey(r *agentv1.VpnKeyRequest) error {
	return st.send(st.vpn().request(r))
}

func (st *session) proveVPNKey(ctx context.Context, p *agentv1.VpnKeyProof) error {
	exporter, err := mtls.Exporter(st.stream.Context())
	if err != nil {
		return err
	}
	m, err := st.vpn().prove(ctx, p, exporter)
	if err != nil {
		return err
	}
	return st.send(m)
}
