//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const complete = `collectors: ["collector.example:7602", "[2001:db8::1]:7602"]
openvpn:
  - config: /etc/openvpn/server/server.conf
    management: /run/openvpn-server/management.sock
quarantine:
  destinations: [192.0.2.10, 198.51.100.0/24, "2001:db8::/64"]
  udp: [53]
`

func load(t *testing.T, text string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gate.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return loadConfig(path)
}

func TestDefaultsHoldWhereAFileIsSilent(t *testing.T) {
	c, err := load(t, complete)
	if err != nil {
		t.Fatal(err)
	}
	if c.Degraded != degradedDeny || c.Quarantine.Stay != time.Hour || c.PKI != "/etc/pfoertner-gate" || len(c.Quarantine.Destinations) != 3 {
		t.Errorf("%+v", c)
	}
}

func TestMistakesInTheConfigurationAreNamed(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"quarantine:", "quarantaine:", "quarantaine"},
		{"udp: [53]", "udp: [53]\n  icmp: true", "icmp"},
		{"udp: [53]", "udp: [0]", "port 0"},
		{"udp: [53]", "udp: [70000]", "70000"},
		{"udp: [53]", "stay: 48h", "quarantine.stay"},
		{"udp: [53]", "stay: -1s", "quarantine.stay"},
		{"192.0.2.10", "patch.example", "neither an address nor a network"},
		{"192.0.2.10", "0.0.0.0/0", "everything"},
		{"192.0.2.10", `"::ffff:192.0.2.10"`, "as IPv4"},
		{"collector.example:7602", "collector.example", "collectors[0]"},
		{`["collector.example:7602", "[2001:db8::1]:7602"]`, "[]", "at least one"},
		{"config: /etc/openvpn/server/server.conf", `config: ""`, "openvpn[0].config"},
		{"/run/openvpn-server/management.sock", "management.sock", "openvpn[0].management"},
		{"quarantine:", "  - {config: /etc/other.conf, management: /run/openvpn-server/management.sock}\nquarantine:", "openvpn[1].management"},
		{"quarantine:", "degraded: admit\nquarantine:", "degraded"},
		{"quarantine:", "log: {format: xml}\nquarantine:", "log.format"},
		{"quarantine:", `pki: ""` + "\nquarantine:", "pki"},
		{"quarantine:", `state: ""` + "\nquarantine:", "state"},
	} {
		if !strings.Contains(complete, c.from) {
			t.Fatalf("%q is not in the file", c.from)
		}
		_, err := load(t, strings.Replace(complete, c.from, c.to, 1))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s → %s: %v, want %q", c.from, c.to, err, c.want)
		}
	}
	if _, err := loadConfig(filepath.Join(t.TempDir(), "missing.yaml")); err == nil {
		t.Error("a file that is not there")
	}
}

func TestEveryKeyIsDocumented(t *testing.T) {
	text := string(defaultConfig)
	for _, key := range []string{
		"collectors:", "pki:", "state:", "openvpn:", "config:", "management:", "password_file:", "quarantine:", "destinations:",
		"tcp:", "udp:", "stay:", "degraded:", "health:", "level:", "format:",
	} {
		if !strings.Contains(text, key) {
			t.Errorf("%s is not in gate.yaml", key)
		}
	}
	c, err := load(t, text)
	if err == nil {
		t.Errorf("the defaults alone are enough: %+v", c)
	}
}

func TestPasswordIsTheFirstLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "password")
	for text, want := range map[string]string{"geheim\n": "geheim", "geheim\r\nmore": "geheim", "\nx": "", "": ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := OpenVPN{PasswordFile: path}.password()
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if got, err := (OpenVPN{}).password(); got != "" || err != nil {
		t.Errorf("none: %q, %v", got, err)
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, exitUsage, "usage"},
		{[]string{"fly"}, exitUsage, "usage"},
		{[]string{"run", "now"}, exitUsage, "usage"},
		{[]string{"run", "--certificate", "x"}, exitUsage, "usage"},
		{[]string{"run", "--help"}, exitOK, "usage"},
		{[]string{"version"}, exitOK, version},
		{[]string{"ask", "--config", "/nowhere"}, exitError, "either --certificate or --fingerprint"},
		{[]string{"ask", "--certificate", "a", "--fingerprint", "b"}, exitError, "either --certificate or --fingerprint"},
		{[]string{"ask", "--fingerprint", "aa:bb"}, exitError, "64 hexadecimal digits"},
		{[]string{"check", "--config", "/nowhere"}, exitError, "/nowhere"},
		{[]string{"run", "--config", "/nowhere"}, exitError, "/nowhere"},
	} {
		var out strings.Builder
		if code := command(t.Context(), c.args, &out, &out); code != c.code || !strings.Contains(out.String(), c.want) {
			t.Errorf("%q: %d, %q", c.args, code, out.String())
		}
	}
}
