package enrolment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"pfoertner/collector/attestation"
	"pfoertner/collector/authority"
	"pfoertner/collector/endorsement"
	"pfoertner/internal/attest"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// maxAbsence is how long a notebook may stay away and still come back without a
// token.
const maxAbsence = 90 * 24 * time.Hour

// candidacy is what the collector knows about an applicant.
type candidacy struct {
	facts
	// device is the asset that the notebook may be; nil: none.
	device *fleetv1.Device
	// tokenAsset is the number of the asset that the token was made for, whatever
	// it is worth; empty: of none.
	tokenAsset string
	// endorsement is of a genuine TPM; doubts are why there is none.
	endorsement endorsement.Endorsement
	doubts      error
	// known is what the Book has of the device.
	known attestation.Known
}

// consider gathers the facts about an applicant that has proven its claims. It
// spends the token, unless something false was shown of the TPM: it may be an
// authority that is missing, and the same token must do when it was added.
func (s *Server) consider(ctx context.Context, a *applicant) (*candidacy, error) {
	c := &candidacy{facts: facts{hardware: a.tpm != nil}}
	var owner *fleetv1.Device
	if c.hardware {
		owner, _ = s.Registry.DeviceOfEndorsement(a.ekSHA256)
		c.device = owner
		if c.voucher, c.endorsement, c.doubts = s.vouch(a); c.voucher == disbelieved {
			return c, nil
		}
	}
	named, err := s.useToken(ctx, a, c)
	if err != nil {
		return nil, err
	}
	if owner == nil {
		c.device = named
	}
	if c.device != nil {
		s.compareAsset(a, c)
	}
	if c.device != nil && c.hardware {
		s.compareTPM(a, c, owner, named)
	}
	return c, nil
}

// vouch asks who speaks for the TPM. What a TPM states of its maker is no
// proof, but a program that says what it is gets taken at its word.
func (s *Server) vouch(a *applicant) (voucherFact, endorsement.Endorsement, error) {
	bundle := s.Endorsements()
	e, err := bundle.Verify(a.tpm.Certificates, a.tpm.EK, s.Now())
	stated := a.hello.GetTpm().GetManufacturer()
	virtual := bundle.LooksVirtual(stated, "")
	bareTPM := endorsement.Bare(err)
	switch {
	case virtual && err == nil && !e.Virtual, virtual && bareTPM && !bundle.AllowsVirtual():
		return disbelieved, endorsement.Endorsement{}, fmt.Errorf("%w: it states to be by %q", endorsement.ErrVirtual, stated)
	case err == nil:
		return genuine, e, nil
	case bareTPM:
		return bare, endorsement.Endorsement{Virtual: virtual}, err
	}
	return disbelieved, endorsement.Endorsement{}, err
}

// compareAsset fills in what the inventory says of the asset.
func (s *Server) compareAsset(a *applicant, c *candidacy) {
	asset := c.device.GetAsset()
	c.state = asset.GetState()
	c.serialDiffers = asset.GetSerial() != "" && serialKey(asset.GetSerial()) != serialKey(a.hello.GetMachine().GetSerial())
	c.permitted = softwareAllowed(asset, s.Now())
	c.hadTPM = hasEndorsement(asset) || c.device.GetKey().GetProtection() == fleetv1.KeyProtection_KEY_PROTECTION_TPM
}

// compareTPM fills in what is known of the TPM. owner is the asset that has its
// endorsement key, named the token's; nil: none.
func (s *Server) compareTPM(a *applicant, c *candidacy, owner, named *fleetv1.Device) {
	asset := c.device.GetAsset()
	c.ek = endorsementOf(c.device, a.ekSHA256)
	c.elsewhere = owner != nil && named != nil && owner.GetAsset().GetAssetNumber() != named.GetAsset().GetAssetNumber()
	c.occupied = c.ek == ekUnknown && hasEndorsement(asset)
	c.exchanged = len(asset.GetEndorsementKeysSha256()) > 0 && !hasEndorsement(asset)
	c.window = s.Now().Before(asset.GetReimageUntil().AsTime())
	c.seenLately = s.Now().Before(s.lastSeen(c.device).Add(maxAbsence))
	c.ak = akNone
	if c.state != active {
		return // what it was before counts no more
	}
	c.enrolledWith = bytes.Equal(c.device.GetKey().GetEndorsementKeySha256(), a.ekSHA256)
	var known bool
	if c.known, known = s.Book.Known(c.device.GetId()); !known {
		return
	}
	if c.ak = akOther; c.known.Holds(a.hello.GetTpm().GetAkPublic()) {
		c.ak = akSame
	}
}

// endorsementOf is what a device has to do with an endorsement key.
func endorsementOf(d *fleetv1.Device, sha256 []byte) endorsementFact {
	a := d.GetAsset()
	switch {
	case approved(a, sha256):
		return ekApproved
	case listed(a, sha256):
		return ekListed
	case blocked(a, sha256):
		return ekBlocked
	case bytes.Equal(d.GetPending().GetEndorsementKeySha256(), sha256):
		return ekWaiting
	}
	return ekUnknown
}

// lastSeen is when a device was last heard of: its last report, or when it got
// its certificate.
func (s *Server) lastSeen(d *fleetv1.Device) time.Time {
	last := d.GetEnrolledAt().AsTime()
	if ends := d.GetCertificateExpiresAt(); ends != nil {
		last = latest(last, ends.AsTime().Add(-authority.DeviceLifetime))
	}
	if s.LastSeen != nil {
		last = latest(last, s.LastSeen(d.GetId()))
	}
	return last
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// useToken spends the token and returns the asset that it is bound to; nil: it
// is worth nothing.
func (s *Server) useToken(ctx context.Context, a *applicant, c *candidacy) (named *fleetv1.Device, err error) {
	if a.hello.GetToken() == "" {
		return nil, nil
	}
	c.tokenAsset, err = s.Registry.store.UseToken(ctx, hashToken(a.hello.GetToken()), s.Now())
	used, expired := errors.Is(err, fs.ErrExist), errors.Is(err, os.ErrDeadlineExceeded)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.token = tokenUnknown
		return nil, nil
	case used && (expired || !s.answerWasLost(a, c.tokenAsset)):
		c.token = tokenUsed
		return nil, nil
	case expired && !used:
		c.token = tokenExpired
		return nil, nil
	case err != nil && !used:
		return nil, fmt.Errorf("using token: %w", err)
	}
	named, ok := s.Registry.Find(c.tokenAsset)
	if !ok {
		c.token = tokenUnknown
		return nil, nil
	}
	c.token = tokenValid
	return named, nil
}

// answerWasLost says whether a used token comes again with the very software
// key that was enrolled with it: the notebook has proven the key, but never got
// its certificate. It is issued once more. A TPM needs no token for that.
func (s *Server) answerWasLost(a *applicant, assetNumber string) bool {
	device, ok := s.Registry.Find(assetNumber)
	if !ok || a.tpm != nil {
		return false
	}
	spki, err := attest.SPKI(a.key)
	return err == nil && s.Registry.Accepts(device.GetId(), spki) == nil
}
