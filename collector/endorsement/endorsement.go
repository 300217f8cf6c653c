// Package endorsement says whether an endorsement key (EK) belongs to a
// genuine TPM, and of which manufacturer: it verifies endorsement certificates
// against a reviewed bundle of the manufacturers' authorities.
//
// A genuine TPM is not yet one of ours: a private PC has one too. Which asset
// an EK belongs to is decided in enrolment.
//
// Rules. Everything is an argument or embedded: no file, no network, no clock;
// the addresses that certificates carry are never followed. An authority is
// believed because the review names it, or because it chains to one that the
// review names. What cannot be parsed, is weak, has expired, or speaks for
// another manufacturer is refused. A virtual TPM is refused unless its root was
// allowed by name. There is no error of this package that leads to trust, and
// no Endorsement beside an error.
package endorsement

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Endorsement is what a verified endorsement certificate says of a TPM.
type Endorsement struct {
	// ManufacturerID is the identifier of the TCG registry, such as "IFX".
	ManufacturerID string
	// Manufacturer is its name for people, such as "Infineon".
	Manufacturer string
	// Model and Version are the manufacturer's own words (TCG EK Credential
	// Profile 2.4, 3.2.9); they are not compared with anything.
	Model, Version string
	// Virtual is whether the TPM is not a piece of hardware. It is only ever
	// true when the root was given to AllowVirtual.
	Virtual bool
	// Issuer and Root are the common names of the authority that issued the
	// certificate and of the root that vouches for it.
	Issuer, Root string
	// RootSHA256 and CertificateSHA256 are fingerprints, in lower-case hex.
	RootSHA256, CertificateSHA256 string
	// NotAfter is when the certificate expires.
	NotAfter time.Time
}

// The reasons why an EK is not endorsed. Every error of Verify wraps at least
// one of them; Bare tells which leave room for persons to decide.
var (
	// ErrNone: no certificate was presented.
	ErrNone = errors.New("no endorsement certificate")
	// ErrExpired: the certificate or an authority above it is not valid now.
	ErrExpired = errors.New("certificate is not valid now")
	// ErrMalformed: not a certificate, or not an endorsement certificate.
	ErrMalformed = errors.New("malformed certificate")
	// ErrOtherKey: no certificate is for this EK.
	ErrOtherKey = errors.New("endorsement certificate of another key")
	// ErrUnknownIssuer: the bundle has no authority of the issuer's name and
	// key. The error is an *UnknownIssuerError.
	ErrUnknownIssuer = errors.New("unknown issuer")
	// ErrForged: the bundle has the authority that is named as the issuer, and
	// it did not sign this or may not have.
	ErrForged = errors.New("forged certificate")
	// ErrWeak: a key is too short, or a signature uses a broken digest.
	ErrWeak = errors.New("weak certificate")
	// ErrContradiction: the root does not speak for the manufacturer that the
	// certificate names.
	ErrContradiction = errors.New("root and manufacturer contradict each other")
	// ErrVirtual: a virtual TPM whose root is not allowed.
	ErrVirtual = errors.New("virtual TPM")
)

// Bare is whether an error of Verify only says that nobody speaks for the EK,
// because there is no certificate or it has expired, and that nothing false or
// unfitting was shown. It is false for nil and for other errors.
func Bare(err error) bool {
	if !errors.Is(err, ErrNone) && !errors.Is(err, ErrExpired) {
		return false
	}
	for _, worse := range []error{ErrMalformed, ErrOtherKey, ErrUnknownIssuer, ErrForged, ErrWeak, ErrContradiction, ErrVirtual} {
		if errors.Is(err, worse) {
			return false
		}
	}
	return true
}

// UnknownIssuerError says which authority is missing, so that an operator can
// get it on another machine and add it. Its texts come from the certificate,
// that is from the device, with everything but printable ASCII taken out.
type UnknownIssuerError struct {
	// Issuer is the distinguished name of the issuer.
	Issuer string
	// KeyID is the issuer's key identifier in hex; empty if none is given.
	KeyID string
	// URL is where the certificate says the issuer's is found; empty if
	// nowhere. It is for people to read, and was not opened.
	URL string
}

func (e *UnknownIssuerError) Error() string {
	return fmt.Sprintf("%v: %s (key %s, said to be at %s)", ErrUnknownIssuer, e.Issuer, orNone(e.KeyID), orNone(e.URL))
}

// Unwrap makes errors.Is(err, ErrUnknownIssuer) true.
func (e *UnknownIssuerError) Unwrap() error { return ErrUnknownIssuer }

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

const (
	// maxIndices is far above what a TPM carries: one index for each EK
	// template, and a few for a chain.
	maxIndices = 32
	// maxWork bounds the signatures that a device can make the collector
	// verify: its authorities, and its certificates for the one key.
	maxWork = 32
)

// Verify finds the certificate that is for ek among what the device read from
// its TPM, and verifies it at now. Each element of certificates is what stands
// in one NV index: DER, with or without padding behind it, or several
// certificates one after the other. Certificates of the TPM's other keys are
// passed over, readable or not. Authorities among them, as Intel's newer chips
// have, help to build the chain and are not believed by themselves. It returns
// an error that wraps one of this package's Err values.
//
// Expired certificates endorse nobody: when a manufacturer's responsibility
// for its keys has ended, two persons decide. An expiry never ends a session,
// as certificates are looked at only at enrolment.
func (b *Bundle) Verify(certificates [][]byte, ek crypto.PublicKey, now time.Time) (Endorsement, error) {
	if len(certificates) == 0 {
		return Endorsement{}, ErrNone
	}
	if len(certificates) > maxIndices {
		return Endorsement{}, fmt.Errorf("%w: %d indices, at most %d are looked at", ErrMalformed, len(certificates), maxIndices)
	}
	if err := strong(ek); err != nil {
		return Endorsement{}, fmt.Errorf("endorsement key: %w", err)
	}
	p := sortOut(certificates, ek)
	if n := len(p.candidates) + len(p.authorities); n > maxWork {
		return Endorsement{}, fmt.Errorf("%w: %d certificates to verify, at most %d are", ErrMalformed, n, maxWork)
	}
	with := b.carrying(p.authorities)
	var refused []error
	for _, c := range p.candidates {
		e, err := with.endorse(c, now)
		if err == nil {
			return e, nil
		}
		if errors.Is(err, ErrUnknownIssuer) {
			err = with.blame(c.x509, p.authorities, err)
		}
		refused = append(refused, err)
	}
	switch {
	case len(refused) > 0:
		return Endorsement{}, errors.Join(refused...)
	case p.others == 0 && len(p.unreadable) > 0:
		return Endorsement{}, errors.Join(p.unreadable...)
	}
	return Endorsement{}, errors.Join(append([]error{ErrOtherKey}, p.unreadable...)...)
}

// presented is what a device showed, sorted.
type presented struct {
	// candidates are the certificates for the right key.
	candidates []*certificate
	// authorities are what the TPM carries to build a chain with.
	authorities []*x509.Certificate
	// others counts the certificates for other keys.
	others int
	// unreadable says why the rest is no endorsement certificate.
	unreadable []error
}

func sortOut(certificates [][]byte, ek crypto.PublicKey) presented {
	var p presented
	for _, nv := range certificates {
		certs, err := split(nv)
		if err != nil {
			p.unreadable = append(p.unreadable, err)
		}
		for _, cert := range certs {
			if cert.IsCA {
				p.authorities = append(p.authorities, cert)
			} else if c, err := parse(cert); err != nil {
				p.unreadable = append(p.unreadable, err)
			} else if sameKey(c.key, ek) {
				p.candidates = append(p.candidates, c)
			} else {
				p.others++
			}
		}
	}
	return p
}

// endorse verifies one certificate that is for the right key. The authorities
// were verified when they were taken, so what is left is the certificate's own
// signature, everybody's dates, and whose word it is.
func (b *Bundle) endorse(c *certificate, now time.Time) (Endorsement, error) {
	virtual := b.review.looksVirtual(c.manufacturer, c.model)
	switch {
	case virtual && !b.virtual:
		return Endorsement{}, fmt.Errorf("%w: %s %s, and no root of virtual TPMs is allowed", ErrVirtual, c.manufacturer, c.model)
	case weakSignature(c.x509.SignatureAlgorithm):
		return Endorsement{}, fmt.Errorf("%w: signed with %s", ErrWeak, c.x509.SignatureAlgorithm)
	}
	signers, err := b.signers(c.x509)
	if err != nil {
		return Endorsement{}, err
	}
	for _, issuer := range signers {
		root := issuer.root()
		if err = b.review.accepts(root, c, virtual); err != nil {
			continue
		}
		if err = errors.Join(validAt(c.x509, now), issuer.validAt(now)); err != nil {
			continue
		}
		return Endorsement{
			ManufacturerID:    c.manufacturer,
			Manufacturer:      b.review.name(c.manufacturer),
			Model:             c.model,
			Version:           c.version,
			Virtual:           root.Virtual,
			Issuer:            printable(issuer.Certificate.Subject.CommonName),
			Root:              printable(root.Certificate.Subject.CommonName),
			RootSHA256:        root.SHA256,
			CertificateSHA256: fingerprint(c.x509.Raw),
			NotAfter:          c.x509.NotAfter,
		}, nil
	}
	return Endorsement{}, err
}

// signers finds the authorities that signed a certificate; there is at least
// one, or an error says why there is none.
func (b *Bundle) signers(cert *x509.Certificate) ([]*Authority, error) {
	var signers []*Authority
	var forged error
	for _, a := range b.byName[nameKey(cert.RawIssuer)] {
		if err := cert.CheckSignatureFrom(a.Certificate); err == nil {
			signers = append(signers, a)
		} else if a.isNamedBy(cert) {
			forged = fmt.Errorf("%w: not signed by %s: %w", ErrForged, describe(a.Certificate), err)
		}
	}
	switch {
	case len(signers) > 0:
		return signers, nil
	case forged != nil:
		return nil, forged
	}
	e := &UnknownIssuerError{Issuer: printable(cert.Issuer.String()), KeyID: fmt.Sprintf("%x", cert.AuthorityKeyId)}
	if len(cert.IssuingCertificateURL) > 0 {
		e.URL = printable(cert.IssuingCertificateURL[0])
	}
	return nil, e
}

// blame climbs from a certificate that nobody known signed, through what the
// TPM carried, and says what is wrong at the highest step: that authority is
// the one to add.
func (b *Bundle) blame(cert *x509.Certificate, carried []*x509.Certificate, err error) error {
	for range carried {
		i := slices.IndexFunc(carried, func(a *x509.Certificate) bool {
			return !selfIssued(a) && nameKey(a.RawSubject) == nameKey(cert.RawIssuer)
		})
		if i < 0 {
			break
		}
		cert = carried[i]
		if _, above := b.signers(cert); above != nil {
			err = above
		}
	}
	return err
}

// isNamedBy is whether a certificate with this authority's name as its
// issuer's also means its key, as far as both say which.
func (a *Authority) isNamedBy(cert *x509.Certificate) bool {
	return len(cert.AuthorityKeyId) == 0 || len(a.Certificate.SubjectKeyId) == 0 || bytes.Equal(a.Certificate.SubjectKeyId, cert.AuthorityKeyId)
}

func validAt(cert *x509.Certificate, now time.Time) error {
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return fmt.Errorf("%w: %s is from %s to %s", ErrExpired, describe(cert), cert.NotBefore.Format(time.DateOnly), cert.NotAfter.Format(time.DateOnly))
	}
	return nil
}

// validAt looks at the dates of an authority and of all above it.
func (a *Authority) validAt(now time.Time) error {
	for ; a != nil; a = a.issuer {
		if err := validAt(a.Certificate, now); err != nil {
			return err
		}
	}
	return nil
}

// accepts says why a root must not vouch for a certificate that chains to it.
func (r *review) accepts(root *Authority, c *certificate, virtual bool) error {
	switch {
	case root.Virtual:
		// Whatever it names, this root makes virtual TPMs only.
		return nil
	case virtual:
		return fmt.Errorf("%w: %s %s below %s, which is no root of virtual TPMs", ErrVirtual, c.manufacturer, c.model, describe(root.Certificate))
	case !r.vouches(root.ManufacturerID, c.manufacturer):
		return fmt.Errorf("%w: root of %s, TPM of %s", ErrContradiction, root.ManufacturerID, c.manufacturer)
	}
	return nil
}
