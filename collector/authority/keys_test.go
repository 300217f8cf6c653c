package authority

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crypto/rand"

	"golang.org/x/crypto/ssh/agent"

	"pfoertner/internal/attest"
)

// keyring is an SSH agent with a key for every comment.
func keyring(t *testing.T, comments ...string) (socket string, keys map[string]*ecdsa.PrivateKey) {
	t.Helper()
	ring, keys := agent.NewKeyring(), map[string]*ecdsa.PrivateKey{}
	for _, comment := range comments {
		key, err := attest.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		if err := ring.Add(agent.AddedKey{PrivateKey: key, Comment: comment}); err != nil {
			t.Fatal(err)
		}
		keys[comment] = key
	}
	return serveAgent(t, ring), keys
}

func serveAgent(t *testing.T, ring agent.Agent) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = agent.ServeAgent(ring, conn) // ends with the client
			}()
		}
	}()
	return socket
}

func TestIssuingKeyAtAnAgent(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	socket, _ := keyring(t, "something else", "device-ca-2")
	rotateAtAgent(t, a, Rotation{Dir: dir, Now: c.Now}, socket)
}

// rotateAtAgent replaces the device CA by one whose key is at an agent.
func rotateAtAgent(t *testing.T, a *Authority, r Rotation, socket string) {
	t.Helper()
	requests, err := r.Request([]string{"device"}, "", Agent{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	install(t, r, Root{Dir: r.Dir, Now: r.Now}, requests)
	if err := r.Switch("device", true); err != nil {
		t.Fatal(err)
	}
	follow(t, a)
	issued, err := a.IssueDevice(device, publicKey(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	if !verifies(leaf(t, issued), a.Devices(), r.now()) {
		t.Error("what the agent signed does not verify")
	}
	text, err := os.ReadFile(filepath.Join(r.Dir, "device-ca-2.key"))
	if err != nil || strings.Contains(string(text), pkcs8Type) {
		t.Errorf("the key is here: %s, %v", text, err)
	}
	entries, _, err := List(r.Dir, r.now())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if want := map[bool]string{true: "agent", false: "file"}[e.Name == "device-ca-2"]; e.Key != want {
			t.Errorf("the key of %s is said to be in %q", e.Name, e.Key)
		}
	}
}

// The agent may be gone for a while: nothing is issued then, and everything
// else goes on.
func TestWithoutItsAgentACollectorStartsAndIssuesNothing(t *testing.T) {
	c := &clock{morning}
	a, dir := create(t, c)
	socket, _ := keyring(t, "device-ca-2")
	rotateAtAgent(t, a, Rotation{Dir: dir, Now: c.Now}, socket)
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	again := reload(t, dir, c)
	if _, err := again.IssueDevice(device, publicKey(t), 0); err == nil || !strings.Contains(err.Error(), "SSH agent") {
		t.Errorf("issued, or not said why: %v", err)
	}
	if _, err := again.IssueGate("vpn1", publicKey(t)); err != nil {
		t.Error(err)
	}
	r := Rotation{Dir: dir, Now: c.Now}
	rotate(t, r, "device") // from files
	if err := r.Switch("device", true); err != nil {
		t.Error(err)
	}
	// But back to a key that cannot sign is refused.
	if err := r.SwitchBack("device"); err == nil {
		t.Error("switched to a key that is not there")
	}
}

func TestAgentsKeyHasToFit(t *testing.T) {
	ring := agent.NewKeyring()
	big, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	key, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []agent.AddedKey{
		{PrivateKey: big, Comment: "rsa"}, {PrivateKey: key, Comment: "twice"}, {PrivateKey: other, Comment: "twice"},
	} {
		if err := ring.Add(k); err != nil {
			t.Fatal(err)
		}
	}
	socket := serveAgent(t, ring)
	for name, want := range map[string]string{"rsa": "not ECDSA P-256", "twice": "two keys", "missing": "no key called missing"} {
		if _, _, err := (Agent{Socket: socket}).New(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := (Agent{Socket: socket + "x"}).New("twice"); err == nil {
		t.Error("no agent, no error")
	}
}

// A real token (SoftHSM) behind a real agent (OpenSSH): PKCS#11 without a line
// of C in the collector.
func TestIssuingKeyInAToken(t *testing.T) {
	const module = "/usr/lib/softhsm/libsofthsm2.so"
	for _, program := range []string{"softhsm2-util", "pkcs11-tool", "ssh-agent", "ssh-add"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED: %s is not installed (softhsm2, opensc, openssh-client): no key in a token was tried", program)
		}
	}
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "agent")
	environment := append(os.Environ(),
		"SOFTHSM2_CONF="+write("softhsm2.conf", "directories.tokendir = "+dir+"/tokens\nobjectstore.backend = file\nlog.level = ERROR\n", 0o600),
		"SSH_ASKPASS="+write("pin", "#!/bin/sh\necho 1234\n", 0o700), "SSH_ASKPASS_REQUIRE=force", "SSH_AUTH_SOCK="+socket)
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = environment
		return cmd
	}
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	run("softhsm2-util", "--init-token", "--free", "--label", "pfoertner", "--pin", "1234", "--so-pin", "5678")
	run("pkcs11-tool", "--module", module, "--token-label", "pfoertner", "--login", "--pin", "1234",
		"--keypairgen", "--key-type", "EC:prime256v1", "--label", "device-ca-2", "--id", "02")
	// With -D it stays our child.
	running := command("ssh-agent", "-D", "-a", socket)
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = running.Process.Kill(); _ = running.Wait() })
	for tries := 0; ; tries++ { // ssh-add is the way to ask whether it listens
		out, err := command("ssh-add", "-s", module).CombinedOutput()
		if err == nil {
			break
		}
		if tries > 200 || !strings.Contains(string(out), "connecting to agent") && !strings.Contains(string(out), "connection to your authentication agent") {
			t.Fatalf("ssh-add: %v\n%s", err, out)
		}
	}
	c := &clock{morning}
	a, pki := create(t, c)
	rotateAtAgent(t, a, Rotation{Dir: pki, Now: c.Now}, socket)
}

func FuzzKeyFile(f *testing.F) {
	key, err := attest.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	text, err := keyText(key)
	if err != nil {
		f.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(pem.EncodeToMemory(&pem.Block{Type: agentType, Headers: map[string]string{socketHeader: "/run/agent"}, Bytes: public}))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if key, err := parseKey(text); err == nil && key.Public() == nil {
			t.Error("a key without a public half")
		}
	})
}
