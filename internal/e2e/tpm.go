//go:build linux

package e2e

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pfoertner/internal/attest"
	"pfoertner/internal/e2e/swtpm"
)

// TPMMaker makes TPMs as a manufacturer does: each gets certificates for its
// endorsement keys. What it makes are programs (swtpm), so a collector has to
// allow its Roots.
type TPMMaker struct {
	// Roots are PEM files with its certificate authorities, the root first.
	Roots []string

	setup string
}

// NewTPMMaker founds a manufacturer.
func NewTPMMaker(t testing.TB) *TPMMaker {
	t.Helper()
	Require(t, "swtpm", "swtpm_setup", "swtpm_localca")
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := file("ca.conf", fmt.Sprintf("statedir = %[1]s\nsigningkey = %[1]s/signing.key\nissuercert = %[1]s/issuing.pem\ncertserial = %[1]s/serial\n", dir))
	options := file("options", "--platform-manufacturer Pfoertner\n--platform-version 1\n--platform-model Trial\n")
	return &TPMMaker{
		Roots: []string{filepath.Join(dir, "swtpm-localca-rootca-cert.pem"), filepath.Join(dir, "issuing.pem")},
		setup: file("setup.conf", "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = "+ca+
			"\ncreate_certs_tool_options = "+options+"\nactive_pcr_banks = sha256\n"),
	}
}

// NewTPM makes a TPM and switches it on.
func (m *TPMMaker) NewTPM(t testing.TB) *swtpm.TPM {
	t.Helper()
	state := t.TempDir()
	m.Make(t, state)
	p := swtpm.Of(t, state)
	p.On(t)
	return p
}

// Make leaves the state of a new TPM in a directory, for whoever switches it on.
func (m *TPMMaker) Make(t testing.TB, state string) {
	t.Helper()
	out, err := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", "dir://"+state, "--config", m.setup,
		"--create-ek-cert", "--lock-nvram", "--overwrite", "--vmid", "trial").CombinedOutput()
	if err != nil {
		t.Fatalf("swtpm_setup: %v\n%s", err, out)
	}
}

// Endorsement is a TPM's endorsement key, as persons compare it and as delivery
// lists have it. Nobody else may use the TPM meanwhile.
func Endorsement(t testing.TB, p *swtpm.TPM) (fingerprint, sha256 string) {
	t.Helper()
	device := p.Chip(t)
	defer device.Close()
	ek, err := device.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ek.Key()
	if err != nil {
		t.Fatal(err)
	}
	sum, err := attest.SPKI(key)
	if err == nil {
		fingerprint, err = attest.Fingerprint(key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fingerprint, hex.EncodeToString(sum)
}

// VirtualRoots is the collector's setting that allows TPMs of these makers.
func VirtualRoots(makers ...*TPMMaker) string {
	var files []string
	for _, m := range makers {
		for _, f := range m.Roots {
			files = append(files, fmt.Sprintf("%q", f))
		}
	}
	return "tpm: {virtual_roots: [" + strings.Join(files, ", ") + "]}\n"
}
