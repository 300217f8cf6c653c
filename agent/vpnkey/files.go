package vpnkey

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"pfoertner/agent/durable"
)

// The files of the directory. VPN programs read the first two; the third holds
// both, while they are replaced.
const (
	keyFile         = "key.pem"
	certificateFile = "certificate.pem"
	nextFile        = "next.pem"
)

const (
	keyType         = "TSS2 PRIVATE KEY"
	certificateType = "CERTIFICATE"
	// maxFile is far above a key and a chain.
	maxFile = 64 << 10
)

// KeyFile is where VPN programs find the key, in a directory of New.
func KeyFile(dir string) string { return filepath.Join(dir, keyFile) }

// CertificateFile is where VPN programs find the certificate and its CA, in a
// directory of New.
func CertificateFile(dir string) string { return filepath.Join(dir, certificateFile) }

// Files are all that can be in a directory of New, there or not.
func Files(dir string) []string {
	return []string{KeyFile(dir), CertificateFile(dir), filepath.Join(dir, nextFile)}
}

// files is the directory of key and certificate.
type files struct{ dir string }

// stored is what the files hold.
type stored struct {
	key   []byte // chip.Key.Stored
	chain [][]byte
	made  time.Time // when the key file was written
}

// write replaces key and certificate. The file that holds both is the moment
// from which the new ones count: whoever finds it goes on from there. A key
// that stays is not written again, so that its file tells its age.
func (f files) write(key []byte, chain []*x509.Certificate) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	content := bytes.Clone(key)
	for _, c := range chain {
		content = append(content, pem.EncodeToMemory(&pem.Block{Type: certificateType, Bytes: c.Raw})...)
	}
	if err := durable.WriteFile(f.path(nextFile), content, 0o600); err != nil {
		return err
	}
	return f.place(content)
}

// place puts in place what nextFile holds.
func (f files) place(content []byte) error {
	key, rest := pem.Decode(content)
	text := pem.EncodeToMemory(key)
	if before, err := f.content(keyFile); err != nil || !bytes.Equal(before, text) {
		if err := durable.WriteFile(f.path(keyFile), text, 0o600); err != nil {
			return err
		}
	}
	if err := durable.WriteFile(f.path(certificateFile), rest, 0o600); err != nil {
		return err
	}
	return durable.Remove(f.path(nextFile))
}

// read returns what is in place, after it has put there what a crash has left
// over; nil: nothing that can be read.
func (f files) read() (*stored, error) {
	if left, err := f.content(nextFile); err == nil {
		if parse(left) == nil {
			err = durable.Remove(f.path(nextFile))
		} else {
			err = f.place(left)
		}
		if err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := f.content(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	chain, err := f.content(certificateFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	info, err := os.Stat(f.path(keyFile))
	if err != nil {
		return nil, err
	}
	s := parse(append(key, chain...))
	if s != nil {
		s.made = info.ModTime()
	}
	return s, nil
}

// parse reads a key, then certificates; nil: it is not that.
func parse(content []byte) *stored {
	block, rest := pem.Decode(content)
	if block == nil || block.Type != keyType {
		return nil
	}
	s := &stored{key: block.Bytes}
	for block, rest = pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != certificateType {
			return nil
		}
		s.chain = append(s.chain, block.Bytes)
	}
	if len(s.chain) == 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil
	}
	return s
}

func (f files) content(name string) ([]byte, error) {
	file, err := os.Open(f.path(name))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxFile))
}

func (f files) path(name string) string { return filepath.Join(f.dir, name) }
