//go:build linux

package packages

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden file anew")

// dump is an MSI as text: its summary, and every table with its rows sorted.
func dump(t *testing.T, msi string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(must(t, "/", []string{"TZ=UTC"}, "msiinfo", "suminfo", msi))
	names := strings.Fields(must(t, "/", nil, "msiinfo", "tables", msi))
	slices.Sort(names)
	for _, name := range names {
		if name == "_SummaryInformation" {
			continue
		}
		rows := strings.Split(strings.TrimSpace(strings.ReplaceAll(must(t, "/", nil, "msiinfo", "export", msi, name), "\r", "")), "\n")
		if name == "_ForceCodepage" {
			rows = []string{"", "", strings.TrimSpace(strings.Join(rows, " "))}
		}
		if len(rows) <= 3 && name != "_ForceCodepage" {
			continue // an empty table
		}
		b.WriteString("\n== " + name + " (" + strings.ReplaceAll(rows[0], "\t", ", ") + ")\n")
		rows = rows[min(3, len(rows)):]
		slices.Sort(rows)
		b.WriteString(strings.ReplaceAll(strings.Join(rows, "\n"), "\t", " | ") + "\n")
	}
	return b.String()
}

// settled replaces what is another in every build.
func settled(s string) string {
	for _, r := range []struct{ pattern, with string }{
		{`Revision number \(UUID\): \{[0-9A-F-]{36}\}`, "Revision number (UUID): {PACKAGE}"},
		{`ProductCode \| \{[0-9A-F-]{36}\}`, "ProductCode | {PRODUCT}"},
		{`(AgentExe \| Agent \| \S+) \| [0-9]+ \|`, "$1 | SIZE |"},
	} {
		s = regexp.MustCompile(r.pattern).ReplaceAllString(s, r.with)
	}
	return s
}

func tables(t *testing.T, dist string) {
	golden := filepath.Join("testdata", "pfoertner-agent-x64.msi.txt")
	got := settled(dump(t, filepath.Join(dist, "pfoertner-agent-x64.msi")))
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the MSI is another than %s says (go test -update writes it anew):\n%s", golden, got)
	}
}

func arm64(t *testing.T, dist, work string) {
	msi := filepath.Join(t.TempDir(), "arm64.msi")
	exe := filepath.Join(dist, "pfoertner-agent-windows-amd64.exe")
	must(t, work, []string{"SOURCE_DATE_EPOCH=" + epoch}, "installer/windows/build", exe, "arm64", "1.2.3004", "v1.2.3-4-gabc1234", msi)
	x64, arm := dump(t, filepath.Join(dist, "pfoertner-agent-x64.msi")), dump(t, msi)
	if settled(arm) != strings.Replace(settled(x64), "Template: x64;0", "Template: Arm64;0", 1) {
		t.Errorf("more differs than the template:\n%s", arm)
	}
	if arm == x64 || strings.Count(arm, code(t, x64)) > 0 {
		t.Error("both architectures have the same product code")
	}
}

// code is the product code in a dump.
func code(t *testing.T, dump string) string {
	t.Helper()
	found := regexp.MustCompile(`ProductCode \| (\{[0-9A-F-]{36}\})`).FindStringSubmatch(dump)
	if found == nil {
		t.Fatal("no product code")
	}
	return found[1]
}

// resource looks for the version in UTF-16, as a version resource has it.
func resource(t *testing.T, dist string) {
	b := content(t, dist, "pfoertner-agent-windows-amd64.exe")
	for _, text := range []string{"FileVersion", "1.2.3004.0", "v1.2.3-4-gabc1234", "Pförtner"} {
		var wide strings.Builder
		for _, r := range text {
			wide.WriteByte(byte(r))
			wide.WriteByte(byte(r >> 8))
		}
		if !strings.Contains(b, wide.String()) {
			t.Errorf("the exe does not say %q", text)
		}
	}
}

// signing signs with a certificate that it makes, as an administration would
// with its own, and has the signatures verified.
func signing(t *testing.T, dist, work string) {
	need(t, "openssl", "osslsigncode")
	keys := t.TempDir()
	must(t, keys, nil, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "1",
		"-subj", "/CN=Pfoertner test", "-addext", "extendedKeyUsage=codeSigning", "-addext", "keyUsage=digitalSignature")
	for _, name := range []string{"pfoertner-agent-windows-amd64.exe", "pfoertner-agent-x64.msi"} {
		file := filepath.Join(keys, name)
		must(t, "/", nil, "cp", filepath.Join(dist, name), file)
		environment := []string{"PFOERTNER_SIGN_CERT=" + keys + "/cert.pem", "PFOERTNER_SIGN_KEY=" + keys + "/key.pem"}
		if out := must(t, work, environment, "installer/windows/sign", file); !strings.Contains(out, name+": signed") {
			t.Errorf("it does not say that it signed: %s", out)
		}
		verified := must(t, "/", nil, "osslsigncode", "verify", "-CAfile", keys+"/cert.pem", "-in", file)
		if !strings.Contains(verified, "Signature verification: ok") {
			t.Errorf("%s: not signed:\n%s", name, verified)
		}
	}
	if out, err := run(t, work, []string{"PFOERTNER_SIGN_CERT=" + keys + "/absent.pem", "PFOERTNER_SIGN_KEY=" + keys + "/key.pem"},
		"installer/windows/sign", filepath.Join(keys, "pfoertner-agent-x64.msi")); err == nil {
		t.Errorf("a certificate that is not there signed: %s", out)
	}
}
