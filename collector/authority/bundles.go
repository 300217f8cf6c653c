package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
)

// ReferenceSignerFile is the name, without its ending, of certificate and key
// in a bundle of WriteReferenceSigner.
const ReferenceSignerFile = "reference-signer"

// bundle is what a peer gets on its way: its role, its files, who issues it.
type bundle struct {
	role mtls.Role
	file string
	kind issuingKind
}

var bundles = []bundle{
	{mtls.RoleGate, "gate", kindGate},
	{mtls.RoleOperator, "operator", kindOperator},
	{mtls.RoleReferenceSigner, ReferenceSignerFile, kindServer},
}

// WriteOperator is WriteBundle for an operator: operator.crt, operator.key.
func (a *Authority) WriteOperator(dir, name string) error {
	return a.WriteBundle(dir, mtls.RoleOperator, name)
}

// WriteGate is WriteBundle for a gateway: gate.crt, gate.key.
func (a *Authority) WriteGate(dir, name string) error {
	return a.WriteBundle(dir, mtls.RoleGate, name)
}

// WriteReferenceSigner is WriteBundle for who signs reference values and VPN
// catalogues (internal/signed): reference-signer.crt, reference-signer.key.
func (a *Authority) WriteReferenceSigner(dir, name string) error {
	return a.WriteBundle(dir, mtls.RoleReferenceSigner, name)
}

// WriteBundle makes key and certificate for a gateway, an operator or a reference
// signer, and writes them into dir, with server-ca.crt: whom it has to trust. A
// gateway's bundle has vpn-ca.crt too, if there is a VPN CA: whom its VPN server
// has to trust.
func (a *Authority) WriteBundle(dir string, role mtls.Role, name string) error {
	b := bundleOf(role)
	key, err := attest.NewKey()
	if err != nil {
		return err
	}
	cert, err := a.issue(b.kind, request{role: role, name: name, key: &key.PublicKey, lifetime: PeerLifetime})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := a.writeTrust(dir, role); err != nil {
		return err
	}
	return writePair(dir, b.file, cert.Chain, key)
}

// RenewBundle replaces, in a directory that WriteBundle made, the
// certificate by one for the same key, and the CAs to trust by today's. The key
// may be missing: it need not leave its machine. It returns an error, and
// changes nothing, unless there is a certificate of this role and name that
// holds now.
func (a *Authority) RenewBundle(dir string, role mtls.Role, name string) error {
	b := bundleOf(role)
	chain, err := mtls.ReadCertificates(filepath.Join(dir, b.file+".crt"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s holds no %s.crt to renew: %w", dir, b.file, fs.ErrNotExist)
	}
	if err != nil {
		return err
	}
	gotRole, gotName, err := mtls.Identity(chain[0])
	if err != nil {
		return err
	}
	if gotRole != role || gotName != name {
		return fmt.Errorf("%s is of %s %s, not of %s %s", b.file+".crt", gotRole, gotName, role, name)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{
		Roots: a.pool(b.kind), CurrentTime: a.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("%s.crt is not one that this collector accepts: %w", b.file, err)
	}
	cert, err := a.issue(b.kind, request{role: role, name: name, key: chain[0].PublicKey, lifetime: PeerLifetime})
	if err != nil {
		return err
	}
	// First whom to trust: a peer that stops in between still reaches us.
	if err := a.writeTrust(dir, role); err != nil {
		return err
	}
	return writeCertificates(filepath.Join(dir, b.file+".crt"), cert.Chain)
}

// writeTrust writes whom a peer has to trust.
func (a *Authority) writeTrust(dir string, role mtls.Role) error {
	if err := writeCertificates(filepath.Join(dir, kindServer.file+".crt"), a.TrustBundle()); err != nil {
		return err
	}
	if role != mtls.RoleGate {
		return nil
	}
	clients, err := a.VPNTrust()
	if err != nil || len(clients) == 0 {
		return err
	}
	return writeCertificates(filepath.Join(dir, kindVPN.file+".crt"), clients)
}

func bundleOf(role mtls.Role) bundle {
	return bundles[slices.IndexFunc(bundles, func(b bundle) bool { return b.role == role })]
}

// keyAllowed keeps lease signers to Ed25519 and all others to ECDSA P-256.
func keyAllowed(role mtls.Role, key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if role != mtls.RoleLeaseSigner && k.Curve.Params().Name == "P-256" {
			return nil
		}
	case ed25519.PublicKey:
		if role == mtls.RoleLeaseSigner {
			return nil
		}
	}
	return fmt.Errorf("a %s certificate is not issued for a key of type %T", role, key)
}
