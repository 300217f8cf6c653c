//go:build linux

package attacks_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pfoertner/internal/e2e"
	"pfoertner/internal/mtls"
)

// stolen is what a thief of a software key has.
func stolen(t *testing.T, from *pc) *tls.Certificate {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(from.state, "identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Key   []byte   `json:"key"`
		Chain [][]byte `json:"chain"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(file.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: file.Chain, PrivateKey: key.(crypto.Signer)}
}

// softwareDevice is a city with one enrolled notebook whose key can be stolen.
// Its agent is switched off.
func softwareDevice(t *testing.T) (*city, *tls.Certificate) {
	t.Helper()
	c := newCity(t)
	c.deliver(t, asset, nil)
	c.AllowSoftwareKey(t, asset)
	notebook := c.newPC(t, "notebook", nil)
	notebook.start(t, c.token(t, asset))
	c.awaitReport(t, asset, time.Time{})
	key := stolen(t, notebook)
	notebook.stop()
	return c, key
}

// connects shakes hands as a client and waits for the server's opinion, which
// TLS 1.3 gives with the first byte that is read.
func connects(c *city, address string, config *tls.Config) (tls.ConnectionState, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: soon}, "tcp", address, config)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(soon)); err != nil {
		return tls.ConnectionState{}, err
	}
	// gRPC speaks first: its settings, or an alert.
	_, err = io.ReadFull(conn, make([]byte, 1))
	return conn.ConnectionState(), err
}

func clientConfig(t *testing.T, c *city, key *tls.Certificate) *tls.Config {
	t.Helper()
	servers, err := mtls.Pool(c.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	config := mtls.ClientConfig(mtls.ClientOptions{Servers: servers, ServerName: "127.0.0.1",
		Certificate: func() (*tls.Certificate, error) { return key, nil }})
	config.NextProtos = []string{"h2"}
	return config
}

func TestDeviceCertificateIsNoOtherRole(t *testing.T) {
	t.Parallel()
	c, key := softwareDevice(t)
	config := clientConfig(t, c, key)
	if _, err := connects(c, c.Agents, config); err != nil {
		t.Fatalf("as a device it is refused: %v", err)
	}
	for role, address := range map[string]string{"gate": c.Gates, "operator": c.Operators} {
		if _, err := connects(c, address, config); err == nil {
			t.Errorf("a device is accepted as %s", role)
		}
	}

	// As a collector: an agent that is led to the thief notices.
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*key}, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake()
			_ = conn.Close()
		}
	}()
	var untrusted *tls.CertificateVerificationError
	if _, err := connects(c, listener.Addr().String(), config); !errors.As(err, &untrusted) {
		t.Errorf("a device as a collector: %v", err)
	}
}

func TestSessionResumptionAfterSuspensionIsRefused(t *testing.T) {
	t.Parallel()
	c, key := softwareDevice(t)
	config := clientConfig(t, c, key)
	tickets := &tickets{}
	config.ClientSessionCache = tickets
	for range 2 {
		state, err := connects(c, c.Agents, config)
		if err != nil {
			t.Fatal(err)
		}
		if state.DidResume || tickets.kept > 0 {
			t.Fatal("the collector hands out tickets to come back with")
		}
	}
	c.Operator(t, "suspend", asset, "--reason", "stolen")
	if !e2e.EventuallyEvery(t, patience, soon, func() bool { _, err := connects(c, c.Agents, config); return err != nil }) {
		t.Error("a suspended device still shakes hands")
	}
}

// tickets counts what a server gives out for resumption.
type tickets struct{ kept int }

func (t *tickets) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (t *tickets) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		t.kept++
	}
}

func TestSuspensionEndsTheStreamWithinASecond(t *testing.T) {
	t.Parallel()
	c, notebook := delivered(t)
	began := time.Now()
	c.Operator(t, "suspend", asset, "--reason", "lost on the train")
	ordered := time.Now()
	if !e2e.EventuallyEvery(t, 5*time.Millisecond, soon, func() bool { return !c.device(t, asset).GetOnline() }) {
		t.Fatalf("the stream goes on:\n%s", notebook.agent.Output())
	}
	t.Logf("offline at most %s after the order was given, %s after it was answered", time.Since(began), time.Since(ordered))
	notebook.says(t, "asset is suspended")
}
