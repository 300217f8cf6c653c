package uplink

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"pfoertner/internal/mtls"
)

// Pin is what an agent trusts before it is enrolled: the collector's server
// CA, named at installation. The zero value trusts nobody.
type Pin struct {
	// Known are the CAs that the collector itself has named since: they count
	// instead of the one of the installation, which may have been replaced. Nil
	// before enrolment.
	Known *x509.CertPool
	// File holds the CA certificate in PEM; it is preferred.
	File string
	// Fingerprint is the SHA-256 of the CA certificate; nil when File is set.
	Fingerprint []byte
}

// ParseFingerprint reads a SHA-256 as people write it: 64 hex digits, in
// groups or not.
func ParseFingerprint(s string) ([]byte, error) {
	b, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "", "-", "").Replace(s))
	if err != nil || len(b) != sha256.Size {
		return nil, fmt.Errorf("fingerprint %q: want the 64 hex digits of a SHA-256", s)
	}
	return b, nil
}

// ErrPin is the error of Servers when the collector does not show the pinned
// CA.
var ErrPin = errors.New("the collector does not show the pinned CA")

// Servers returns the CAs that a collector's certificate must come from. With
// nothing but a fingerprint it asks the collector for its CA certificate, which is public,
// and takes it only if it is the pinned one; nothing else is exchanged on that
// connection.
func (p Pin) Servers(ctx context.Context, t Target) (*x509.CertPool, error) {
	if p.Known != nil {
		return p.Known, nil
	}
	if p.File != "" {
		pool, err := mtls.Pool(p.File)
		if err != nil {
			return nil, fmt.Errorf("reading CA: %w", err)
		}
		return pool, nil
	}
	if len(p.Fingerprint) != sha256.Size {
		return nil, errors.New("no CA is pinned: name ca_file or ca_fingerprint")
	}
	ca, err := fetchAuthority(ctx, t, p.Fingerprint)
	if err != nil {
		return nil, fmt.Errorf("fetching CA: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return pool, nil
}

func fetchAuthority(ctx context.Context, t Target, fingerprint []byte) (*x509.Certificate, error) {
	var authority *x509.Certificate
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: t.serverName(),
		NextProtos: []string{"h2"},
		// There is nothing to verify with yet. Nobody is trusted by this
		// connection: it is closed after the handshake, and what it showed
		// counts only if its hash is the pinned one. The connection that
		// enrols verifies in full.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			i := slices.IndexFunc(s.PeerCertificates, func(c *x509.Certificate) bool {
				sum := sha256.Sum256(c.Raw)
				return c.IsCA && string(sum[:]) == string(fingerprint)
			})
			if i < 0 {
				return ErrPin
			}
			authority = s.PeerCertificates[i]
			return nil
		},
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", t.Address)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	if err := tls.Client(raw, conf).HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return authority, nil
}
