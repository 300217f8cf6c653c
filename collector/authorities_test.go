package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pfoertner/collector/audit"
	"pfoertner/collector/store"
)

// maker is an authority of TPMs that a test makes.
type maker struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newMaker makes an authority below another one; nil: a root.
func newMaker(t *testing.T, name string, parent *maker) *maker {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent = &maker{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &maker{cert, key}
}

func (m *maker) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.cert.Raw})
}

func writeFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "pfoertner.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// brokenStore keeps nothing.
type brokenStore struct{ uploads }

var errDiskFull = errors.New("disk full")

func (brokenStore) SaveAuthorities(context.Context, []byte, string, ...audit.Record) error {
	return errDiskFull
}

func TestUploadedAuthoritiesAreBelievedAtOnceAndAfterARestart(t *testing.T) {
	s := openStore(t)
	root := newMaker(t, "Our Hypervisor", nil)
	between := newMaker(t, "Between", root)
	below := newMaker(t, "Below", between)
	roots := []string{writeFile(t, "roots.pem", root.pem())}
	noon := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	open := func() *authorities {
		a, err := openAuthorities(t.Context(), s, roots, func() time.Time { return noon }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := open()
	before := len(a.List())

	// What nobody vouches for is refused, and what waits for its parent too.
	for name, upload := range map[string][]byte{"a stranger": newMaker(t, "Stranger", nil).pem(), "an orphan": below.pem(), "noise": []byte("noise")} {
		if added, err := a.Add(t.Context(), "anna", upload, false); !errors.Is(err, fs.ErrInvalid) || added != nil {
			t.Errorf("%s: added %v, error %v", name, added, err)
		}
	}
	both := append(below.pem(), between.pem()...)
	if would, err := a.Add(t.Context(), "anna", both, true); err != nil || len(would) != 2 || len(a.List()) != before {
		t.Errorf("dry run: %v %v, then %d authorities, want %d", would, err, len(a.List()), before)
	}
	old := a.Current()
	added, err := a.Add(t.Context(), "anna", both, false)
	if err != nil || len(added) != 2 {
		t.Fatalf("added %v, error %v", added, err)
	}
	if a.Current() == old || len(old.Authorities()) != before {
		t.Error("the bundle in force was changed, not replaced")
	}
	if again, err := a.Add(t.Context(), "bernd", both, false); err != nil || len(again) != 0 {
		t.Errorf("once more: %v %v", again, err)
	}
	for name, a := range map[string]*authorities{"at once": a, "after a restart": open()} {
		list := a.List()
		if len(list) != before+2 {
			t.Fatalf("%s: %d authorities, want %d", name, len(list), before+2)
		}
		for _, one := range list[before:] {
			if one.GetAddedBy() != "anna" || !one.GetAddedAt().AsTime().Equal(noon) || !one.GetVirtual() || one.GetRoot() {
				t.Errorf("%s: %v", name, one)
			}
		}
	}
	events, err := s.Events(t.Context(), "", time.Time{}, 10)
	if err != nil {
		t.Fatal(err)
	}
	if len(events) != 2 || events[0].GetKind() != "endorsement.added" || events[0].GetActor() != "anna" || len(events[0].GetDetails()["sha256"]) != 64 {
		t.Errorf("audited: %v", events)
	}
}

func TestAuthoritiesThatCannotBeKeptAreNotBelieved(t *testing.T) {
	root := newMaker(t, "Our Hypervisor", nil)
	a, err := openAuthorities(t.Context(), openStore(t), []string{writeFile(t, "roots.pem", root.pem())}, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	before := len(a.List())
	a.store = brokenStore{}
	if _, err := a.Add(t.Context(), "anna", newMaker(t, "Between", root).pem(), false); !errors.Is(err, errDiskFull) || errors.Is(err, fs.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if len(a.List()) != before {
		t.Error("believed until the next restart")
	}
}

// A root that the configuration no longer names takes what hangs below it with
// it; the collector starts all the same, and says so.
func TestUploadsOfARootThatIsNoLongerAllowedAreLeftOut(t *testing.T) {
	s := openStore(t)
	root := newMaker(t, "Our Hypervisor", nil)
	a, err := openAuthorities(t.Context(), s, []string{writeFile(t, "roots.pem", root.pem())}, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	before := len(a.List())
	if _, err := a.Add(t.Context(), "anna", newMaker(t, "Between", root).pem(), false); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	if a, err = openAuthorities(t.Context(), s, nil, time.Now, slog.New(slog.NewTextHandler(&said, nil))); err != nil {
		t.Fatal(err)
	}
	if len(a.List()) != before-1 || !strings.Contains(said.String(), "operator=anna") {
		t.Errorf("%d authorities, want %d; logged %q", len(a.List()), before-1, said.String())
	}
}

func TestConfiguredRootsOfVirtualTPMsMustBeRoots(t *testing.T) {
	root := newMaker(t, "Our Hypervisor", nil)
	for name, file := range map[string]string{
		"a missing file":   filepath.Join(t.TempDir(), "none.pem"),
		"an intermediate":  writeFile(t, "between.pem", newMaker(t, "Between", root).pem()),
		"no certificates":  writeFile(t, "empty.pem", nil),
		"something broken": writeFile(t, "broken.pem", root.pem()[:200]),
	} {
		_, err := openAuthorities(t.Context(), openStore(t), []string{file}, time.Now, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), "tpm.virtual_roots") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
