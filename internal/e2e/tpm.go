//go:build linux

package e2e

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
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

// TPM is one TPM 2.0: a real swtpm with a state of its own.
type TPM struct {
	// Socket is where it takes commands; beside it, with the ending .ctrl, is what
	// TPM software stacks ask for too.
	Socket string

	state   string
	running *exec.Cmd
	said    bytes.Buffer
	ended   chan struct{}
}

// NewTPM makes a TPM and switches it on.
func (m *TPMMaker) NewTPM(t testing.TB) *TPM {
	t.Helper()
	p := &TPM{state: t.TempDir()}
	m.Make(t, p.state)
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

// Copy makes a second TPM with the state of this one, which is switched off:
// what somebody can do who runs the host of a virtual machine.
func (p *TPM) Copy(t testing.TB) *TPM {
	t.Helper()
	twin := &TPM{state: t.TempDir()}
	if err := os.CopyFS(twin.state, os.DirFS(p.state)); err != nil {
		t.Fatal(err)
	}
	return twin
}

// Endorsement is its endorsement key, as persons compare it and as delivery
// lists have it. Nobody else may use the TPM meanwhile.
func (p *TPM) Endorsement(t testing.TB) (fingerprint, sha256 string) {
	t.Helper()
	device := chip.New(func() (transport.TPMCloser, error) { return linuxudstpm.Open(p.Socket) }, nil)
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

// On switches it on, if it is off: it counts a reset.
func (p *TPM) On(t testing.TB) {
	t.Helper()
	if p.running != nil {
		return
	}
	dir, err := os.MkdirTemp("", "tpm") // the path of a socket has to be short
	if err != nil {
		t.Fatal(err)
	}
	if p.Socket == "" {
		p.Socket = filepath.Join(dir, "tpm")
		t.Cleanup(func() {
			p.Off()
			_ = os.RemoveAll(dir)
		})
	}
	_ = os.Remove(p.Socket)
	p.running = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+p.state,
		"--server", "type=unixio,path="+p.Socket, "--ctrl", "type=unixio,path="+p.Socket+".ctrl", "--flags", "not-need-init,startup-clear")
	p.running.Stdout, p.running.Stderr = &p.said, &p.said
	if err := p.running.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	p.ended = ended
	go func(program *exec.Cmd) {
		_ = program.Wait()
		close(ended)
	}(p.running)
	if !EventuallyEvery(t, time.Millisecond, readyLimit, func() bool {
		conn, err := net.Dial("unix", p.Socket)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}) {
		t.Fatalf("swtpm does not listen: %s", p.said.String())
	}
}

// Off switches it off.
func (p *TPM) Off() {
	if p.running == nil {
		return
	}
	_ = p.running.Process.Kill()
	<-p.ended
	p.running = nil
}

// Clear is TPM2_Clear, as setting up a notebook anew does it: the endorsement
// key stays, everything made under the owner's hierarchy is lost.
func (p *TPM) Clear(t testing.TB) {
	t.Helper()
	conn, err := linuxudstpm.Open(p.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}}.Execute(conn)
	if err != nil {
		t.Fatalf("TPM2_Clear: %v", err)
	}
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
