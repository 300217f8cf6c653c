//go:build linux

package vpnkey_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pfoertner/internal/e2e"
)

// through is what a client says that is in.
const through = "Initialization Sequence Completed"

// The whole way: the agent makes the key, the collector issues, OpenVPN signs
// with the TPM, and its server sees the fingerprint that the collector has
// bound.
func TestOpenVPNWithTheKeyInTheTPM(t *testing.T) {
	o := newOffice(t)
	notebook := o.newPC(t, "notebook")
	o.equip(t, notebook)
	client := o.connect(t, notebook, notebook.key(), notebook.certificate())
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	client.Await(t, ctx, through)

	chain, err := os.ReadFile(notebook.certificate())
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := pem.Decode(chain)
	sum := sha256.Sum256(leaf.Bytes)
	at := <-o.decision
	if at.fingerprint != hex.EncodeToString(sum[:]) || !at.known {
		t.Errorf("the server sees %s, the agent has %x, known: %v", at.fingerprint, sum, at.known)
	}
	if key, err := os.ReadFile(notebook.key()); err != nil || !strings.HasPrefix(string(key), "-----BEGIN TSS2 PRIVATE KEY-----") {
		t.Errorf("the key file: %v", err)
	}
	for _, file := range []string{notebook.key(), notebook.certificate()} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
}

// A copied profile: key file, certificate and configuration of the notebook, on
// a private PC with a TPM of its own.
func TestCopiedVPNProfileOnAnotherTPMDoesNotConnect(t *testing.T) {
	o := newOffice(t)
	notebook, private := o.newPC(t, "notebook"), o.newPC(t, "private PC")
	o.equip(t, notebook)
	if err := os.CopyFS(filepath.Join(private.state, "vpn"), os.DirFS(filepath.Join(notebook.state, "vpn"))); err != nil {
		t.Fatal(err)
	}
	o.neverIn(t, o.connect(t, private, private.key(), private.certificate()), "Cannot load private key file "+private.key())
}

// The copied certificate with a software key, and one that somebody has made
// himself with the notebook's names.
func TestSoftwareKeyInACopiedVPNProfileIsRefused(t *testing.T) {
	o := newOffice(t)
	notebook := o.newPC(t, "notebook")
	o.equip(t, notebook)
	forger := e2e.NewAuthority(t, "Pförtner VPN CA")
	forged := forger.Issue(t, e2e.Subject{CommonName: "NB-0001", Client: true})
	certificate, key := forged.Write(t, t.TempDir(), "forged")
	t.Run("its certificate", func(t *testing.T) {
		o.neverIn(t, o.connect(t, nil, key, notebook.certificate()), "key values mismatch")
	})
	t.Run("a forged one", func(t *testing.T) {
		o.neverIn(t, o.connect(t, nil, key, certificate), "VERIFY ERROR: depth=0, error=unable to get local issuer certificate: CN=NB-0001")
	})
}

// The device's own certificate opens no VPN: its CA is no anchor of gateways.
func TestDeviceCertificateOpensNoVPN(t *testing.T) {
	o := newOffice(t)
	notebook := o.newPC(t, "notebook")
	o.equip(t, notebook)
	key, certificate := notebook.deviceFiles(t)
	o.neverIn(t, o.connect(t, notebook, key, certificate), "VERIFY ERROR: depth=1, error=unable to get local issuer certificate: O=Pförtner, CN=Pförtner device CA")
}

// neverIn waits until client or server has said why it is not let in, and makes
// sure that it is not.
func (o *office) neverIn(t *testing.T, client *e2e.Program, why string) {
	t.Helper()
	said := func() string { return client.Output() + o.server.Output() }
	if !e2e.EventuallyEvery(t, patience, soon, func() bool { return strings.Contains(said(), why) }) {
		t.Errorf("nobody says %q:\n%s", why, said())
	}
	client.Kill()
	if strings.Contains(client.Output(), through) {
		t.Errorf("it is in:\n%s", client.Output())
	}
	select {
	case at := <-o.decision:
		t.Errorf("the server let %s get as far as to ask for %s (known: %v)", at.name, at.fingerprint, at.known)
	default:
	}
}
