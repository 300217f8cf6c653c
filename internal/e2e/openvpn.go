//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// VPN is an OpenVPN network of the test: its authority, its server's place.
type VPN struct {
	Authority *Authority
	Server    *Identity
	Dir       string
	Port      int
	// Address is where clients find the server.
	Address netip.Addr
}

// NewVPN makes the keys of a VPN whose server listens at address, port 1194.
func NewVPN(t testing.TB, address netip.Addr) *VPN {
	t.Helper()
	v := &VPN{Authority: NewAuthority(t, "VPN test CA"), Dir: t.TempDir(), Port: 1194, Address: address}
	v.Server = v.Authority.Issue(t, Subject{CommonName: "vpn-gateway", Server: true})
	v.Authority.Write(t, v.Dir, "ca")
	v.Server.Write(t, v.Dir, "server")
	return v
}

// Management is the path of the server's management socket.
func (v *VPN) Management() string { return filepath.Join(v.Dir, "management.sock") }

// ServerConfig is the path of the server's configuration.
func (v *VPN) ServerConfig() string { return filepath.Join(v.Dir, "server.conf") }

// WriteServer writes a server configuration that a gate accepts: device tun0,
// 10.8.0.0/24 and fd00:8::/64, routes to 10.9.0.0/16 and fd00:9::/32 pushed.
// Lines named in extra are appended.
func (v *VPN) WriteServer(t testing.TB, extra ...string) string {
	t.Helper()
	proto := "udp4"
	if v.Address.Is6() {
		proto = "udp6"
	}
	lines := []string{
		"dev tun0",
		"topology subnet",
		"proto " + proto,
		fmt.Sprintf("port %d", v.Port),
		"server 10.8.0.0 255.255.255.0",
		"server-ipv6 fd00:8::/64",
		`push "route 10.9.0.0 255.255.0.0"`,
		`push "route-ipv6 fd00:9::/32"`,
		"ca " + filepath.Join(v.Dir, "ca.crt"),
		"cert " + filepath.Join(v.Dir, "server.crt"),
		"key " + filepath.Join(v.Dir, "server.key"),
		"dh none",
		"verify-client-cert require",
		"auth-user-pass-optional",
		"management " + v.Management() + " unix",
		"management-client-auth",
		"keepalive 10 60",
		"status-version 3",
		"verb 3",
	}
	lines = append(lines, extra...)
	writeFile(t, v.ServerConfig(), strings.Join(lines, "\n")+"\n")
	return v.ServerConfig()
}

// StartServer starts the server and waits until it is ready.
func (v *VPN) StartServer(t testing.TB, in *Namespace) *Program {
	t.Helper()
	p := Start(t, "openvpn server", in.Command(context.Background(), "openvpn", "--config", v.ServerConfig()))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	p.Await(t, ctx, "Initialization Sequence Completed")
	return p
}

// StartClient starts a client with an identity of its own and does not wait
// for it. Lines named in extra are appended to its configuration.
func (v *VPN) StartClient(t testing.TB, in *Namespace, id *Identity, extra ...string) *Program {
	t.Helper()
	dir := t.TempDir()
	cert, key := id.Write(t, dir, "client")
	proto := "udp4"
	if v.Address.Is6() {
		proto = "udp6"
	}
	lines := []string{
		"client",
		"dev tun0",
		"proto " + proto,
		fmt.Sprintf("remote %s %d", v.Address, v.Port),
		"nobind",
		"ca " + filepath.Join(v.Dir, "ca.crt"),
		"cert " + cert,
		"key " + key,
		"remote-cert-tls server",
		"connect-retry 1 1",
		"verb 3",
	}
	config := filepath.Join(dir, "client.conf")
	writeFile(t, config, strings.Join(append(lines, extra...), "\n")+"\n")
	return Start(t, "openvpn client "+id.Certificate.Subject.CommonName,
		in.Command(context.Background(), "openvpn", "--config", config))
}

// Hostile makes the clients in a namespace hostile to port: what they send on
// the control channel (P_CONTROL_V1, opcode 4) is dropped, data flows. Such a
// client never says goodbye.
func Hostile(t testing.TB, in *Namespace, port int) {
	t.Helper()
	in.Run(t, "nft", fmt.Sprintf(`add table inet hostile
add chain inet hostile out { type filter hook output priority 0; policy accept; }
add rule inet hostile out udp dport %d @th,64,8 & 0xf8 == 0x20 drop`, port))
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
