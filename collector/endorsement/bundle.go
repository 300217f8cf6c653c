package endorsement

import (
	"bytes"
	"crypto/x509"
	"embed"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

//go:embed review.yaml roots
var shipped embed.FS

// Authority is a certificate authority that the bundle believes.
type Authority struct {
	Certificate *x509.Certificate
	// SHA256 is the certificate's fingerprint, in lower-case hex.
	SHA256 string
	// ManufacturerID is that of its root; empty for an authority of virtual
	// TPMs.
	ManufacturerID string
	// Root is whether it is a trust anchor.
	Root bool
	// Virtual is whether it was given to AllowVirtual, or chains to one that
	// was.
	Virtual bool
	// issuer is the authority that signed it; nil for a root.
	issuer *Authority
	// depth is how many authorities may stand below it; negative: any number.
	depth int
}

func (a *Authority) root() *Authority {
	for a.issuer != nil {
		a = a.issuer
	}
	return a
}

// Bundle is the authorities that are believed, as trees: each was verified
// with its issuer's key when it was taken. A Bundle does not change, so it may
// be used from several goroutines; Add and AllowVirtual make a new one.
//
// It is no x509.CertPool because that finds issuers by the bytes of their
// names, and STMicroelectronics writes the name of its ECC root in two
// encodings.
type Bundle struct {
	review      *review
	authorities []*Authority
	byName      map[string][]*Authority
	// virtual is whether any root of virtual TPMs is allowed.
	virtual bool
}

// Shipped is the reviewed bundle that is part of the program. It returns an
// error if review and certificates are not as they belong together, which the
// tests of this package would have noticed.
func Shipped() (*Bundle, error) {
	text, err := shipped.ReadFile("review.yaml")
	if err != nil {
		return nil, fmt.Errorf("reading review: %w", err)
	}
	r, err := parseReview(text)
	if err != nil {
		return nil, err
	}
	files, err := fs.Glob(shipped, "roots/*.pem")
	if err != nil {
		return nil, fmt.Errorf("listing roots: %w", err)
	}
	var all []*x509.Certificate
	for _, name := range files {
		text, err := shipped.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("reading roots: %w", err)
		}
		certs, err := readAuthorities(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, certs...)
	}
	if err := r.matches(all); err != nil {
		return nil, fmt.Errorf("review: %w", err)
	}
	b, _, err := (&Bundle{review: r}).extend(all, r.anchor)
	return b, err
}

// ErrAuthority: a certificate cannot be taken into the bundle. The text says
// which, and why.
var ErrAuthority = errors.New("authority refused")

// Add makes a bundle that also believes the authorities of an upload (PEM or
// DER): intermediates that chain to an authority that is believed already or
// to another of the upload, and roots whose fingerprint the review lists. What
// is known already is passed over. All are taken or none; the second result is
// what was taken. The caller keeps the upload and adds it again at each start.
// The error wraps ErrAuthority, ErrWeak or ErrMalformed.
func (b *Bundle) Add(upload []byte) (*Bundle, []Authority, error) {
	certs, err := readAuthorities(upload)
	if err != nil {
		return nil, nil, err
	}
	return b.extend(certs, b.review.anchor)
}

// AllowVirtual makes a bundle that also believes the authorities of virtual
// TPMs that an agency runs itself: every self-signed certificate of the text
// becomes a root of virtual TPMs, the others must chain to one that is
// believed. What such a root endorses is Virtual, whatever it claims to be. It
// refuses roots of the review. The error is as of Add.
func (b *Bundle) AllowVirtual(roots []byte) (*Bundle, []Authority, error) {
	certs, err := readAuthorities(roots)
	if err != nil {
		return nil, nil, err
	}
	for _, cert := range certs {
		if _, ok := b.review.entry(fingerprint(cert.Raw)); ok {
			return nil, nil, fmt.Errorf("%w: %s: it makes chips, not virtual TPMs", ErrAuthority, describe(cert))
		}
	}
	return b.extend(certs, func(cert *x509.Certificate) (Authority, error) {
		if err := cert.CheckSignatureFrom(cert); err != nil {
			return Authority{}, fmt.Errorf("not signed by itself: %w", err)
		}
		return Authority{Virtual: true}, nil
	})
}

// Authorities are all that the bundle believes, in the order they were taken.
func (b *Bundle) Authorities() []Authority { return values(b.authorities) }

func values(authorities []*Authority) []Authority {
	var all []Authority
	for _, a := range authorities {
		all = append(all, *a)
	}
	return all
}

// AllowsVirtual is whether any virtual TPMs are believed.
func (b *Bundle) AllowsVirtual() bool { return b.virtual }

// LooksVirtual is whether these names, from a certificate or from the TPM's
// own properties, are those of a virtual TPM: a manufacturer identifier such
// as "VMW" and a model such as "SW  TPM". False says nothing: names can be set.
func (b *Bundle) LooksVirtual(manufacturerID, model string) bool {
	return b.review.looksVirtual(manufacturerID, model)
}

// extend takes certificates into a copy of the bundle. anchor says of a
// self-issued one what kind of root it is, or why it is none.
func (b *Bundle) extend(certs []*x509.Certificate, anchor func(*x509.Certificate) (Authority, error)) (*Bundle, []Authority, error) {
	next := b.clone()
	var below []*x509.Certificate
	for _, cert := range certs {
		switch {
		case next.knows(cert):
		case !selfIssued(cert):
			below = append(below, cert)
		default:
			a, err := anchor(cert)
			if err != nil {
				return nil, nil, fmt.Errorf("%w: %s: %w", ErrAuthority, describe(cert), err)
			}
			a.Certificate, a.Root = cert, true
			next.take(a)
		}
	}
	if left, err := next.grow(below); len(left) > 0 {
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrAuthority, describe(left[0]), err)
	}
	return next, values(next.authorities[len(b.authorities):]), nil
}

// carrying is the bundle with those authorities that a TPM carries and that
// are as good as what an operator may add, for the one verification.
func (b *Bundle) carrying(certs []*x509.Certificate) *Bundle {
	certs = slices.DeleteFunc(slices.Clone(certs), func(cert *x509.Certificate) bool {
		return selfIssued(cert) || sound(cert) != nil
	})
	if len(certs) == 0 {
		return b
	}
	next := b.clone()
	// What chains to nobody is left out, as if it were not there.
	next.grow(certs)
	return next
}

func (b *Bundle) clone() *Bundle {
	c := *b
	c.authorities = slices.Clone(b.authorities)
	c.byName = make(map[string][]*Authority, len(b.byName))
	for name, a := range b.byName {
		c.byName[name] = slices.Clip(a)
	}
	return &c
}

// grow takes intermediates in any order: each round those whose issuer is
// believed by now. It gives back the rest, and why the first of it is left.
func (b *Bundle) grow(certs []*x509.Certificate) ([]*x509.Certificate, error) {
	for len(certs) > 0 {
		var left []*x509.Certificate
		var why error
		for _, cert := range certs {
			if b.knows(cert) {
				continue
			}
			issuer, err := b.issuer(cert)
			if err == nil {
				b.take(Authority{Certificate: cert, ManufacturerID: issuer.ManufacturerID, Virtual: issuer.Virtual, issuer: issuer})
				continue
			}
			if left = append(left, cert); why == nil {
				why = err
			}
		}
		if len(left) == len(certs) {
			return left, why
		}
		certs = left
	}
	return nil, nil
}

// issuer finds the authority that signed another and may have it below itself.
func (b *Bundle) issuer(cert *x509.Certificate) (*Authority, error) {
	if c, ok := b.review.entry(fingerprint(cert.Raw)); ok && c.Status == statusRefused {
		return nil, fmt.Errorf("refused by the review: %s", c.Reason)
	}
	signers, err := b.signers(cert)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(signers, func(a *Authority) bool { return a.depth != 0 })
	if i < 0 {
		return nil, fmt.Errorf("%s may have no authorities below it", describe(signers[0].Certificate))
	}
	return signers[i], nil
}

func (b *Bundle) take(a Authority) {
	a.SHA256 = fingerprint(a.Certificate.Raw)
	a.depth = -1
	if a.issuer != nil && a.issuer.depth > 0 {
		a.depth = a.issuer.depth - 1
	}
	if own := a.Certificate.MaxPathLen; (own > 0 || a.Certificate.MaxPathLenZero) && (a.depth < 0 || own < a.depth) {
		a.depth = own
	}
	b.authorities = append(b.authorities, &a)
	name := nameKey(a.Certificate.RawSubject)
	b.byName[name] = append(b.byName[name], &a)
	b.virtual = b.virtual || a.Virtual
}

// knows is whether the bundle has a certificate, byte for byte.
func (b *Bundle) knows(cert *x509.Certificate) bool {
	return slices.ContainsFunc(b.byName[nameKey(cert.RawSubject)], func(a *Authority) bool { return a.Certificate.Equal(cert) })
}

func selfIssued(cert *x509.Certificate) bool {
	return nameKey(cert.RawSubject) == nameKey(cert.RawIssuer)
}

const (
	maxUploadBytes = 4 << 20
	maxAuthorities = 2000
)

// readAuthorities reads certificates of authorities, PEM or DER, and refuses
// all of them if one is none or is weak.
func readAuthorities(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxUploadBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrMalformed, len(text), maxUploadBytes)
	}
	der, err := decode(text)
	if err != nil {
		return nil, err
	}
	certs, err := x509.ParseCertificates(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if len(certs) == 0 || len(certs) > maxAuthorities {
		return nil, fmt.Errorf("%w: %d certificates, between 1 and %d are read", ErrMalformed, len(certs), maxAuthorities)
	}
	for _, cert := range certs {
		if err := sound(cert); err != nil {
			return nil, fmt.Errorf("%s: %w", describe(cert), err)
		}
	}
	return certs, nil
}

// decode is the DER of all certificates of a PEM text, one after the other. A
// text that is no PEM is taken for DER.
func decode(text []byte) ([]byte, error) {
	begin := []byte("-----BEGIN ")
	if !bytes.Contains(text, begin) {
		return text, nil
	}
	var der []byte
	// pem.Decode passes over damaged blocks without a word: they are counted.
	for blocks := bytes.Count(text, begin); blocks > 0; blocks-- {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, fmt.Errorf("%w: PEM block is cut or damaged", ErrMalformed)
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%w: PEM block %q among certificates", ErrMalformed, printable(block.Type))
		}
		der, text = append(der, block.Bytes...), rest
	}
	return der, nil
}

// sound refuses certificates that are no authority's or are weak. The
// signature of a self-signed one is not weighed: an anchor is believed for its
// fingerprint, and nothing below it may be signed with SHA-1.
func sound(cert *x509.Certificate) error {
	usages := len(cert.ExtKeyUsage) + len(cert.UnknownExtKeyUsage)
	endorses := slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny) || slices.ContainsFunc(cert.UnknownExtKeyUsage, oidEKCertificate.Equal)
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return fmt.Errorf("%w: it is not marked as an authority's", ErrAuthority)
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%w: its key must not sign certificates", ErrAuthority)
	case usages > 0 && !endorses:
		return fmt.Errorf("%w: it is for other certificates than those of endorsement keys", ErrAuthority)
	case len(cert.UnhandledCriticalExtensions) > 0:
		return fmt.Errorf("%w: critical extension %s is not understood", ErrAuthority, cert.UnhandledCriticalExtensions[0])
	case weakSignature(cert.SignatureAlgorithm) && !selfIssued(cert):
		return fmt.Errorf("%w: signed with %s", ErrWeak, cert.SignatureAlgorithm)
	}
	return strong(cert.PublicKey)
}

// describe names a certificate for people.
func describe(cert *x509.Certificate) string {
	return fmt.Sprintf("%s (SHA-256 %s)", printable(cert.Subject.String()), fingerprint(cert.Raw))
}
