package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Pool reads certificates from PEM files into one pool. It returns an error
// when a file cannot be read or holds no certificate.
func Pool(paths ...string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for _, path := range paths {
		certs, err := ReadCertificates(path)
		if err != nil {
			return nil, err
		}
		for _, c := range certs {
			pool.AddCert(c)
		}
	}
	return pool, nil
}

// ReadCertificates reads all certificates of a PEM file, at least one.
func ReadCertificates(path string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := ParseCertificates(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs, nil
}

// ParseCertificates parses all certificates of a PEM text, at least one.
// Anything else in it is an error.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(text) > 0 {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %q where a certificate is expected", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs, text = append(certs, c), rest
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	return certs, nil
}

// FromFiles returns a function for ServerOptions and ClientOptions that reads
// certificate and key from PEM files, and again when either has changed. While
// a change cannot be read the last good pair stays in use.
func FromFiles(certPath, keyPath string) func() (*tls.Certificate, error) {
	var mu sync.Mutex
	var pair *tls.Certificate
	var stamp [2]fileStamp
	return func() (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		now := [2]fileStamp{stampOf(certPath), stampOf(keyPath)}
		if pair != nil && now == stamp {
			return pair, nil
		}
		fresh, err := tls.LoadX509KeyPair(certPath, keyPath)
		switch {
		case err == nil:
			pair, stamp = &fresh, now
		case pair == nil:
			return nil, fmt.Errorf("loading %s: %w", certPath, err)
		}
		return pair, nil
	}
}

type fileStamp struct {
	modified time.Time
	size     int64
}

// stampOf returns the zero stamp for a file that is not there.
func stampOf(path string) fileStamp {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}
	}
	return fileStamp{info.ModTime(), info.Size()}
}
