// Package mtls says who is who on Pförtner's connections, and makes the TLS
// configurations of both ends.
//
// Rules. A role is proven twice: by the issuing CA (every listener trusts the
// CA of one role only) and by the URI in the certificate. TLS 1.3 only, no
// session resumption: every connection is a full handshake that asks for the
// state of the peer. What is not set is refused: a nil pool trusts nobody, and
// never falls back to the system's roots.
package mtls

import (
	"crypto/ed25519"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Role is what a certificate lets its holder be. The zero value is no role.
type Role string

// The roles. Each but the signers has an issuing CA of its own; signers are
// issued by the servers' CA, because whoever verifies them trusts that one.
const (
	RoleDevice    Role = "device"    // a notebook's agent, urn:uuid:<device id>
	RoleGate      Role = "gate"      // a gateway, urn:pfoertner:gate:<name>
	RoleOperator  Role = "operator"  // a person or program, urn:pfoertner:operator:<name>
	RoleCollector Role = "collector" // a server, urn:pfoertner:collector:<name>
	// RoleVPN is a notebook's VPN client, urn:pfoertner:vpn:<device id>. It is
	// for the gateway's VPN server and never speaks to a collector.
	RoleVPN         Role = "vpn"
	RoleLeaseSigner Role = "lease-signer" // signs leases, never speaks TLS
	// RoleReferenceSigner signs reference values and VPN catalogues
	// (internal/signed) and never speaks TLS.
	RoleReferenceSigner Role = "reference-signer"
)

const (
	deviceScheme = "urn:uuid:"
	namedScheme  = "urn:pfoertner:"
	maxName      = 64
)

// URI returns the subject alternative name that a certificate of the role
// carries. It returns an error for a role or name that is not allowed: devices
// and their VPN clients are named by a UUID in canonical form, all others by 1
// to 64 of a-z, 0-9, "-", "." and "_".
func URI(role Role, name string) (*url.URL, error) {
	s := namedScheme + string(role) + ":" + name
	if role == RoleDevice {
		s = deviceScheme + name
	}
	if _, _, err := parseURI(s); err != nil {
		return nil, err
	}
	return url.Parse(s)
}

// Identity returns the role and the name that a certificate states. It returns
// an error for a certificate that has not exactly one URI, states an unknown
// role, carries names that its role must not have, or whose extended key usage
// is not precisely that of its role. It does not verify who issued it.
func Identity(cert *x509.Certificate) (Role, string, error) {
	if len(cert.URIs) != 1 {
		return "", "", fmt.Errorf("certificate has %d URI names, exactly 1 is needed", len(cert.URIs))
	}
	role, name, err := parseURI(cert.URIs[0].String())
	if err != nil {
		return "", "", err
	}
	if cert.IsCA {
		return "", "", fmt.Errorf("certificate of %s %s is a CA certificate", role, name)
	}
	if !role.usages(cert) {
		return "", "", fmt.Errorf("certificate of %s %s has another extended key usage than its role", role, name)
	}
	if !role.names(cert, name) {
		return "", "", fmt.Errorf("certificate of %s %s carries host or mail names", role, name)
	}
	return role, name, nil
}

// usages says whether a certificate is for what its role is, and nothing else.
// A VPN client's is for clients first; what a gateway asks for beside that may
// follow, but nothing by which it could pass for a server or sign for others.
func (r Role) usages(cert *x509.Certificate) bool {
	if r != RoleVPN {
		return slices.Equal(cert.ExtKeyUsage, r.Usage()) && len(cert.UnknownExtKeyUsage) == 0
	}
	return len(cert.ExtKeyUsage) > 0 && cert.ExtKeyUsage[0] == x509.ExtKeyUsageClientAuth &&
		!slices.ContainsFunc(cert.ExtKeyUsage, notForClients)
}

func notForClients(u x509.ExtKeyUsage) bool {
	switch u {
	case x509.ExtKeyUsageAny, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageCodeSigning, x509.ExtKeyUsageTimeStamping, x509.ExtKeyUsageOCSPSigning:
		return true
	}
	return false
}

// names says whether a certificate carries no other names than its role may:
// a server's any, a VPN client's one DNS name that begins with the device id,
// so that no two notebooks share one, all others' none.
func (r Role) names(cert *x509.Certificate, name string) bool {
	switch {
	case r == RoleCollector:
		return true
	case len(cert.IPAddresses)+len(cert.EmailAddresses) != 0:
		return false
	case r == RoleVPN && len(cert.DNSNames) == 1:
		return strings.HasPrefix(cert.DNSNames[0], name+".")
	}
	return len(cert.DNSNames) == 0
}

// Usage is the extended key usage of the role's certificates: one, or none for
// a signer, whose key is of no use in TLS. A VPN client's may have more.
func (r Role) Usage() []x509.ExtKeyUsage {
	switch r {
	case RoleDevice, RoleGate, RoleOperator, RoleVPN:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case RoleCollector:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	return nil
}

func parseURI(s string) (Role, string, error) {
	if id, ok := strings.CutPrefix(s, deviceScheme); ok {
		if !deviceID(id) {
			return "", "", fmt.Errorf("identity %q: not a UUID in canonical form", s)
		}
		return RoleDevice, id, nil
	}
	rest, ok := strings.CutPrefix(s, namedScheme)
	role, name, found := strings.Cut(rest, ":")
	if !ok || !found {
		return "", "", fmt.Errorf("identity %q: neither %s nor %s", s, deviceScheme, namedScheme)
	}
	switch Role(role) {
	case RoleGate, RoleOperator, RoleCollector, RoleLeaseSigner, RoleReferenceSigner:
	case RoleVPN:
		if !deviceID(name) {
			return "", "", fmt.Errorf("identity %q: not a UUID in canonical form", s)
		}
	default:
		return "", "", fmt.Errorf("identity %q: unknown role", s)
	}
	if !validName(name) {
		return "", "", fmt.Errorf("identity %q: a name is 1 to %d of a-z, 0-9, '-', '.', '_'", s, maxName)
	}
	return Role(role), name, nil
}

func deviceID(s string) bool {
	u, err := uuid.Parse(s)
	return err == nil && u.String() == s && u != uuid.Nil
}

func validName(name string) bool {
	outside := func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-._", r) }
	return name != "" && len(name) <= maxName && !strings.ContainsFunc(name, outside)
}

// VerifyLeaseSigner verifies the chain that a collector presents for its
// lease-signing key (leaf first, DER) against the servers' CA and returns the
// key. A nil pool trusts nobody.
func VerifyLeaseSigner(chain [][]byte, servers *x509.CertPool, now time.Time) (ed25519.PublicKey, error) {
	leaf, _, err := verifySigner(RoleLeaseSigner, chain, servers, now)
	if err != nil {
		return nil, err
	}
	key, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("lease signer has a %s key, Ed25519 is needed", leaf.PublicKeyAlgorithm)
	}
	return key, nil
}

// VerifyReferenceSigner verifies the chain (leaf first, DER) of whoever signed
// a file against the servers' CA, at the time now, and returns the certificate
// and the signer's name. A nil pool trusts nobody.
func VerifyReferenceSigner(chain [][]byte, servers *x509.CertPool, now time.Time) (*x509.Certificate, string, error) {
	return verifySigner(RoleReferenceSigner, chain, servers, now)
}

func verifySigner(want Role, chain [][]byte, servers *x509.CertPool, now time.Time) (*x509.Certificate, string, error) {
	if len(chain) == 0 {
		return nil, "", fmt.Errorf("no %s certificate", want)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, "", fmt.Errorf("%s certificate: %w", want, err)
	}
	role, name, err := Identity(leaf)
	if err != nil {
		return nil, "", err
	}
	if role != want {
		return nil, "", fmt.Errorf("a certificate of role %s stands where a %s is needed", role, want)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots:       closed(servers),
		CurrentTime: now,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, "", fmt.Errorf("verifying %s: %w", want, err)
	}
	return leaf, name, nil
}

// closed makes sure that a missing pool trusts nobody: crypto/x509 reads nil
// as the system's roots.
func closed(pool *x509.CertPool) *x509.CertPool {
	if pool == nil {
		return x509.NewCertPool()
	}
	return pool
}
