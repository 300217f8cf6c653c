package authority

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// writePair writes name.crt (chain, leaf first) and name.key (PKCS#8).
func writePair(dir, name string, chain [][]byte, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("marshalling %s.key: %w", name, err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := writeFile(filepath.Join(dir, name+".key"), text); err != nil {
		return err
	}
	return writeCertificates(filepath.Join(dir, name+".crt"), chain)
}

func writeCertificates(path string, chain [][]byte) error {
	var text []byte
	for _, der := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return writeFile(path, text)
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
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
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

// loadIssuer reads an issuing CA and checks that it is what Create makes:
// signed by the root, unable to make further CAs, for its usage only.
func loadIssuer(dir string, kind issuingKind, root *x509.Certificate) (issuer, error) {
	pair, err := readPair(dir, kind.file)
	if err != nil {
		return issuer{}, err
	}
	cert := pair.Leaf
	if err := cert.CheckSignatureFrom(root); err != nil {
		return issuer{}, fmt.Errorf("%s.crt is not issued by root-ca.crt: %w", kind.file, err)
	}
	if cert.Subject.CommonName != kind.commonName() || !cert.IsCA || !cert.MaxPathLenZero || len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != kind.usage {
		return issuer{}, fmt.Errorf("%s.crt is not the %s that it should be", kind.file, kind.title)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return issuer{}, fmt.Errorf("%s.key cannot sign", kind.file)
	}
	return issuer{cert: cert, key: key}, nil
}
