package enrolment

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io/fs"
	"slices"

	"google.golang.org/protobuf/proto"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Bind ties the certificate of a VPN client, by the SHA-256 of its DER form, to
// an asset, or removes it. Binding what is bound to the same asset, and
// removing what is not bound, changes nothing. The error wraps fs.ErrNotExist
// for an unknown asset, fs.ErrExist for a certificate of another asset,
// ErrTransition for a retired asset, fs.ErrInvalid for a hash of another length.
func (r *Registry) Bind(ctx context.Context, actor, key string, sha256 []byte, remove bool) error {
	if len(sha256) != 32 {
		return fmt.Errorf("certificate hash of %d bytes, a SHA-256 has 32: %w", len(sha256), fs.ErrInvalid)
	}
	r.change.Lock()
	defer r.change.Unlock()
	old, ok := r.Find(key)
	if !ok {
		return fmt.Errorf("asset %q: %w", key, fs.ErrNotExist)
	}
	number := old.GetAsset().GetAssetNumber()
	mine, err := r.ownCertificate(old, sha256)
	switch {
	case err != nil:
		return err
	case mine != remove: // already as it should be
		return nil
	case !remove && old.GetAsset().GetState() == retired:
		return fmt.Errorf("binding a certificate to retired asset %s: %w", number, ErrTransition)
	}
	d, kind := proto.CloneOf(old), "certificate.bound"
	if remove {
		kind = "certificate.unbound"
		dropVPN(d, func(c *fleetv1.VpnCertificate) bool { return bytes.Equal(c.GetSha256(), sha256) })
		d.Asset.VpnCertificatesSha256 = slices.DeleteFunc(d.Asset.VpnCertificatesSha256, func(b []byte) bool { return bytes.Equal(b, sha256) })
	} else {
		d.Asset.VpnCertificatesSha256 = append(d.Asset.VpnCertificatesSha256, sha256)
	}
	record := r.record(kind, actor, d, map[string]string{"certificate_sha256": hex.EncodeToString(sha256)})
	if err := r.save(ctx, []*fleetv1.Device{d}, record); err != nil {
		return fmt.Errorf("binding certificate to %s: %w", number, err)
	}
	return nil
}

// ownCertificate says whether a certificate is bound to an asset. The error
// wraps fs.ErrExist for one that is bound to another.
func (r *Registry) ownCertificate(d *fleetv1.Device, sha256 []byte) (bool, error) {
	owner, bound := r.DeviceOfCertificate(sha256)
	if bound && owner.GetAsset().GetAssetNumber() != d.GetAsset().GetAssetNumber() {
		return false, fmt.Errorf("certificate is bound to asset %s: %w", owner.GetAsset().GetAssetNumber(), fs.ErrExist)
	}
	return bound, nil
}
