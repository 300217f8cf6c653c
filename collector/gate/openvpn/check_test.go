package openvpn

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const socket = "/run/openvpn-server/management.sock"

// safe is a configuration beside which the gate starts.
const safe = `# gateway
port 1194
dev tun0
server 10.8.0.0 255.255.255.0
management /run/openvpn-server/management.sock unix
management-client-auth
auth-user-pass-optional
disable-dco
<ca>
client-to-client
</ca>
`

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func check(t *testing.T, text string) Review {
	t.Helper()
	r, err := Check(write(t, "server.conf", text), socket)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSafeConfigurationIsTaken(t *testing.T) {
	r := check(t, safe)
	if len(r.Findings) != 0 || r.Device != "tun0" {
		t.Errorf("%+v", r)
	}
}

func TestUnsafeConfigurationIsRefusedWithTheLineToChange(t *testing.T) {
	for _, c := range []struct {
		name, line string
		replaces   string // a line of safe that goes away
		where      string // line number, or none for what is missing
		remedy     string
	}{
		{name: "token without external-auth", line: "auth-gen-token 3600", where: ":12", remedy: "external-auth"},
		{name: "token, written as an option", line: "  --auth-gen-token", where: ":12", remedy: "external-auth"},
		{name: "token, set as optional", line: "setenv opt auth-gen-token 0 60", where: ":12", remedy: "external-auth"},
		{name: "certificate optional", line: "verify-client-cert optional", where: ":12", remedy: "require"},
		{name: "certificate not asked for", line: "verify-client-cert none", where: ":12", remedy: "require"},
		{name: "old form of it", line: "client-cert-not-required", where: ":12", remedy: "Remove"},
		{name: "several sessions of one name", line: "duplicate-cn", where: ":12", remedy: "Remove"},
		{name: "clients reach one another", line: "client-to-client", where: ":12", remedy: "Remove"},
		{name: "quoted", line: `"client-to-client" # fast`, where: ":12", remedy: "Remove"},
		{name: "set as optional, as an option", line: "setenv opt --client-to-client", where: ":12", remedy: "Remove"},
		{name: "networks behind clients", line: "iroute 10.0.0.0 255.0.0.0", where: ":12", remedy: "Remove"},
		{name: "shared port", line: "port-share 127.0.0.1 443", where: ":12", remedy: "Remove"},
		{name: "shared key", line: "secret static.key", where: ":12", remedy: "certificates"},
		{name: "tap", line: "dev tap0", where: ":12", remedy: "dev tun0"},
		{name: "tap by type", line: "dev-type tap", where: ":3", remedy: "dev tun0"},
		{name: "any tun", line: "dev tun", where: ":12", remedy: "dev tun0"},
		{name: "named by nobody", line: "dev vpn0", where: ":12", remedy: "dev-type tun"},
		{name: "bridge", line: "server-bridge", where: ":12", remedy: "server"},
		{name: "nobody is asked", replaces: "management-client-auth", remedy: "Add 'management-client-auth'"},
		{name: "no management socket", replaces: "management /run", remedy: "Add 'management " + socket + " unix'"},
		{name: "management port", line: "management 127.0.0.1 7505", where: ":12", remedy: "Change it to 'management " + socket + " unix'"},
		{name: "another management socket", line: "management /run/other.sock unix", where: ":12", remedy: "Change it"},
		{name: "connects to us", line: "management-client", where: ":12", remedy: "Remove"},
		{name: "no device", replaces: "dev tun0", remedy: "Add 'dev tun0'"},
		{name: "no server", replaces: "server ", remedy: "Add 'server"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var text strings.Builder
			for l := range strings.Lines(safe) {
				if c.replaces == "" || !strings.HasPrefix(l, c.replaces) {
					text.WriteString(l)
				}
			}
			text.WriteString(c.line + "\n")
			found := check(t, text.String()).Unsafe()
			if len(found) != 1 {
				t.Fatalf("findings %v", found)
			}
			f := found[0]
			if !strings.HasSuffix(f.Where, "server.conf"+c.where) || !strings.Contains(f.Remedy, c.remedy) || f.Problem == "" {
				t.Errorf("%s", f)
			}
		})
	}
}

func TestWhatIsGoodToKnowDoesNotStopTheGate(t *testing.T) {
	for line, word := range map[string]string{
		"management-signal":     "restarted",
		"reneg-sec 0":           "not looked at again",
		"client-config-dir ccd": "iroute",
	} {
		r := check(t, safe+line+"\n")
		if len(r.Unsafe()) != 0 || len(r.Findings) != 1 || !strings.Contains(r.Findings[0].String(), word) {
			t.Errorf("%s: %v", line, r.Findings)
		}
	}
	if r := check(t, strings.ReplaceAll(safe, "auth-user-pass-optional\n", "")); len(r.Unsafe()) != 0 || len(r.Findings) != 1 {
		t.Errorf("%v", r.Findings)
	}
}

func TestSafeTokensAndExplicitDefaultsAreTaken(t *testing.T) {
	r := check(t, safe+"auth-gen-token 3600 external-auth\nverify-client-cert require\nreneg-sec 3600\nsetenv opt block-outside-dns\n")
	if len(r.Findings) != 0 {
		t.Errorf("%v", r.Findings)
	}
}

func TestIncludedFilesAreChecked(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"server.conf": safe + "config more/extra.conf\n",
		"loop.conf":   "config loop.conf\n",
		"lost.conf":   safe + "config nowhere.conf\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "more"), 0o700); err != nil {
		t.Fatal(err)
	}
	extra := filepath.Join(dir, "more", "extra.conf")
	if err := os.WriteFile(extra, []byte("\n; a comment\nduplicate-cn\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Check(filepath.Join(dir, "server.conf"), socket)
	if err != nil || len(r.Unsafe()) != 1 || r.Unsafe()[0].Where != extra+":3" {
		t.Errorf("%v, %v", r, err)
	}
	for _, name := range []string{"loop.conf", "lost.conf", "missing.conf"} {
		if r, err := Check(filepath.Join(dir, name), socket); err == nil {
			t.Errorf("%s: %v", name, r)
		}
	}
}

func TestWhatCannotBeReadIsAnError(t *testing.T) {
	for _, text := range []string{"dev \"tun0\n", "dev tun0\\", "<ca>\nx\n", "push 'route\n"} {
		path := write(t, "server.conf", safe+text)
		if r, err := Check(path, socket); err == nil || !strings.Contains(err.Error(), "server.conf:12") {
			t.Errorf("%q: %v, %v", text, r, err)
		}
	}
}

func TestWordsAreSplitAsOpenVPNDoes(t *testing.T) {
	for line, want := range map[string][]string{
		`push "route 10.0.0.0 255.0.0.0"`: {"push", "route 10.0.0.0 255.0.0.0"},
		`a 'b "c" \' d`:                   {"a", `b "c" \`, "d"},
		`a\ b "c\"d" # e`:                 {"a b", `c"d`},
		`a#b ;c`:                          {"a#b"},
		"\tdev\ttun0\r":                   {"dev", "tun0"},
		`empty ""`:                        {"empty", ""},
		"# nothing":                       nil,
		"":                                nil,
	} {
		if got, err := splitWords(line); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v, want %q", line, got, err, want)
		}
	}
}

func FuzzServerConfig(f *testing.F) {
	f.Add(safe)
	f.Add(safe + "setenv opt client-to-client\n")
	f.Add("<ca>\n</ca>\n\"dev\" 'tun0'\\ x\n")
	f.Fuzz(func(t *testing.T, text string) {
		directives, err := parseConfig("f", text)
		if err != nil {
			return
		}
		last := 0
		for _, d := range directives {
			if d.line <= last || d.line > strings.Count(text, "\n")+1 {
				t.Fatalf("%+v after line %d", d, last)
			}
			last = d.line
		}
	})
}
