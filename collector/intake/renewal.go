package intake

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/attestation"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

const (
	// proofTimeout is how long a challenge is valid.
	proofTimeout = time.Minute
	// renewalPause is the least time between two renewals of a stream.
	renewalPause = time.Minute
)

// renewal is a challenge that waits for its proof.
type renewal struct {
	csr   []byte
	key   *ecdsa.PublicKey
	spki  []byte
	nonce []byte
	// tpm is the request by a key in a TPM; nil: in software.
	tpm   *attest.Renewal
	asked time.Time
}

// requestRenewal answers a request for a new certificate with a challenge. The
// old key is proven by the stream itself.
func (st *session) requestRenewal(ctx context.Context, m *agentv1.RenewalRequest) error {
	now := st.service.Now()
	if now.Before(st.renewedAt.Add(renewalPause)) {
		return status.Error(codes.ResourceExhausted, "renewed a moment ago")
	}
	key, err := attest.ParseRequest(m.GetCsr())
	if err != nil {
		return invalid("%v", err)
	}
	spki, err := attest.SPKI(key)
	if err != nil {
		return invalid("%v", err)
	}
	r := &renewal{csr: m.GetCsr(), key: key, spki: spki, asked: now}
	challenge, err := st.challenge(ctx, r, m)
	if err != nil {
		return err
	}
	r.nonce = challenge.GetNonce()
	st.renewal = r
	return st.send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_RenewalChallenge{RenewalChallenge: challenge}})
}

// challenge asks a key in the TPM for more than one in software, which in turn
// has to be fresh: whoever copied the one before is left with it. A device
// whose key is in a TPM never gets a certificate for another.
func (st *session) challenge(ctx context.Context, r *renewal, m *agentv1.RenewalRequest) (*agentv1.RenewalChallenge, error) {
	known, hasTPM := st.service.TPMs.Known(st.deviceID)
	if !hasTPM && !st.service.inTPM(st.deviceID) {
		if same(r.spki, st.spki) {
			return nil, invalid("a renewal needs a fresh key")
		}
		nonce := make([]byte, attest.NonceBytes)
		rand.Read(nonce) // never returns an error
		return &agentv1.RenewalChallenge{Nonce: nonce}, nil
	}
	if len(m.GetTlsKeyPublic()) == 0 {
		st.service.note(ctx, st.deviceID, "alarm.downgrade", "a renewal for a key that is not in the TPM")
		return nil, status.Error(codes.PermissionDenied, "the key of this device is in its TPM")
	}
	var err error
	if r.tpm, err = attest.ParseRenewal(m, r.key); err != nil {
		return nil, invalid("%v", err)
	}
	ek, err := attest.ParseEndorsementKey(known.EndorsementKey)
	if err != nil {
		return nil, err
	}
	return r.tpm.NewChallenge(ek)
}

// proveRenewal verifies the proof of the new key, issues its certificate, makes
// it the device's key and sends it. This stream goes on under the old key until
// a stream begins with the new one: the answer may be lost.
func (st *session) proveRenewal(ctx context.Context, p *agentv1.RenewalProof) error {
	r := st.renewal
	st.renewal = nil // a challenge is answered once
	if r == nil {
		return invalid("a proof without a challenge")
	}
	now := st.service.Now()
	if now.After(r.asked.Add(proofTimeout)) {
		return status.Error(codes.DeadlineExceeded, "the challenge has ended")
	}
	exporter, err := mtls.Exporter(st.stream.Context())
	if err != nil {
		return err
	}
	if err := st.verifyRenewal(ctx, r, p, exporter); err != nil {
		return err
	}
	cert, err := st.service.Issuer.IssueDevice(st.deviceID, r.key, st.service.Registry.CertificateLifetime(st.deviceID))
	if err == nil {
		err = st.service.Registry.Renew(ctx, st.deviceID, st.spki, r.spki, cert.Serial, cert.NotAfter)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		st.service.Log.ErrorContext(ctx, "renewal failed", "device_id", st.deviceID, "error", err)
		return status.Error(codes.Unavailable, "the collector cannot renew certificates now")
	}
	st.renewedAt = now
	device, _ := st.service.Registry.Device(st.deviceID)
	st.service.Metrics.renewed()
	return st.send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Issued{Issued: &agentv1.Issued{
		Chain: cert.Chain, DeviceId: st.deviceID, AssetNumber: device.GetAsset().GetAssetNumber(),
		RenewAfter: timestamppb.New(cert.RenewAfter), TrustBundle: st.service.Issuer.TrustBundle(),
	}}})
}

// verifyRenewal verifies the proof of a new key. Of a TPM the attestation key of
// before certifies it, so that its clock shows whether it is the same TPM; a new
// one counts from then on.
func (st *session) verifyRenewal(ctx context.Context, r *renewal, p *agentv1.RenewalProof, exporter []byte) error {
	if r.tpm == nil {
		if err := attest.Verify(r.key, attest.RenewDigest(r.nonce, exporter, r.csr), p.GetSignature()); err != nil {
			return status.Error(codes.PermissionDenied, err.Error())
		}
		return nil
	}
	if err := r.tpm.Verify(p, exporter); err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	asked := attestation.Question{Nonce: r.nonce, Exporter: exporter, Asked: r.asked}
	err := st.service.TPMs.Certified(ctx, st.deviceID, r.tpm.TLS, attest.PurposeCertify, asked, p.GetCertify(), p.GetCertifySignature())
	if err == nil && len(r.tpm.AttestationKey) > 0 {
		err = st.service.TPMs.Replace(ctx, st.deviceID, r.tpm.AttestationKey)
	}
	return st.stated(ctx, r.asked, err)
}

// settle ends the key before a renewal when its successor is used for the first
// time. That is here and not at the handshake, which must not wait for a
// database; and a stream that could not make it last is none.
func (st *session) settle(ctx context.Context) error {
	err := st.service.Registry.Settle(ctx, st.deviceID, st.spki)
	if err == nil || ctx.Err() != nil {
		return context.Cause(ctx)
	}
	st.service.Log.ErrorContext(ctx, "first use of a new key not stored", "device_id", st.deviceID, "error", err)
	return status.Error(codes.Unavailable, "the collector cannot store keys now")
}
