package swtpm

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"pfoertner/internal/attest/chip"
)

// TPM is the TPM 2.0 of a machine: a real swtpm, with an endorsement key and no
// certificate for it.
type TPM struct {
	// Socket is where it listens; beside it, with the ending .ctrl, is what other
	// TPM software asks for too.
	Socket string
	// Log is what the machine says it measured; empty: nothing.
	Log []byte

	state string
	stop  func()
}

// New is one fresh from the factory, switched on.
func New(t testing.TB) *TPM {
	t.Helper()
	tpm := Of(t, t.TempDir())
	tpm.On(t)
	return tpm
}

// Of is the one whose state lies in a directory, switched off.
func Of(t testing.TB, state string) *TPM {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("SKIPPED: this test needs the program \"swtpm\"")
	}
	dir, err := os.MkdirTemp("", "tpm") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	tpm := &TPM{Socket: filepath.Join(dir, "s"), state: state}
	t.Cleanup(func() {
		tpm.Off()
		_ = os.RemoveAll(dir) // temporary
	})
	return tpm
}

// Chip reaches it as a notebook reaches its own.
func (p *TPM) Chip(t testing.TB) *chip.Chip {
	c := chip.New(func() (transport.TPMCloser, error) { return linuxudstpm.Open(p.Socket) },
		func() ([]byte, error) { return p.Log, nil })
	t.Cleanup(func() { _ = c.Close() }) // the TPM may be off
	return c
}

// Copy makes a second one with the same state: what somebody can do who runs
// the host of virtual machines. It is switched off.
func (p *TPM) Copy(t testing.TB) *TPM {
	t.Helper()
	state := t.TempDir()
	if err := os.CopyFS(state, os.DirFS(p.state)); err != nil {
		t.Fatal(err)
	}
	return Of(t, state)
}

// Off switches the machine off: it answers nobody, and forgets what was loaded.
func (p *TPM) Off() {
	if p.stop != nil {
		p.stop()
		p.stop = nil
	}
}

// On switches the machine on, if it is off.
func (p *TPM) On(t testing.TB) {
	t.Helper()
	if p.stop != nil {
		return
	}
	var said bytes.Buffer
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+p.state,
		"--server", "type=unixio,path="+p.Socket, "--ctrl", "type=unixio,path="+p.Socket+".ctrl", "--flags", "not-need-init,startup-clear")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its end is Off
		close(ended)
	}()
	p.stop = func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = os.Remove(p.Socket)
	}
	deadline := time.After(10 * time.Second)
	for {
		if conn, err := net.Dial("unix", p.Socket); err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("swtpm ended: %s", said.String())
		case <-deadline:
			t.Fatal("swtpm does not listen")
		case <-time.After(time.Millisecond): // it says nowhere that it listens
		}
	}
}

// Clear is what setting up a machine anew does: the endorsement key stays, and
// nothing else.
func (p *TPM) Clear(t testing.TB) {
	t.Helper()
	tpm, err := linuxudstpm.Open(p.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	if _, err := (tpm2.Clear{AuthHandle: platform}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
}
