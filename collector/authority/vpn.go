package authority

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"pfoertner/internal/mtls"
)

// ErrNoVPN is the error of IssueVPN while there is no VPN CA that issues: none
// was made, or it was revoked without a next one.
var ErrNoVPN = errors.New("there is no VPN CA: make one (ca rotate vpn)")

// VPNProfile is what an administration wants of VPN client certificates. The
// zero value is a good one.
type VPNProfile struct {
	// Lifetime; zero: VPNLifetime.
	Lifetime time.Duration
	// DNSSuffix makes certificates carry "<device id>.<suffix>" as a DNS name;
	// empty: they carry none.
	DNSSuffix string
	// ExtraUsages are extended key usages beside TLS client authentication.
	ExtraUsages []asn1.ObjectIdentifier
}

// ParseVPNProfile reads a profile as it is configured: usages are object
// identifiers in dotted form. It returns an error for a lifetime outside a day
// to a year, a suffix that is no DNS name, and a usage that is malformed, is
// there already, or would let a client pass for a server or a signer.
func ParseVPNProfile(lifetime time.Duration, dnsSuffix string, usages []string) (VPNProfile, error) {
	p := VPNProfile{Lifetime: lifetime, DNSSuffix: dnsSuffix}
	if lifetime != 0 && (lifetime < minVPNLifetime || lifetime > maxVPNLifetime) {
		return VPNProfile{}, fmt.Errorf("lifetime %s is outside %s to %s", lifetime, minVPNLifetime, maxVPNLifetime)
	}
	if dnsSuffix != "" && (len(dnsSuffix) > maxSuffix || !dnsName.MatchString(dnsSuffix)) {
		return VPNProfile{}, fmt.Errorf("%q is no DNS name of lower-case letters, digits and '-', of at most %d characters", dnsSuffix, maxSuffix)
	}
	for _, text := range usages {
		oid, err := parseOID(text)
		switch {
		case err != nil:
			return VPNProfile{}, fmt.Errorf("extended key usage %q: %w", text, err)
		case slices.ContainsFunc(notForVPN, oid.Equal) || slices.ContainsFunc(p.ExtraUsages, oid.Equal):
			return VPNProfile{}, fmt.Errorf("extended key usage %s is not given to VPN clients, or is there already", text)
		}
		p.ExtraUsages = append(p.ExtraUsages, oid)
	}
	return p, nil
}

// maxSuffix leaves a DNS name room for a device id and a dot.
const maxSuffix = 253 - 37

var dnsName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)

// notForVPN are usages that VPN clients never get (RFC 5280, 4.2.1.12): any,
// server, code signing, e-mail, time stamping and OCSP signing. Client
// authentication they have.
var notForVPN = []asn1.ObjectIdentifier{
	{2, 5, 29, 37, 0}, {1, 3, 6, 1, 5, 5, 7, 3, 1}, {1, 3, 6, 1, 5, 5, 7, 3, 2}, {1, 3, 6, 1, 5, 5, 7, 3, 3},
	{1, 3, 6, 1, 5, 5, 7, 3, 4}, {1, 3, 6, 1, 5, 5, 7, 3, 8}, {1, 3, 6, 1, 5, 5, 7, 3, 9},
}

func parseOID(text string) (oid asn1.ObjectIdentifier, err error) {
	for part := range strings.SplitSeq(text, ".") {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil || part != strconv.FormatUint(n, 10) {
			return nil, errors.New("not an object identifier")
		}
		oid = append(oid, int(n))
	}
	if _, err := asn1.Marshal(oid); err != nil {
		return nil, errors.New("not an object identifier")
	}
	return oid, nil
}

// IssueVPN issues a VPN client's certificate for an ECDSA P-256 key. The device
// id is a UUID in canonical form; it is the certificate's common name, its URI
// (mtls.RoleVPN) and the first label of its DNS name, so that no two notebooks
// share one. It is to be renewed after two thirds of its life. It is not
// recorded: who binds it to the device does that. It returns ErrNoVPN while no
// CA issues.
func (a *Authority) IssueVPN(deviceID string, key crypto.PublicKey, p VPNProfile) (*Certificate, error) {
	by := a.issuer(kindVPN)
	if by.cert == nil {
		return nil, ErrNoVPN
	}
	r := request{role: mtls.RoleVPN, name: deviceID, key: key, extra: p.ExtraUsages, lifetime: p.Lifetime}
	if p.Lifetime == 0 {
		r.lifetime = VPNLifetime
	}
	if p.DNSSuffix != "" {
		r.dns = []string{deviceID + "." + p.DNSSuffix}
	}
	return by.issue(r, a.now())
}

// IssuesVPN says whether IssueVPN has a CA to issue by.
func (a *Authority) IssuesVPN() bool { return a.issuer(kindVPN).cert != nil }

// VPNReplaceBefore is when a VPN CA was revoked last: what was issued before is
// to be replaced at once. Zero: none was.
func (a *Authority) VPNReplaceBefore() time.Time {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.vpnRevoked
}

// VPNClients is the pool of VPN CAs: see Devices. No listener of the collector
// asks for it.
func (a *Authority) VPNClients() *x509.CertPool { return a.pool(kindVPN) }

// VPNTrust is whom gateways have to trust, DER, the current one first; empty:
// there is no VPN CA. WriteBundle gives it to gateways as vpn-ca.crt. Each is a
// VPN CA certified by itself instead of by the root: OpenVPN takes nothing else
// as an anchor, and with the root beside it a gateway would take the device's
// certificate too. It returns an error while a key is away that is in a token.
func (a *Authority) VPNTrust() (anchors [][]byte, err error) {
	a.mu.RLock()
	accepted := slices.Clone(a.accepted[kindVPN.file])
	a.mu.RUnlock()
	for _, x := range accepted {
		if x.gone(a.now()) {
			continue
		}
		key, err := openKey(filepath.Join(a.dir, x.Name+".key"))
		if err != nil {
			return nil, err
		}
		anchor, err := selfCertified(x.cert, key)
		if err != nil {
			return nil, fmt.Errorf("anchor of %s: %w", x.Name, err)
		}
		anchors = append(anchors, anchor.Raw)
	}
	return anchors, nil
}

// selfCertified is a CA as its own anchor: what it has issued verifies by it.
func selfCertified(ca *x509.Certificate, key crypto.Signer) (*x509.Certificate, error) {
	if !samePublic(ca.PublicKey, key.Public()) {
		return nil, errors.New("key does not belong to it")
	}
	serial, err := randomSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		RawSubject:   ca.RawSubject, SubjectKeyId: ca.SubjectKeyId,
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: ca.KeyUsage, ExtKeyUsage: ca.ExtKeyUsage,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	return signCertificate(template, template, key.Public(), key)
}

// lastRevoked is when a CA of a kind was revoked last; zero: none was.
func lastRevoked(r register, kind issuingKind) (at time.Time) {
	for _, g := range r.Generations {
		if g.Kind == kind.name() && g.State == Revoked && g.Since.After(at) {
			at = g.Since
		}
	}
	return at
}
