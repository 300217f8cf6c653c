// Package signed makes and opens files that carry their own proof of origin:
// reference values and VPN catalogues, which travel by mail, on a stick, or
// through the collector to the notebooks.
//
// Rules. The content stands first, as plain text that anybody can read; after
// it one PEM block with the signature and then the signer's certificates.
// There is exactly one way to write a file: whatever Sign would not have
// written, down to a line end, Open refuses. The signature covers what the file
// is for, so a catalogue never passes as reference values. The signer needs the
// role reference-signer under the collector's server CA. Its certificate has to
// be valid when the file is opened, not when it was signed: nothing in a file
// proves a time, and with a stolen old key anyone could name an early one. A
// file whose signer has ended is signed again, unchanged.
package signed

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"pfoertner/internal/mtls"
)

// What a file may be for.
const (
	// References are reference values that the collector judges by.
	References = "references"
	// VPNCatalogue extends what agents know of VPN clients.
	VPNCatalogue = "vpn-catalogue"
)

// Limits.
const (
	// MaxContent is the longest content, in bytes.
	MaxContent = 256 << 10
	// MaxFile is the longest file that is looked at, in bytes.
	MaxFile = MaxContent + 32<<10

	maxCertificates = 4
)

// signedContext stands before what is signed: this key signs nothing else that
// begins so.
const signedContext = "pfoertner signed file 1"

const (
	signatureType   = "PFOERTNER SIGNATURE"
	certificateType = "CERTIFICATE"
	kindHeader      = "Kind"
	blockBegin      = "-----BEGIN "
)

// Sign returns content followed by the signature for kind and the signer's
// certificates. A line end is added to content that has none at its end. It
// returns an error for a kind that is not known, for content that Open would
// refuse (empty, longer than MaxContent, not UTF-8, with carriage returns or
// with a line that begins a PEM block), and for a signer that is no reference
// signer with an ECDSA P-256 or Ed25519 key.
func Sign(kind string, content []byte, signer tls.Certificate) ([]byte, error) {
	if !bytes.HasSuffix(content, []byte("\n")) {
		content = append(bytes.Clone(content), '\n')
	}
	if err := checkContent(kind, content); err != nil {
		return nil, err
	}
	if err := checkSigner(signer); err != nil {
		return nil, err
	}
	key, ok := signer.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the signer's key cannot sign")
	}
	message, options := signedMessage(kind, content), crypto.SignerOpts(crypto.Hash(0))
	if _, isECDSA := key.Public().(*ecdsa.PublicKey); isECDSA {
		sum := sha256.Sum256(message)
		message, options = sum[:], crypto.SHA256
	}
	signature, err := key.Sign(rand.Reader, message, options)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	file := write(kind, content, signature, signer.Certificate)
	// A certificate that does not belong to the key is found here and not by
	// those who get the file.
	leaf, err := x509.ParseCertificate(signer.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("signer's certificate: %w", err)
	}
	if err := verify(leaf, kind, content, signature); err != nil {
		return nil, fmt.Errorf("signer's certificate and key do not belong together: %w", err)
	}
	return file, nil
}

// Open returns the content of a file that a reference signer under roots signed
// for kind, and the signer's name. Content is returned only when everything
// holds; a nil pool trusts nobody. The errors are for the people who brought
// the file.
func Open(kind string, file []byte, roots *x509.CertPool, now time.Time) (content []byte, signer string, err error) {
	parts, err := split(file)
	if err != nil {
		return nil, "", err
	}
	if parts.kind != kind {
		return nil, "", fmt.Errorf("the file is signed for %q, not for %q", parts.kind, kind)
	}
	leaf, name, err := mtls.VerifyReferenceSigner(parts.chain, roots, now)
	if _, foreign := errors.AsType[x509.UnknownAuthorityError](err); foreign {
		return nil, "", errors.New("the signer's certificate is from another authority than the collector's")
	}
	if err != nil {
		return nil, "", err
	}
	if err := verify(leaf, kind, parts.content, parts.signature); err != nil {
		return nil, "", err
	}
	return parts.content, name, nil
}

// KindOf returns what a file says it is for. Nothing is verified: it only tells
// which kind to open it as.
func KindOf(file []byte) (string, error) {
	parts, err := split(file)
	return parts.kind, err
}

// ContentOf returns a file's content. Nothing is verified: it is for files that
// Open has opened before.
func ContentOf(file []byte) ([]byte, error) {
	parts, err := split(file)
	return parts.content, err
}

// parts is a file taken apart; nothing in it is verified.
type parts struct {
	kind               string
	content, signature []byte
	chain              [][]byte
}

func split(file []byte) (parts, error) {
	if len(file) > MaxFile {
		return parts{}, fmt.Errorf("the file has %d bytes, at most %d are taken", len(file), MaxFile)
	}
	begin := bytes.Index(file, []byte("\n"+blockBegin))
	if begin < 0 {
		return parts{}, errors.New("the file carries no signature")
	}
	if bytes.ContainsRune(file, '\r') {
		return parts{}, errors.New("line ends of the file were changed on its way (carriage returns): transfer it again, as a binary file")
	}
	p := parts{content: file[:begin+1]}
	block, rest := pem.Decode(file[begin+1:])
	if block == nil || block.Type != signatureType {
		return parts{}, errors.New("the signature is cut off, damaged or missing")
	}
	p.kind, p.signature = block.Headers[kindHeader], block.Bytes
	for len(rest) > 0 {
		if block, rest = pem.Decode(rest); block == nil || block.Type != certificateType || len(p.chain) == maxCertificates {
			return parts{}, fmt.Errorf("after the signature only the signer's certificates may stand, at most %d: the file is cut off, damaged, or something was added", maxCertificates)
		}
		p.chain = append(p.chain, block.Bytes)
	}
	if err := checkContent(p.kind, p.content); err != nil {
		return parts{}, err
	}
	if !bytes.Equal(write(p.kind, p.content, p.signature, p.chain), file) {
		return parts{}, errors.New("the signature block is not written as it should be: the file is cut off, damaged, or something was added")
	}
	return p, nil
}

func write(kind string, content, signature []byte, chain [][]byte) []byte {
	file := bytes.Clone(content)
	file = append(file, pem.EncodeToMemory(&pem.Block{
		Type: signatureType, Headers: map[string]string{kindHeader: kind}, Bytes: signature,
	})...)
	for _, der := range chain {
		file = append(file, pem.EncodeToMemory(&pem.Block{Type: certificateType, Bytes: der})...)
	}
	return file
}

func checkContent(kind string, content []byte) error {
	switch {
	case kind != References && kind != VPNCatalogue:
		return fmt.Errorf("%q is no kind of signed file: known are %s, %s", kind, References, VPNCatalogue)
	case len(bytes.TrimSpace(content)) == 0:
		return errors.New("the file has no content")
	case len(content) > MaxContent:
		return fmt.Errorf("the content has %d bytes, at most %d are taken", len(content), MaxContent)
	case !utf8.Valid(content):
		return errors.New("the content is not UTF-8")
	case bytes.ContainsAny(content, "\x00\r"):
		return errors.New("the content has carriage returns or zero bytes: lines end with a line feed only")
	case bytes.HasPrefix(content, []byte(blockBegin)) || bytes.Contains(content, []byte("\n"+blockBegin)):
		return errors.New("the content has a line that begins like a signature; is it signed already?")
	}
	return nil
}

// checkSigner refuses early what no one would accept.
func checkSigner(signer tls.Certificate) error {
	if n := len(signer.Certificate); n == 0 || n > maxCertificates {
		return fmt.Errorf("the signer has %d certificates, 1 to %d are needed", n, maxCertificates)
	}
	leaf, err := x509.ParseCertificate(signer.Certificate[0])
	if err != nil {
		return fmt.Errorf("signer's certificate: %w", err)
	}
	role, _, err := mtls.Identity(leaf)
	if err != nil {
		return fmt.Errorf("signer's certificate: %w", err)
	}
	if role != mtls.RoleReferenceSigner {
		return fmt.Errorf("a certificate of role %s signs no files: %s is needed", role, mtls.RoleReferenceSigner)
	}
	return nil
}

// signedMessage is what the signature covers. No kind holds a zero byte, so
// there is one way to read it.
func signedMessage(kind string, content []byte) []byte {
	return bytes.Join([][]byte{[]byte(signedContext), []byte(kind), content}, []byte{0})
}

func verify(leaf *x509.Certificate, kind string, content, signature []byte) error {
	message := signedMessage(kind, content)
	good := false
	switch key := leaf.PublicKey.(type) {
	case ed25519.PublicKey:
		good = ed25519.Verify(key, message, signature)
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return errors.New("the signer's key is not of the curve P-256")
		}
		sum := sha256.Sum256(message)
		good = ecdsa.VerifyASN1(key, sum[:], signature)
	default:
		return fmt.Errorf("the signer has a %s key, ECDSA P-256 or Ed25519 is needed", leaf.PublicKeyAlgorithm)
	}
	if !good {
		return errors.New("the signature does not fit the content: the file was changed after it was signed")
	}
	return nil
}
