package enrolment

import (
	"bytes"
	"slices"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// DeviceOfEndorsement returns the device whose TPM has the endorsement key with
// this hash (attest.Claim.EndorsementHash): as listed or approved, as it was
// before the TPM was exchanged or the asset retired, or as it waits for
// approval. It belongs to no other asset.
func (r *Registry) DeviceOfEndorsement(sha256 []byte) (*fleetv1.Device, bool) {
	return r.lookup(r.byEndorsement, string(sha256))
}

// endorsements are the hashes by which DeviceOfEndorsement finds a device.
func endorsements(d *fleetv1.Device) [][]byte {
	all := d.GetAsset().GetEndorsementKeysSha256()
	if waiting := d.GetPending().GetEndorsementKeySha256(); len(waiting) > 0 {
		all = including(all, waiting)
	}
	return all
}

func contains(sums [][]byte, sum []byte) bool {
	return slices.ContainsFunc(sums, func(s []byte) bool { return bytes.Equal(s, sum) })
}

// including returns sums with sum in them.
func including(sums [][]byte, sum []byte) [][]byte {
	if contains(sums, sum) {
		return sums
	}
	return append(slices.Clip(sums), sum)
}

// blocked says whether an endorsement key is not accepted for an asset.
func blocked(a *fleetv1.Asset, sum []byte) bool {
	return contains(a.GetBlockedEndorsementKeysSha256(), sum)
}

// listed says whether an asset's notebook may have the endorsement key: it is
// on the delivery list or was approved, and its TPM was not exchanged since.
func listed(a *fleetv1.Asset, sum []byte) bool {
	return contains(a.GetEndorsementKeysSha256(), sum) && !blocked(a, sum)
}

// approved says whether two operators have approved an endorsement key for an
// asset, so that nobody else needs to vouch for it.
func approved(a *fleetv1.Asset, sum []byte) bool {
	return contains(a.GetApprovedEndorsementKeysSha256(), sum) && listed(a, sum)
}

// hasEndorsement says whether there is a TPM that the asset's notebook may have.
func hasEndorsement(a *fleetv1.Asset) bool {
	return slices.ContainsFunc(a.GetEndorsementKeysSha256(), func(sum []byte) bool { return !blocked(a, sum) })
}
