package capture

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"pfoertner/agent/probe"
)

var update = flag.Bool("update", false, "write the golden evidence anew")

// captureNames are all captures in testdata.
func captureNames(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		if name := filepath.Base(f); !strings.HasSuffix(name, ".evidence.json") {
			names = append(names, name)
		}
	}
	return names
}

// TestEvidenceOfCaptures runs the probes over every capture.
func TestEvidenceOfCaptures(t *testing.T) {
	dir := os.DirFS("testdata")
	evidence := map[string]bool{}
	for _, name := range captureNames(t) {
		golden := strings.TrimSuffix(name, ".json") + ".evidence.json"
		evidence[golden] = true
		t.Run(strings.TrimSuffix(name, ".json"), func(t *testing.T) {
			c, err := Read(dir, name)
			if err != nil {
				t.Fatal(err)
			}
			if c.About == "" {
				t.Error(`"about" does not say what the case shows`)
			}
			got := evidenceOf(t, c)
			file := filepath.Join("testdata", golden)
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s differs; go test ./agent/capture -update shows how:\n%s", golden, firstDifference(string(got), string(want)))
			}
		})
	}
	all, err := filepath.Glob("testdata/*.evidence.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if !evidence[filepath.Base(f)] {
			t.Errorf("%s belongs to no capture", f)
		}
	}
}

// evidenceOf is the evidence in a form that is the same each time: protojson
// varies its white space on purpose.
func evidenceOf(t *testing.T, c *Capture) []byte {
	t.Helper()
	ev := c.Evidence(t.Context(), probe.Probes(probe.Options{AgentVersion: "capture"}))
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(ev)
	if err != nil {
		t.Fatal(err)
	}
	var stable bytes.Buffer
	if err := json.Indent(&stable, b, "", "  "); err != nil {
		t.Fatal(err)
	}
	stable.WriteByte('\n')
	return stable.Bytes()
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return "got  " + g[i] + "\nwant " + w[i]
		}
	}
	return "one is longer than the other"
}
