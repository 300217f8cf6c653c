// Package identity is who this notebook is to the collector: its key, its
// certificate, and how it gets and renews them.
//
// Rules. Everything lies in one file of a directory that only the service may
// read, and is replaced in one step: key and certificate never drift apart. A
// file that cannot be read is an error that a person has to look at; it is
// never mended by enrolling again, because a second identity for one notebook
// is what an attacker would want. An identity that came here from another
// machine, with an image or a backup, is not this notebook's: it is set aside.
// The private key never leaves this package but as a crypto.Signer. A TPM that
// does not answer is waited for: no key in software ever takes the place of one
// in the TPM.
package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
)

// Identity is one state of the identity file. It is not changed after loading.
type Identity struct {
	// Key signs for the device. It exists before the certificate does.
	Key crypto.Signer
	// Chain is the device certificate, leaf first; empty before enrolment.
	Chain []*x509.Certificate
	// Servers are the CAs of collectors, current and next.
	Servers []*x509.Certificate
	// DeviceID is the UUID in the certificate; empty before enrolment.
	DeviceID string
	// AssetNumber is the administration's own number for this notebook, as the
	// collector told it; information only.
	AssetNumber string
	// RenewAfter is when the collector wants the certificate renewed; zero:
	// it did not say.
	RenewAfter time.Time

	// Of a key in the TPM: its chip, the attestation key beside it, and when
	// both were made. Nil and zero for a software key.
	chip              *chip.Chip
	ak                *chip.Key
	keySince, akSince time.Time
}

// InTPM says whether the device key is in a TPM.
func (id *Identity) InTPM() bool { return id.ak != nil }

// bare is the keys of id alone, without a certificate.
func (id *Identity) bare() *Identity {
	return &Identity{Key: id.Key, chip: id.chip, ak: id.ak, keySince: id.keySince, akSince: id.akSince}
}

// Enrolled says whether there is a certificate, be it expired or not.
func (id *Identity) Enrolled() bool { return len(id.Chain) > 0 }

// Expires returns when the certificate ends; zero before enrolment.
func (id *Identity) Expires() time.Time {
	if !id.Enrolled() {
		return time.Time{}
	}
	return id.Chain[0].NotAfter
}

// Fingerprint is the key for people to compare.
func (id *Identity) Fingerprint() (string, error) { return attest.Fingerprint(id.Key.Public()) }

// ServerPool returns the CAs of collectors for TLS.
func (id *Identity) ServerPool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, ca := range id.Servers {
		pool.AddCert(ca)
	}
	return pool
}

// ErrNotEnrolled is returned where a certificate is needed and none was issued.
var ErrNotEnrolled = errors.New("not enrolled")

// ErrNoToken is wrapped where a notebook cannot even try to enrol, because
// nobody has given it a token.
var ErrNoToken = errors.New("no token")

// ErrExpired is the error of Certificate when it has expired by the notebook's
// clock.
var ErrExpired = errors.New("device certificate has expired")

// Certificate returns the certificate for TLS. It returns ErrNotEnrolled, or
// ErrExpired with the date: enrolling again with a new token is needed then,
// or setting the clock.
func (id *Identity) Certificate(now time.Time) (*tls.Certificate, error) {
	if !id.Enrolled() {
		return nil, ErrNotEnrolled
	}
	if end := id.Expires(); !now.Before(end) {
		return nil, fmt.Errorf("%w on %s, and the clock says %s: enrol again with a new token, or set the clock",
			ErrExpired, end.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	cert := &tls.Certificate{PrivateKey: id.Key, Leaf: id.Chain[0]}
	for _, c := range id.Chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}
