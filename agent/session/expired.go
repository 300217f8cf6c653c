package session

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"pfoertner/agent/identity"
	"pfoertner/agent/uplink"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// askTimeout ends the question whether the collector, too, holds a certificate
// for expired.
const askTimeout = 20 * time.Second

// errEnrolled ends an attempt that has replaced a certificate of no more use.
var errEnrolled = errors.New("the certificate was replaced by a new enrolment")

// enrolAnew replaces a certificate that has expired: by the keys in the TPM,
// which the collector knows, or with a token that somebody has brought
// meanwhile: a notebook that comes back after months has nobody at the keyboard
// who could. A clock that is wrong must not cost a certificate
// that is good, so the collector has to say that it has expired. It returns
// errEnrolled, a *identity.PendingError, or expired with whatever prevents it.
func (a *agent) enrolAnew(ctx context.Context, id *identity.Identity, expired error) error {
	if a.Enrolment == nil {
		return expired
	}
	e, err := a.Enrolment()
	if errors.Is(err, identity.ErrNoToken) {
		return expired
	}
	if err != nil {
		return errors.Join(expired, err)
	}
	if spent, err := a.State.Spent(e.Token); err != nil || spent && !id.InTPM() {
		return errors.Join(expired, err)
	}
	if id.InTPM() && a.refusedLately() || !a.endedForCollector(ctx, id) {
		return expired
	}
	e.Pin = uplink.Pin{Known: id.ServerPool()}
	fresh, err := a.State.Enrol(ctx, e)
	var waiting *identity.PendingError
	switch {
	case err == nil:
		a.Log.Info("enrolled", "device_id", fresh.DeviceID, "asset_number", fresh.AssetNumber)
		return errEnrolled
	case errors.As(err, &waiting):
		return err
	case grpcstatus.Code(err) == codes.PermissionDenied && id.InTPM():
		a.returned = time.Now()
	case grpcstatus.Code(err) == codes.PermissionDenied:
		// Refused once is refused for good: asking again would only fill the
		// collector's audit log.
		err = errors.Join(err, a.State.Spend(e.Token))
	}
	return errors.Join(expired, err)
}

// returnEvery is how often a notebook that is refused tries to enrol by its TPM:
// the collector writes down every attempt.
const returnEvery = time.Hour

// comeBack enrols by the TPM alone when the collector does not accept the device
// key any more although the certificate has not ended: a disk that was restored
// from a backup has an old key, and an answer that got lost may have left the
// collector with a newer attestation key. It returns errEnrolled, or refusal:
// whoever is suspended stays so. With a software key that is always so.
func (a *agent) comeBack(ctx context.Context, refusal error) error {
	if a.Enrolment == nil || a.refusedLately() {
		return refusal
	}
	id, err := a.State.Load()
	if err != nil || !id.InTPM() {
		return refusal
	}
	e, err := a.Enrolment()
	if err != nil {
		return refusal
	}
	e.Token, e.Pin = "", uplink.Pin{Known: id.ServerPool()} // the token is not to be spent on this
	fresh, err := a.State.Enrol(ctx, e)
	if err == nil || grpcstatus.Code(err) == codes.PermissionDenied {
		a.returned = time.Now()
	}
	switch {
	case errors.As(err, new(*identity.PendingError)):
		return err
	case err != nil:
		a.Log.Warn("not accepted, and not enrolled anew", "error", err)
		return refusal
	}
	a.Log.Info("enrolled", "device_id", fresh.DeviceID, "asset_number", fresh.AssetNumber)
	return errEnrolled
}

func (a *agent) refusedLately() bool {
	return !a.returned.IsZero() && time.Since(a.returned) < returnEvery
}

// notAccepted says whether the collector has turned down the device key.
func notAccepted(err error) bool {
	code := grpcstatus.Code(err)
	return code == codes.PermissionDenied || code == codes.Unauthenticated || rejected(err)
}

// endedForCollector says whether the collector turns the certificate of id down
// because it has expired. Anything else it does is a no, also that it cannot be
// reached.
func (a *agent) endedForCollector(ctx context.Context, id *identity.Identity) bool {
	// As it was when it began: it is the collector's clock that is asked.
	cert, err := id.Certificate(id.Chain[0].NotBefore)
	if err != nil {
		return false
	}
	conn, err := a.Target.Dial(id.ServerPool(), func() (*tls.Certificate, error) { return cert, nil })
	if err != nil {
		return false
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	stream, err := agentv1.NewSessionServiceClient(conn).Connect(ctx)
	if err == nil {
		// A collector that takes the certificate answers a hello.
		_ = stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.ClientHello{
			Capability: posture.Capability, AgentVersion: a.Target.Version,
		}}})
		_, err = stream.Recv()
	}
	// certificate_expired (RFC 8446, 6.2), which gRPC passes on as text only.
	return rejected(err) && strings.Contains(err.Error(), "expired certificate")
}
