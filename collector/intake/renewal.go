package intake

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

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
	until time.Time
}

// requestRenewal answers a request for a new certificate with a challenge. The
// old key is proven by the stream itself.
func (st *session) requestRenewal(r *agentv1.RenewalRequest) error {
	now := st.service.Now()
	if now.Before(st.renewedAt.Add(renewalPause)) {
		return status.Error(codes.ResourceExhausted, "renewed a moment ago")
	}
	key, err := attest.ParseRequest(r.GetCsr())
	if err != nil {
		return invalid("%v", err)
	}
	spki, err := attest.SPKI(key)
	if err != nil {
		return invalid("%v", err)
	}
	if same(spki, st.spki) {
		return invalid("a renewal needs a fresh key")
	}
	nonce := make([]byte, attest.NonceBytes)
	if _, err := rand.Read(nonce); err != nil {
		return err
	}
	st.renewal = &renewal{csr: r.GetCsr(), key: key, spki: spki, nonce: nonce, until: now.Add(proofTimeout)}
	return st.send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_RenewalChallenge{
		RenewalChallenge: &agentv1.RenewalChallenge{Nonce: nonce},
	}})
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
	if now.After(r.until) {
		return status.Error(codes.DeadlineExceeded, "the challenge has ended")
	}
	exporter, err := mtls.Exporter(st.stream.Context())
	if err != nil {
		return err
	}
	if err := attest.Verify(r.key, attest.RenewDigest(r.nonce, exporter, r.csr), p.GetSignature()); err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	cert, err := st.service.Issuer.IssueDevice(st.deviceID, r.key, 0)
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
