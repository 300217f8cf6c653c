package endorsement

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

var (
	oidSubjectAltName  = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidEKCertificate   = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidTPMManufacturer = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidTPMModel        = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidTPMVersion      = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
	oidRSA             = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidRSAOAEP         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
)

// certificate is an endorsement certificate: well-formed, not yet believed.
type certificate struct {
	x509 *x509.Certificate
	// key is *rsa.PublicKey or *ecdsa.PublicKey, also where crypto/x509 gives
	// none.
	key                          crypto.PublicKey
	manufacturer, model, version string
}

// maxIndexBytes bounds what was read from one NV index, or from several that
// belong together; a chain of Intel's has a few KiB.
const maxIndexBytes = 16 << 10

// split reads the certificates at the beginning of what stands in a TPM's NV
// memory: mostly one, with Intel a chain, and behind them whatever fills the
// index.
func split(nv []byte) ([]*x509.Certificate, error) {
	if len(nv) > maxIndexBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrMalformed, len(nv), maxIndexBytes)
	}
	var certs []*x509.Certificate
	for {
		cert, rest, err := first(nv)
		switch {
		case err == nil:
			certs, nv = append(certs, cert), rest
		case len(certs) == 0:
			return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
		default:
			return certs, nil
		}
	}
}

func first(nv []byte) (*x509.Certificate, []byte, error) {
	var der asn1.RawValue
	rest, err := asn1.Unmarshal(nv, &der)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der.FullBytes)
	return cert, rest, err
}

// parse reads an endorsement certificate. It refuses what is none by the TCG
// EK Credential Profile (2.4, 3.2): one without the usage for EKs, one that
// does not name the TPM.
func parse(cert *x509.Certificate) (*certificate, error) {
	c := &certificate{x509: cert}
	var err error
	if c.key, err = publicKey(cert); err != nil {
		return nil, err
	}
	if err := usage(cert); err != nil {
		return nil, err
	}
	if err := c.nameTPM(); err != nil {
		return nil, err
	}
	// The alternative name is the TPM's, which crypto/x509 has no use for and
	// therefore reports. It was read above.
	for _, oid := range cert.UnhandledCriticalExtensions {
		if !oid.Equal(oidSubjectAltName) {
			return nil, fmt.Errorf("%w: critical extension %s is not understood", ErrMalformed, oid)
		}
	}
	return c, nil
}

// usage refuses a certificate that was not issued for an endorsement key, such
// as one for attestation keys below the same root.
func usage(cert *x509.Certificate) error {
	switch {
	case !slices.ContainsFunc(cert.UnknownExtKeyUsage, oidEKCertificate.Equal):
		return fmt.Errorf("%w: it is not for endorsement keys (no usage %s)", ErrMalformed, oidEKCertificate)
	case cert.KeyUsage != 0 && cert.KeyUsage&(x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement) == 0:
		return fmt.Errorf("%w: its key must neither encipher nor agree", ErrMalformed)
	}
	return nil
}

// publicKey is a certificate's key. Old Infineon certificates mark their RSA
// keys as usable for OAEP only (RFC 4055, 4.1); crypto/x509 gives no key then.
func publicKey(cert *x509.Certificate) (crypto.PublicKey, error) {
	key := cert.PublicKey
	if key == nil {
		var err error
		if key, err = rsaKey(cert.RawSubjectPublicKeyInfo); err != nil {
			return nil, fmt.Errorf("%w: public key: %w", ErrMalformed, err)
		}
	}
	return key, strong(key)
}

// rsaKey reads a SubjectPublicKeyInfo that holds an RSA key for any use or for
// OAEP. The parameters of OAEP are not looked at: the key is compared with the
// EK and used for nothing else.
func rsaKey(spki []byte) (*rsa.PublicKey, error) {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil {
		return nil, err
	} else if len(rest) > 0 {
		return nil, errors.New("trailing data")
	}
	if !info.Algorithm.Algorithm.Equal(oidRSAOAEP) && !info.Algorithm.Algorithm.Equal(oidRSA) {
		return nil, fmt.Errorf("algorithm %s is not known", info.Algorithm.Algorithm)
	}
	return x509.ParsePKCS1PublicKey(info.Key.RightAlign())
}

const minRSABits = 2048

// strong refuses keys that are too short, and kinds that no EK has.
func strong(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSABits {
			return fmt.Errorf("%w: RSA key of %d bits, %d are needed", ErrWeak, k.N.BitLen(), minRSABits)
		}
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() || k.Curve == elliptic.P521() {
			return nil
		}
		return fmt.Errorf("%w: curve %s", ErrWeak, k.Params().Name)
	}
	return fmt.Errorf("%w: key of type %T", ErrMalformed, key)
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

func weakSignature(a x509.SignatureAlgorithm) bool {
	return slices.Contains([]x509.SignatureAlgorithm{
		x509.UnknownSignatureAlgorithm, x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA,
		x509.DSAWithSHA1, x509.DSAWithSHA256, x509.ECDSAWithSHA1,
	}, a)
}

// nameTPM reads manufacturer, model and version from the directory name of the
// subject alternative name, where the profile wants them, or else from the
// subject, where VMware writes them.
func (c *certificate) nameTPM() error {
	names := []pkix.Name{c.x509.Subject}
	for _, ext := range c.x509.Extensions {
		if ext.Id.Equal(oidSubjectAltName) {
			dn, err := directoryNames(ext.Value)
			if err != nil {
				return fmt.Errorf("%w: subject alternative name: %w", ErrMalformed, err)
			}
			names = append(dn, names...)
		}
	}
	for _, name := range names {
		if manufacturer := attribute(name, oidTPMManufacturer); manufacturer != "" {
			c.manufacturer = manufacturerID(manufacturer)
			c.model = attribute(name, oidTPMModel)
			c.version = attribute(name, oidTPMVersion)
			return nil
		}
	}
	return fmt.Errorf("%w: it names no TPM", ErrMalformed)
}

// directoryNames reads the names of kind directoryName ([4], RFC 5280,
// 4.2.1.6) of a subject alternative name.
func directoryNames(san []byte) ([]pkix.Name, error) {
	var general []asn1.RawValue
	if rest, err := asn1.Unmarshal(san, &general); err != nil {
		return nil, err
	} else if len(rest) > 0 {
		return nil, errors.New("trailing data")
	}
	var names []pkix.Name
	for _, g := range general {
		if g.Class != asn1.ClassContextSpecific || g.Tag != 4 {
			continue
		}
		var sequence pkix.RDNSequence
		if rest, err := asn1.Unmarshal(g.Bytes, &sequence); err != nil {
			return nil, err
		} else if len(rest) > 0 {
			return nil, errors.New("trailing data")
		}
		var name pkix.Name
		name.FillFromRDNSequence(&sequence)
		names = append(names, name)
	}
	return names, nil
}

func attribute(name pkix.Name, oid asn1.ObjectIdentifier) string {
	for _, a := range name.Names {
		if a.Type.Equal(oid) {
			text, _ := a.Value.(string)
			return printable(text)
		}
	}
	return ""
}

// manufacturerID reads "id:49465800", the four bytes of the vendor's
// identifier in the TCG registry, as "IFX". What has another form, or is not
// made of letters and digits, stays as it is.
func manufacturerID(text string) string {
	digits, ok := strings.CutPrefix(text, "id:")
	raw, err := hex.DecodeString(digits)
	if !ok || err != nil || len(raw) != 4 {
		return text
	}
	id := strings.TrimRight(string(raw), "\x00 ")
	odd := func(r rune) bool { return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') }
	if id == "" || strings.ContainsFunc(id, odd) {
		return text
	}
	return id
}

// maxText bounds what a certificate may say in texts that people read.
const maxText = 200

// printable takes everything but printable ASCII out of a text that a device
// sent, and cuts it.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, text)
	return text[:min(len(text), maxText)]
}

// nameKey is a distinguished name in a form that is equal for names that are
// (RFC 5280, 7.1): without the encoding of its strings, case and spare spaces.
// It finds candidates; who issued what is decided by signatures.
func nameKey(raw []byte) string {
	var name pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &name); err != nil || len(rest) > 0 {
		return string(raw)
	}
	var key strings.Builder
	for _, set := range name {
		for _, a := range set {
			fmt.Fprintf(&key, "%s=%q+", a.Type, strings.Join(strings.Fields(strings.ToLower(fmt.Sprint(a.Value))), " "))
		}
		key.WriteByte(',')
	}
	return key.String()
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}
