package authority

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"pfoertner/internal/mtls"
)

// Names of files, without their endings, beside those of the issuing CAs.
const (
	rootFile        = "root-ca"
	collectorFile   = "collector"
	leaseSignerFile = "lease-signer"
)

const (
	rootName = "Pförtner root CA"
	// actor is who works on the directory itself.
	actor = "collector's machine"
)

// writePair writes name.crt (chain, leaf first) and name.key (PKCS#8).
func writePair(dir, name string, chain [][]byte, key crypto.Signer) error {
	text, err := keyText(key)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, name+".key"), text); err != nil {
		return err
	}
	return writeCertificates(filepath.Join(dir, name+".crt"), chain)
}

func writeCertificates(path string, chain [][]byte) error {
	return writeFile(path, certificatesText(chain))
}

func certificatesText(chain [][]byte) (text []byte) {
	for _, der := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return text
}

// writeFile replaces a file as a whole, mode 0600, and returns when it is on
// disk.
func writeFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err := errors.Join(err, owned(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func readPair(dir, name string) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &pair, nil
}

// readCA reads an issuing CA's certificate and checks that it is what a root
// makes for this kind.
func readCA(dir, name string, kind issuingKind, roots []*x509.Certificate) (*x509.Certificate, error) {
	certs, err := mtls.ReadCertificates(filepath.Join(dir, name+".crt"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := checkCA(certs[0], kind, roots); err != nil {
		return nil, fmt.Errorf("%s.crt is %w", name, err)
	}
	return certs[0], nil
}

// checkCA: signed by one of the roots, unable to make further CAs, for its
// usage only.
func checkCA(cert *x509.Certificate, kind issuingKind, roots []*x509.Certificate) error {
	err := errors.New("there is no root")
	for _, root := range roots {
		if err = cert.CheckSignatureFrom(root); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("not issued by %s.crt: %w", rootFile, err)
	}
	if cert.Subject.CommonName != kind.commonName() || !cert.IsCA || !cert.MaxPathLenZero || len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != kind.usage {
		return fmt.Errorf("not the %s that it should be", kind.title)
	}
	return nil
}

func samePublic(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// fingerprint is the SHA-256 of a certificate in hexadecimal.
func fingerprint(cert *x509.Certificate) string {
	if cert == nil {
		return ""
	}
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// sameFile says whether a file holds exactly this.
func sameFile(path string, content []byte) bool {
	text, err := os.ReadFile(path)
	return err == nil && bytes.Equal(text, content)
}
