package enrolment

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/attestation"
	"pfoertner/collector/audit"
	"pfoertner/collector/authority"
	"pfoertner/internal/attest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

const (
	// askAgainAfter is when a notebook that waits for approval may ask again.
	askAgainAfter = 5 * time.Minute
	// maxLegible bounds what strangers can write into our records, in bytes.
	maxLegible = 500
)

// issue makes the applicant the device: the TPM must be the one that it was
// before, then the certificate is issued, and saved with all that is known from
// now on.
func (s *Server) issue(ctx context.Context, a *applicant, c *candidacy, way string) (*agentv1.EnrolResponse, error) {
	if err := s.sameTPM(ctx, a, c); err != nil {
		return nil, err
	}
	if err := s.otherSerial(ctx, a, c); err != nil {
		return nil, err
	}
	id := c.device.GetId()
	if id == "" {
		id = uuid.NewString()
	}
	lifetime := authority.DeviceLifetime
	if !c.hardware {
		lifetime = s.Registry.lifetimeInSoftware(c.device.GetAsset())
	}
	cert, err := s.Issuer.IssueDevice(id, a.key, lifetime)
	if err != nil {
		return nil, err
	}
	e, err := s.enrolment(a, c, id, cert, way)
	if err != nil {
		return nil, err
	}
	if err := s.Registry.Enrol(ctx, e); errors.Is(err, ErrTransition) {
		return nil, &refusal{asset: e.AssetNumber, device: id, reason: "asset_changed"}
	} else if err != nil {
		return nil, err
	}
	return &agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Issued{Issued: &agentv1.Issued{
		Chain: cert.Chain, DeviceId: id, AssetNumber: e.AssetNumber,
		RenewAfter: timestamppb.New(cert.RenewAfter), TrustBundle: s.Issuer.TrustBundle(),
	}}}, nil
}

// sameTPM compares the clock of a TPM that is known with what it stated before.
// Two TPMs with one state are an alarm.
func (s *Server) sameTPM(ctx context.Context, a *applicant, c *candidacy) error {
	if !c.hardware || c.ak != akSame {
		return nil
	}
	id := c.device.GetId()
	err := s.Book.Follow(ctx, id, a.hello.GetTpm().GetAkPublic(), a.asked, a.proven.Clock)
	if errors.Is(err, attestation.ErrCloned) {
		if alarm := s.Registry.Alarm(ctx, id, "cloned", err.Error()); alarm != nil {
			return alarm
		}
		return &refusal{asset: c.device.GetAsset().GetAssetNumber(), device: id, reason: "cloned", detail: err.Error()}
	}
	return err
}

// otherSerial records that a TPM that is known comes with another serial number
// than the inventory has.
func (s *Server) otherSerial(ctx context.Context, a *applicant, c *candidacy) error {
	if !c.serialDiffers {
		return nil
	}
	details := map[string]string{"reason": "serial", "detail": legible(serials(a, c))}
	maps.Copy(details, a.says())
	return s.Registry.store.AppendAudit(ctx, audit.Record{
		At: s.Now(), Kind: recordSerial, DeviceID: c.device.GetId(), AssetNumber: c.device.GetAsset().GetAssetNumber(), Details: details,
	})
}

// serials are both numbers, for records.
func serials(a *applicant, c *candidacy) string {
	return fmt.Sprintf("inventory %q, notebook %q", c.device.GetAsset().GetSerial(), a.hello.GetMachine().GetSerial())
}

// enrolment is what is to be saved of a new or returning device.
func (s *Server) enrolment(a *applicant, c *candidacy, id string, cert *authority.Certificate, way string) (Enrolment, error) {
	spki, err := attest.SPKI(a.key)
	if err != nil {
		return Enrolment{}, err
	}
	fingerprint, err := attest.Fingerprint(a.key)
	if err != nil {
		return Enrolment{}, err
	}
	e := Enrolment{
		AssetNumber: c.device.GetAsset().GetAssetNumber(), DeviceID: id, SPKI: spki, Certificate: cert,
		Key: &fleetv1.DeviceKey{Protection: fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE},
		Details: map[string]string{
			"way": way, "key_fingerprint": fingerprint, "key_protection": "software", "certificate_serial": cert.Serial,
			"agent_version": legible(a.hello.GetAgentVersion()),
		},
	}
	maps.Copy(e.Details, a.says())
	if a.tpm != nil {
		e.TPM, e.KnownAttestationKey = s.tpm(a, c, id), c.ak == akSame
		e.Committed = func() { s.Book.Put(*e.TPM) }
		e.Key = deviceKey(a, c)
		e.Details["key_protection"] = "tpm"
		e.Details["endorsed_by"] = e.Key.GetEndorsedBy()
	}
	return e, nil
}

// tpm is what the Book gets to know: what it knew, and what was proven now.
func (s *Server) tpm(a *applicant, c *candidacy, id string) *attestation.Known {
	k, now := c.known, s.Now()
	if ak := a.hello.GetTpm().GetAkPublic(); !bytes.Equal(ak, k.AttestationKey) {
		k.AttestationKey, k.Since = ak, now
	}
	k.DeviceID, k.EndorsementKey = id, a.hello.GetTpm().GetEkPublic()
	k.PreviousAttestationKey, k.PreviousClock = nil, attest.Clock{}
	k.Clock = a.proven.Clock
	k.Virtual = c.endorsement.Virtual || (c.ak == akSame || c.enrolledWith) && c.known.Virtual
	k = k.Quoted(a.proven, now)
	return &k
}

// deviceKey is what people see of the key; since when it has its attestation key
// the Book knows. Of a TPM whose certificate has
// expired since it enrolled, what was believed then still holds.
func deviceKey(a *applicant, c *candidacy) *fleetv1.DeviceKey {
	k := &fleetv1.DeviceKey{
		Manufacturer: c.endorsement.ManufacturerID, Model: c.endorsement.Model,
		Virtual: c.endorsement.Virtual, EndorsedBy: cmp.Or(c.endorsement.Root, c.endorsement.RootSHA256),
	}
	switch {
	case c.voucher == bare && c.enrolledWith:
		k = proto.CloneOf(c.device.GetKey())
	case c.voucher == bare:
		k.Manufacturer = legible(a.hello.GetTpm().GetManufacturer())
	}
	k.Protection = fleetv1.KeyProtection_KEY_PROTECTION_TPM
	k.EndorsementKeySha256, k.Fingerprint = a.ekSHA256, a.fingerprint
	k.Firmware = legible(a.hello.GetTpm().GetFirmwareVersion())
	return k
}

// wait remembers the applicant, so that two persons can compare its fingerprint
// and approve. One that asks again is remembered already.
func (s *Server) wait(ctx context.Context, a *applicant, c *candidacy, reason string) (*agentv1.EnrolResponse, error) {
	now, number := s.Now(), c.device.GetAsset().GetAssetNumber()
	if c.ek != ekWaiting || c.token == tokenValid {
		said := a.says()
		err := s.Registry.SetPending(ctx, number, &fleetv1.PendingEnrolment{
			Fingerprint: a.fingerprint, EndorsementKeySha256: a.ekSHA256, Reason: reason,
			Manufacturer: cmp.Or(c.endorsement.ManufacturerID, said["tpm_manufacturer"]),
			RequestedAt:  timestamppb.New(now), ExpiresAt: timestamppb.New(now.Add(PendingLifetime)),
			Vendor: said["vendor"], Model: said["model"], Serial: said["serial"],
		}, said)
		if errors.Is(err, ErrTransition) || errors.Is(err, fs.ErrExist) {
			return nil, &refusal{asset: number, device: c.device.GetId(), reason: "asset_changed"}
		}
		if err != nil {
			return nil, err
		}
	}
	return &agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Pending{Pending: &agentv1.Pending{
		Fingerprint: a.fingerprint, AskAgainAt: timestamppb.New(now.Add(askAgainAfter)),
	}}}, nil
}

// says is what the notebook says of itself, for audit records.
func (a *applicant) says() map[string]string {
	m := a.hello.GetMachine()
	says := map[string]string{"vendor": legible(m.GetVendor()), "model": legible(m.GetModel()), "serial": legible(m.GetSerial())}
	if a.tpm != nil {
		says["endorsement_key"] = a.fingerprint
		says["tpm_manufacturer"] = legible(a.hello.GetTpm().GetManufacturer())
		says["tpm_firmware"] = legible(a.hello.GetTpm().GetFirmwareVersion())
	}
	return says
}

// legible is a stranger's text as people and records get to see it: without
// what could move a cursor, and no longer than needed.
func legible(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
	for i := range text {
		if i > maxLegible {
			return text[:i]
		}
	}
	return text
}

// refusal is why an attempt is refused, for the audit log.
type refusal struct {
	kind   string // audit record; empty: recordRefused
	reason string // one word
	device string
	asset  string
	detail string
	says   map[string]string
}

func (r *refusal) Error() string { return "refused: " + r.reason }

// refuse makes the refusal that was decided.
func (a *applicant) refuse(c *candidacy, d ruling) *refusal {
	no := &refusal{kind: d.record, reason: d.reason, device: c.device.GetId(), asset: c.device.GetAsset().GetAssetNumber(), says: a.says()}
	switch d.record {
	case recordToken:
		no.asset = c.tokenAsset
		no.detail = "token " + hex.EncodeToString(hashToken(a.hello.GetToken())[:8])
	case recordSerial:
		no.detail = serials(a, c)
	case recordEndorsed:
		no.detail = c.doubts.Error()
	case recordConflict:
		no.detail = fmt.Sprintf("token of asset %s, endorsement key of asset %s", c.tokenAsset, no.asset)
		if c.occupied {
			no.detail = fmt.Sprintf("asset %s has another endorsement key", no.asset)
		}
	}
	return no
}

// refused puts a refusal into the audit log and returns what the stranger gets
// to see, which is always the same.
func (s *Server) refused(ctx context.Context, r *refusal) error {
	if r.kind == "" {
		r.kind = recordRefused
	}
	details := map[string]string{"reason": r.reason, "detail": legible(r.detail)}
	maps.Copy(details, r.says)
	record := audit.Record{At: s.Now(), Kind: r.kind, DeviceID: r.device, AssetNumber: r.asset, Details: details}
	// The stranger may be gone: the record is written all the same.
	if err := s.Registry.store.AppendAudit(context.WithoutCancel(ctx), record); err != nil {
		s.Log.ErrorContext(ctx, "recording refusal failed", "kind", r.kind, "reason", r.reason, "error", err)
	}
	return errRefused
}
