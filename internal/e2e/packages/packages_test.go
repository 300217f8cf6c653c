//go:build linux

package packages

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackages builds everything once more than needed, to compare, and then
// uses what was built.
func TestPackages(t *testing.T) {
	need(t, "debootstrap", "dpkg-deb", "rpm")
	first, work := build(t, "one", "0022", "UTC")
	t.Run("two builds in different places are the same byte for byte", func(t *testing.T) {
		second, _ := build(t, "another/and/deeper", "0077", "Asia/Tokyo")
		compare(t, first, second)
	})
	t.Run("every file is in the checksums", func(t *testing.T) { checksums(t, first) })
	t.Run("every program has a bill of materials", func(t *testing.T) { bills(t, first) })
	t.Run("the MSI has these tables", func(t *testing.T) { tables(t, first) })
	t.Run("the MSI for arm64 differs in its template", func(t *testing.T) { arm64(t, first, work) })
	t.Run("the exe carries its version", func(t *testing.T) { resource(t, first) })
	t.Run("exe and MSI are signed with a configured certificate", func(t *testing.T) { signing(t, first, work) })
	t.Run("deb", func(t *testing.T) { deb(t, first, work) })
	t.Run("rpm", func(t *testing.T) { rpm(t, first, work) })
	t.Run("the Ansible role installs, changes nothing twice, and gives no second token", func(t *testing.T) { ansible(t, first, work) })
}

// build copies the work tree to a place and makes everything for amd64 there.
// It returns what was made, and where.
func build(t *testing.T, place, umask, zone string) (out, work string) {
	t.Helper()
	top := repository(t)
	work = filepath.Join(t.TempDir(), place)
	if err := os.MkdirAll(work, 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, top, []string{"WORK=" + work}, "bash", "-euc",
		`git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do [ ! -e "$f" ] || printf '%s\0' "$f"; done |
		 tar --null -T - -cf - | tar -C "$WORK" -xmf -`)
	out = filepath.Join(work, "dist")
	log := must(t, work, []string{"SOURCE_DATE_EPOCH=" + epoch, "COMMITS=7", "TZ=" + zone, "UMASK=" + umask, "OUT=" + out, "PFOERTNER_SIGN_CERT="},
		"bash", "-euc", `umask $UMASK; .ci/dist "$OUT" v1.2.3-4-gabc1234 amd64`)
	if !strings.Contains(log, "pfoertner-agent-x64.msi: NOT SIGNED") {
		t.Errorf("an unsigned MSI is not called one:\n%s", log)
	}
	return out, work
}

func compare(t *testing.T, first, second string) {
	if out, err := run(t, "/", nil, "diff", "-r", first, second); err != nil {
		t.Errorf("two builds differ: %v\n%s", err, out)
	}
}

func checksums(t *testing.T, dist string) {
	sums := map[string]string{}
	for line := range strings.Lines(content(t, dist, "SHA256SUMS") + "\n") {
		sum, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok {
			t.Fatalf("no checksum: %q", line)
		}
		sums[name] = sum
	}
	err := filepath.WalkDir(dist, func(name string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || entry.Name() == "SHA256SUMS" {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		relative := strings.TrimPrefix(name, dist+"/")
		if sum := sha256.Sum256(b); sums[relative] != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: checksum %q is not its own", relative, sums[relative])
		}
		delete(sums, relative)
		return nil
	})
	if err != nil || len(sums) > 0 {
		t.Errorf("checksums of what is not there: %v, %v", sums, err)
	}
}

func bills(t *testing.T, dist string) {
	for _, program := range []string{"pfoertner-agent-linux-amd64", "pfoertner-agent-windows-amd64", "pfoertner-collector-linux-amd64", "pfoertner-gate-linux-amd64"} {
		var bill struct {
			BOMFormat string `json:"bomFormat"`
			Metadata  struct {
				Component struct {
					Version string `json:"version"`
				} `json:"component"`
			} `json:"metadata"`
			Components []struct {
				PURL string `json:"purl"`
			} `json:"components"`
		}
		if err := json.Unmarshal([]byte(content(t, dist, program+".cdx.json")), &bill); err != nil {
			t.Errorf("%s: %v", program, err)
			continue
		}
		grpc := false
		for _, c := range bill.Components {
			grpc = grpc || strings.HasPrefix(c.PURL, "pkg:golang/google.golang.org/grpc@v1.")
		}
		if bill.BOMFormat != "CycloneDX" || bill.Metadata.Component.Version != "v1.2.3-4-gabc1234" || !grpc {
			t.Errorf("%s: not its bill of materials: %+v", program, bill)
		}
	}
}
