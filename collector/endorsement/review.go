package endorsement

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// review is the file review.yaml: who was looked at, where the certificates
// were read, and what came of it.
type review struct {
	Reviewed      day                     `yaml:"reviewed"`
	Sources       map[string]reviewSource `yaml:"sources"`
	Manufacturers []manufacturer          `yaml:"manufacturers"`
	VirtualModels []string                `yaml:"virtual_models"`
	Certificates  []reviewed              `yaml:"certificates"`
}

type reviewSource struct {
	What   string `yaml:"what"`
	Digest string `yaml:"digest"`
	Read   day    `yaml:"read"`
}

type manufacturer struct {
	ID         string   `yaml:"id"`
	Name       string   `yaml:"name"`
	VouchesFor []string `yaml:"vouches_for"`
	Virtual    bool     `yaml:"virtual"`
}

// reviewed is what the review says of one certificate.
type reviewed struct {
	SHA256            string   `yaml:"sha256"`
	Subject           string   `yaml:"subject"`
	Manufacturer      string   `yaml:"manufacturer"`
	Kind              string   `yaml:"kind"`
	Status            string   `yaml:"status"`
	Key               string   `yaml:"key"`
	From              day      `yaml:"from"`
	Until             day      `yaml:"until"`
	Sources           []string `yaml:"sources"`
	SHA1SelfSignature bool     `yaml:"sha1_self_signature"`
	Reason            string   `yaml:"reason"`
}

const (
	kindRoot, kindIntermediate                      = "root", "intermediate"
	statusTrusted, statusFingerprint, statusRefused = "trusted", "fingerprint", "refused"
)

// day is a date without time, in UTC.
type day struct{ time.Time }

func (d *day) UnmarshalYAML(n *yaml.Node) error {
	t, err := time.Parse(time.DateOnly, n.Value)
	if err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	d.Time = t
	return nil
}

// parseReview reads a review and checks it in itself.
func parseReview(text []byte) (*review, error) {
	r := new(review)
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(r); err != nil {
		return nil, fmt.Errorf("parsing review: %w", err)
	}
	if r.Reviewed.IsZero() || len(r.Certificates) == 0 {
		return nil, errors.New("review: no date or no certificates")
	}
	seen := map[string]bool{}
	for _, c := range r.Certificates {
		if err := r.check(c); err != nil {
			return nil, fmt.Errorf("review: %s %q: %w", c.SHA256, c.Subject, err)
		}
		if seen[c.SHA256] {
			return nil, fmt.Errorf("review: %s is listed twice", c.SHA256)
		}
		seen[c.SHA256] = true
	}
	return r, nil
}

func (r *review) check(c reviewed) error {
	known := slices.ContainsFunc(r.Manufacturers, func(m manufacturer) bool { return m.ID == c.Manufacturer && !m.Virtual })
	switch {
	case len(c.SHA256) != 64 || strings.Trim(c.SHA256, "0123456789abcdef") != "":
		return errors.New("sha256 is not 64 lower-case hex digits")
	case !known:
		return fmt.Errorf("manufacturer %q is not in the list, or virtual", c.Manufacturer)
	case c.Kind != kindRoot && c.Kind != kindIntermediate:
		return fmt.Errorf("kind %q", c.Kind)
	case c.Status != statusTrusted && c.Status != statusFingerprint && c.Status != statusRefused:
		return fmt.Errorf("status %q", c.Status)
	case (c.Status == statusRefused) != (c.Reason != ""):
		return errors.New("a refused certificate has a reason, and no other")
	case !c.From.Before(c.Until.Time):
		return errors.New("it ends before it begins")
	case len(c.Sources) == 0:
		return errors.New("no source")
	}
	for _, s := range c.Sources {
		if _, ok := r.Sources[s]; !ok {
			return fmt.Errorf("source %q is not described", s)
		}
	}
	return nil
}

// matches compares the review with the certificates that ship: each is listed
// as trusted, is what the list says of it, and none is missing.
func (r *review) matches(certs []*x509.Certificate) error {
	for _, cert := range certs {
		c, ok := r.entry(fingerprint(cert.Raw))
		if !ok || c.Status != statusTrusted {
			return fmt.Errorf("%s ships without being trusted", describe(cert))
		}
		kind := kindIntermediate
		if selfIssued(cert) {
			kind = kindRoot
		}
		if cert.Subject.CommonName != c.Subject || kind != c.Kind || keyName(cert.PublicKey) != c.Key ||
			!onDay(cert.NotBefore, c.From) || !onDay(cert.NotAfter, c.Until) ||
			(kind == kindRoot && weakSignature(cert.SignatureAlgorithm)) != c.SHA1SelfSignature {
			return fmt.Errorf("%s is not what is written of it", describe(cert))
		}
	}
	for _, c := range r.Certificates {
		ships := slices.ContainsFunc(certs, func(cert *x509.Certificate) bool { return fingerprint(cert.Raw) == c.SHA256 })
		if c.Status == statusTrusted && !ships {
			return fmt.Errorf("%s %q is trusted and does not ship", c.SHA256, c.Subject)
		}
	}
	return nil
}

func onDay(t time.Time, d day) bool { return t.UTC().Format(time.DateOnly) == d.Format(time.DateOnly) }

// keyName is how the review writes a key: "RSA 2048", "P-256".
func keyName(key crypto.PublicKey) string {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return k.Params().Name
	}
	return ""
}

func (r *review) entry(sha256 string) (reviewed, bool) {
	i := slices.IndexFunc(r.Certificates, func(c reviewed) bool { return c.SHA256 == sha256 })
	if i < 0 {
		return reviewed{}, false
	}
	return r.Certificates[i], true
}

// anchor says of a self-signed certificate whose root it is, or why it is not
// believed.
func (r *review) anchor(cert *x509.Certificate) (Authority, error) {
	c, ok := r.entry(fingerprint(cert.Raw))
	switch {
	case !ok:
		return Authority{}, errors.New("a root that the review does not list")
	case c.Status == statusRefused:
		return Authority{}, fmt.Errorf("refused by the review: %s", c.Reason)
	case c.Kind != kindRoot:
		return Authority{}, errors.New("the review lists it as no root")
	}
	return Authority{ManufacturerID: c.Manufacturer}, nil
}

// vouches is whether authorities of one manufacturer may endorse TPMs that
// name another. Identifiers that the review does not know have nobody.
func (r *review) vouches(root, tpm string) bool {
	i := slices.IndexFunc(r.Manufacturers, func(m manufacturer) bool { return m.ID == root })
	return i >= 0 && (root == tpm || slices.Contains(r.Manufacturers[i].VouchesFor, tpm))
}

// name is a manufacturer's name for people; the identifier itself if the
// review has none.
func (r *review) name(id string) string {
	i := slices.IndexFunc(r.Manufacturers, func(m manufacturer) bool { return m.ID == id })
	if i < 0 {
		return id
	}
	return r.Manufacturers[i].Name
}

// looksVirtual is Bundle.LooksVirtual.
func (r *review) looksVirtual(id, model string) bool {
	if slices.ContainsFunc(r.Manufacturers, func(m manufacturer) bool { return m.ID == id && m.Virtual }) {
		return true
	}
	plain := plainModel(model)
	return slices.ContainsFunc(r.VirtualModels, func(v string) bool { return strings.HasPrefix(plain, plainModel(v)) })
}

// plainModel is a model's letters and digits in lower case.
func plainModel(model string) string {
	return strings.Map(func(r rune) rune {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return -1
		}
		return r
	}, strings.ToLower(model))
}
