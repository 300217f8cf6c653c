//go:build linux

package chip_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
)

// BenchmarkChip measures what a notebook waits for, with swtpm: real TPMs are
// 10 to 100 times slower.
func BenchmarkChip(b *testing.B) {
	p := newPC(b)
	ak, key := p.newAK(b), p.newKey(b)
	kept, digest := stored(b, key), make([]byte, 32)
	operations := []struct {
		name string
		run  func() error
	}{
		{"sign", func() error { _, err := key.Sign(rand.Reader, digest, crypto.SHA256); return err }},
		{"certify", func() error { _, _, err := p.Certify(ak, key, digest); return err }},
		{"quote", func() error { _, err := p.Quote(ak, attest.QuotedPCRs(), digest); return err }},
		{"load and sign", func() error {
			k, err := p.LoadKey(kept)
			if err != nil {
				return err
			}
			_, err = k.Sign(rand.Reader, digest, crypto.SHA256)
			return err
		}},
	}
	for _, o := range operations {
		b.Run(o.name, func(b *testing.B) {
			for b.Loop() {
				if err := o.run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkConnect compares TLS handshakes with a key in the TPM, and a quote
// after them, with those by a software key. ratio is how much longer they take;
// the bar is 3.
func BenchmarkConnect(b *testing.B) {
	p := newPC(b)
	ak := p.newAK(b)
	software, err := attest.NewKey()
	if err != nil {
		b.Fatal(err)
	}
	withTPM, without := newHandshake(b, p.newKey(b)), newHandshake(b, software)
	var hard, soft time.Duration
	n := 0
	for b.Loop() {
		start := time.Now()
		withTPM.run(b)
		if _, err := p.Quote(ak, attest.QuotedPCRs(), make([]byte, 32)); err != nil {
			b.Fatal(err)
		}
		between := time.Now()
		without.run(b)
		hard, soft = hard+between.Sub(start), soft+time.Since(between)
		n++
	}
	b.ReportMetric(hard.Seconds()*1000/float64(n), "tpm-ms")
	b.ReportMetric(soft.Seconds()*1000/float64(n), "software-ms")
	b.ReportMetric(hard.Seconds()/soft.Seconds(), "ratio")
	b.ReportMetric(0, "ns/op")
}

// handshake is a TLS 1.3 connection over loopback, each side with a
// certificate.
type handshake struct {
	listener net.Listener
	client   *tls.Config
	server   *tls.Config
}

func newHandshake(b *testing.B, key crypto.Signer) *handshake {
	b.Helper()
	caKey := generate(b)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, DNSNames: []string{"collector"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	ca := certify(b, template, template, caKey.Public(), caKey)
	leaf := *template
	leaf.IsCA, leaf.KeyUsage = false, x509.KeyUsageDigitalSignature
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = listener.Close() })
	device := certify(b, &leaf, ca, key.Public(), caKey)
	return &handshake{
		listener: listener,
		client: &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: "collector",
			Certificates: []tls.Certificate{{Certificate: [][]byte{device.Raw}, PrivateKey: key}},
		},
		server: &tls.Config{
			MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, SessionTicketsDisabled: true,
			Certificates: []tls.Certificate{{Certificate: [][]byte{ca.Raw}, PrivateKey: caKey}},
		},
	}
}

func (h *handshake) run(b *testing.B) {
	b.Helper()
	served := make(chan error, 1)
	go func() {
		conn, err := h.listener.Accept()
		if err != nil {
			served <- err
			return
		}
		defer conn.Close()
		server := tls.Server(conn, h.server)
		err = server.HandshakeContext(context.Background())
		served <- errors.Join(err, server.Close())
	}()
	conn, err := tls.Dial("tcp", h.listener.Addr().String(), h.client)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	if err := <-served; err != nil {
		b.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		b.Fatal(err)
	}
}

var _ crypto.Signer = (*chip.Key)(nil)
