package main

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pfoertner/agent/identity"
	"pfoertner/agent/testcollector"
	"pfoertner/agent/vpnkey"
	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
	"pfoertner/internal/e2e/swtpm"
)

func TestIDShowsWhatTheInventoryKnowsATPMBy(t *testing.T) {
	tpm := swtpm.New(t)
	c := tpm.Chip(t)
	ek, err := c.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ek.Key()
	if err != nil {
		t.Fatal(err)
	}
	sum, err := attest.SPKI(key)
	if err != nil {
		t.Fatal(err)
	}
	fingerprint, err := attest.Fingerprint(key)
	if err != nil {
		t.Fatal(err)
	}
	card := idCard{DeviceKey: identity.KindTPM}
	if err := card.addTPM(c); err != nil {
		t.Fatal(err)
	}
	if card.Fingerprint != fingerprint || card.TPM.EndorsementKey != hex.EncodeToString(sum) || card.TPM.Certificate || card.TPM.Manufacturer == "" {
		t.Errorf("%+v %+v", card, card.TPM)
	}
	tpm.Off()
	gone := idCard{DeviceKey: identity.KindTPM}
	if err := gone.addTPM(c); !errors.Is(err, chip.ErrUnavailable) || gone.TPM != nil || gone.TPMProblem == "" {
		t.Errorf("without a TPM: %v, %+v", err, gone)
	}
}

// A blob is no key anywhere else, but an image that carries one has no identity
// for any of its copies either.
func TestTPMIdentityIsNoPartOfAnImageAndIsPurged(t *testing.T) {
	tpm := swtpm.New(t)
	c := testcollector.New(t)
	c.OnEnrol = c.Granting("t-1", "0f9a2c1e-7c55-4e1c-9a54-3f2f0a0c7d21")
	c.Listen()
	p := newPlace(t, "")
	p.write("agent.yaml", strings.Replace(read(t, p.path("agent.yaml")), "device_key: software", "device_key: tpm", 1))
	state, err := identity.Open(p.path("state"), identity.TPM{Chip: tpm.Chip(t)})
	if err != nil {
		t.Fatal(err)
	}
	e := identity.Enrolment{Target: c.Target(), Token: "t-1"}
	e.Pin.File = c.Servers.File(t)
	if _, err := state.Enrol(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if _, err := p.run("prepare-image"); err == nil || !strings.Contains(err.Error(), "there is a key") {
		t.Errorf("prepare-image: %v", err)
	}
	vpn := filepath.Join(p.path("state"), "vpn")
	if err := os.Mkdir(vpn, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range vpnkey.Files(vpn) {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.run("purge"); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(p.path("state/*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
