//go:build linux

// Package vpnkey_test tries VPN keys in TPMs as a whole: released collector, the
// agent over a prepared file tree, a software TPM for every machine with an
// access broker before it, and a real OpenVPN that signs with the TPM.
package vpnkey_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"pfoertner/internal/e2e"
	"pfoertner/internal/e2e/swtpm"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

const (
	// soon is far above what anything takes that happens at once.
	soon = time.Minute
	// patience is the interval of questions.
	patience = 100 * time.Millisecond
)

var (
	programs string
	built    sync.Once
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "pfoertner-vpnkey-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(programs)
		return m.Run()
	}())
}

// office is a collector that issues VPN certificates, and a VPN gateway that
// asks it.
type office struct {
	*e2e.Collector
	maker    *e2e.TPMMaker
	vpn      *e2e.VPN
	server   *e2e.Program
	outside  *e2e.Namespace // where clients are
	decision chan arrival
}

// arrival is a client that OpenVPN has let through its own checks.
type arrival struct {
	name, fingerprint string
	known             bool // to the collector, as this asset
}

func newOffice(t *testing.T) *office {
	t.Helper()
	e2e.Require(t, "openvpn", "openssl", "swtpm", "swtpm_setup", "tpm2-abrmd", "dbus-daemon")
	built.Do(func() {
		e2e.BuildProgram(t, filepath.Join(programs, "pfoertner-collector"), "pfoertner/collector")
		e2e.BuildProgram(t, filepath.Join(programs, "testagent"), "pfoertner/agent/testagent")
	})
	dir := t.TempDir()
	o := &office{maker: e2e.NewTPMMaker(t), decision: make(chan arrival, 16)}
	// The maker's authorities exist from its first TPM on.
	o.maker.NewTPM(t).Off()
	program := filepath.Join(programs, "pfoertner-collector")
	o.Collector = e2e.StartCollector(t, program, dir, e2e.VirtualRoots(o.maker),
		`vpn_certificates: {enabled: true, dns_suffix: "vpn.amt.example", extra_usages: ["1.3.6.1.5.5.8.2.2"]}`)
	// Switched on under the running collector, as an administrator does.
	for _, args := range [][]string{{"ca", "rotate", "vpn"}, {"bundle", "gate", "vpn1", "--out", filepath.Join(dir, "gate")}} {
		out, err := exec.Command(program, append(args, "--config", filepath.Join(dir, "collector.yaml"))...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	if !e2e.EventuallyEvery(t, patience, soon, func() bool { return strings.Contains(o.Output(), "the CAs have changed") }) {
		t.Fatal("the collector does not take its VPN CA")
	}
	o.openGateway(t, filepath.Join(dir, "gate", "vpn-ca.crt"))
	return o
}

// openGateway starts the VPN server, which trusts clients of one file.
func (o *office) openGateway(t *testing.T, clients string) {
	t.Helper()
	inside := e2e.NewNamespace(t, "vk-gate")
	o.outside = e2e.NewNamespace(t, "vk-out")
	e2e.Cable(t, e2e.End{In: inside, Device: "eth0", Addresses: []string{"192.0.2.1/24"}},
		e2e.End{In: o.outside, Device: "eth0", Addresses: []string{"192.0.2.2/24"}})
	o.vpn = e2e.NewVPN(t, netip.MustParseAddr("192.0.2.1"))
	config := o.vpn.WriteServer(t)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), "ca "+filepath.Join(o.vpn.Dir, "ca.crt"), "ca "+clients, 1)
	if err := os.WriteFile(config, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	o.server = o.vpn.StartServer(t, inside)
	conn, err := net.Dial("unix", o.vpn.Management())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go o.decide(t, conn)
}

// decide is the gateway's question at the collector: is the certificate one
// that it knows?
func (o *office) decide(t *testing.T, conn net.Conn) {
	var at arrival
	var client string
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if ids, ok := strings.CutPrefix(line, ">CLIENT:CONNECT,"); ok {
			at, client = arrival{}, strings.ReplaceAll(ids, ",", " ")
		}
		if env, ok := strings.CutPrefix(line, ">CLIENT:ENV,"); ok {
			name, value, _ := strings.Cut(env, "=")
			switch {
			case name == "common_name":
				at.name = value
			case name == "tls_digest_sha256_0":
				at.fingerprint = strings.ReplaceAll(value, ":", "")
			case name == "END" && client != "":
				at.known = o.knows(at.fingerprint)
				verdict := "client-deny " + client + ` "unknown certificate"`
				if at.known {
					verdict = "client-auth-nt " + client
				}
				if _, err := fmt.Fprintln(conn, verdict); err != nil {
					t.Logf("management: %v", err)
				}
				client = ""
				o.decision <- at
			}
		}
	}
}

// knows asks the collector which asset a fingerprint belongs to.
func (o *office) knows(fingerprint string) bool {
	out, err := exec.Command(filepath.Join(programs, "pfoertner-collector"), o.operatorArguments("devices", "NB-0001", "--json")...).Output()
	d := &fleetv1.Device{}
	if err != nil || protojson.Unmarshal(out, d) != nil {
		return false
	}
	for _, sum := range d.GetAsset().GetVpnCertificatesSha256() {
		if hex.EncodeToString(sum) == fingerprint {
			return true
		}
	}
	return false
}

func (o *office) operatorArguments(args ...string) []string {
	return append([]string{"--collector", o.Operators, "--operator", filepath.Dir(o.CAFile)}, args...)
}

// pc is a machine with a TPM.
type pc struct {
	name  string
	tpm   *swtpm.TPM
	state string
}

func (o *office) newPC(t *testing.T, name string) *pc {
	t.Helper()
	p := &pc{name: name, tpm: o.maker.NewTPM(t), state: t.TempDir()}
	if err := os.Chmod(p.state, 0o700); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pc) key() string         { return filepath.Join(p.state, "vpn", "key.pem") }
func (p *pc) certificate() string { return filepath.Join(p.state, "vpn", "certificate.pem") }

// equip enrols a machine as a service notebook and waits for its VPN
// certificate. Then its agent ends: here no kernel lets others use the TPM too.
func (o *office) equip(t *testing.T, p *pc) {
	t.Helper()
	_, endorsement := e2e.Endorsement(t, p.tpm)
	list := filepath.Join(t.TempDir(), "inventory.csv")
	if err := os.WriteFile(list, []byte("asset_number;endorsement_key_sha256\nNB-0001;"+endorsement+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Operator(t, "inventory", "import", list)
	agent := e2e.Start(t, p.name, exec.Command(filepath.Join(programs, "testagent"), "--tree", t.TempDir(), "--state", p.state,
		"--tpm", p.tpm.Socket, "--collector", o.Agents, "--ca", o.CAFile, "--token", o.Operator(t, "token", "NB-0001")))
	if !e2e.EventuallyEvery(t, patience, soon, func() bool { _, err := os.Stat(p.certificate()); return err == nil }) {
		t.Fatalf("%s has no VPN certificate:\n%s\n%s", p.name, agent.Output(), o.Output())
	}
	agent.Kill()
}

// deviceFiles are the device's own key and certificate, as OpenSSL takes them.
func (p *pc) deviceFiles(t *testing.T) (key, certificate string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(p.state, "identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	var identity struct {
		Key   []byte   `json:"key"`
		Chain [][]byte `json:"chain"`
	}
	if err := json.Unmarshal(text, &identity); err != nil || len(identity.Chain) == 0 {
		t.Fatalf("%v: %s", err, text)
	}
	dir := t.TempDir()
	key, certificate = filepath.Join(dir, "key.pem"), filepath.Join(dir, "certificate.pem")
	var chain []byte
	for _, der := range identity.Chain {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if err := errors.Join(
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: identity.Key}), 0o600),
		os.WriteFile(certificate, chain, 0o600)); err != nil {
		t.Fatal(err)
	}
	return key, certificate
}

// connect starts an OpenVPN client with a key and a certificate, on a machine
// whose TPM OpenSSL uses; nil: it uses none.
func (o *office) connect(t *testing.T, p *pc, key, certificate string) *e2e.Program {
	t.Helper()
	config := filepath.Join(t.TempDir(), "client.conf")
	text := strings.Join([]string{
		"client", "dev tun0", "proto udp4", fmt.Sprintf("remote %s %d", o.vpn.Address, o.vpn.Port), "nobind",
		"ca " + filepath.Join(o.vpn.Dir, "ca.crt"), "cert " + certificate, "key " + key,
		"remote-cert-tls server", "connect-retry 1 1", "verb 3",
	}, "\n")
	if err := os.WriteFile(config, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command := o.outside.Command(context.Background(), "openvpn", "--config", config)
	name := "openvpn without a TPM"
	if p != nil {
		name, command.Env = "openvpn of "+p.name, append(os.Environ(), p.openSSL(t)...)
	}
	return e2e.Start(t, name, command)
}

// openSSL is the environment in which OpenSSL signs with the machine's TPM. The
// kernel's resource manager (/dev/tpmrm0) is played by an access broker.
func (p *pc) openSSL(t *testing.T) []string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vk") // the path of a socket has to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	settings := filepath.Join(dir, "openssl.cnf")
	if err := os.WriteFile(settings, []byte(openSSLSettings), 0o600); err != nil {
		t.Fatal(err)
	}
	bus := "DBUS_SESSION_BUS_ADDRESS=unix:path=" + dir + "/bus"
	e2e.Start(t, "bus", exec.Command("dbus-daemon", "--session", "--nofork", "--nopidfile", "--address=unix:path="+dir+"/bus"))
	if !e2e.EventuallyEvery(t, 10*time.Millisecond, soon, func() bool { _, err := os.Stat(dir + "/bus"); return err == nil }) {
		t.Fatal("no bus")
	}
	broker := exec.Command("tpm2-abrmd", "--session", "--allow-root", "--flush-all", "--tcti=swtpm:path="+p.tpm.Socket)
	broker.Env = append(os.Environ(), bus)
	running := e2e.Start(t, "access broker", broker)
	environment := []string{bus, "OPENSSL_CONF=" + settings, "TPM2OPENSSL_TCTI=tabrmd:bus_type=session"}
	if !e2e.EventuallyEvery(t, patience, soon, func() bool {
		ask := exec.Command("openssl", "list", "-providers")
		ask.Env = append(os.Environ(), environment...)
		out, _ := ask.CombinedOutput()
		return strings.Contains(string(out), "TPM 2.0")
	}) {
		t.Fatalf("OpenSSL does not find the TPM: %s", running.Output())
	}
	return environment
}

// openSSLSettings are those of docs/vpn-clients.md.
const openSSLSettings = `openssl_conf = pfoertner

[pfoertner]
providers = providers
alg_section = algorithms

[providers]
default = activated
tpm2 = activated

[activated]
activate = 1

[algorithms]
default_properties = ?provider=tpm2,tpm2.digest!=yes,tpm2.cipher!=yes
`
