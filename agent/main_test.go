package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/agent/testcollector"
	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

var update = flag.Bool("update", false, "write the golden files")

// place is a notebook's file system for the commands under test.
type place struct {
	t   *testing.T
	dir string
}

func newPlace(t *testing.T, yaml string) place {
	t.Helper()
	p := place{t, t.TempDir()}
	p.write("agent.yaml", yaml+"\ndevice_key: software\nstate_dir: "+p.path("state")+"\nstatus_file: "+p.path("status.json")+"\ntoken_file: "+p.path("token")+"\n")
	return p
}

func (p place) path(name string) string { return filepath.Join(p.dir, name) }

func (p place) write(name, content string) {
	p.t.Helper()
	if err := os.WriteFile(p.path(name), []byte(content), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p place) run(command string, flags ...string) (string, error) {
	p.t.Helper()
	var out, errOut bytes.Buffer
	err := run(append([]string{command, "--config", p.path("agent.yaml")}, flags...), &out, &errOut)
	return out.String(), err
}

// issuing is a collector that takes the token "t-1".
func issuing(t *testing.T) *testcollector.Collector {
	c := testcollector.New(t)
	c.OnEnrol = c.Granting("t-1", "0f9a2c1e-7c55-4e1c-9a54-3f2f0a0c7d21")
	c.Listen()
	return c
}

func TestEnrolOnceThenOnlyOnRequest(t *testing.T) {
	c := issuing(t)
	p := newPlace(t, "collector: "+c.Target().Address+"\nca_file: "+c.Servers.File(t))
	if _, err := p.run("enrol"); err == nil || !strings.Contains(err.Error(), "no token") {
		t.Errorf("without a token: %v", err)
	}
	p.write("token", "wrong\n")
	if _, err := p.run("enrol"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("with a wrong token: %v", err)
	}
	p.write("token", " t-1 \n")
	out, err := p.run("enrol")
	if err != nil || !strings.Contains(out, "NB-0001") {
		t.Fatalf("enrolling: %q, %v", out, err)
	}
	if _, err := p.run("enrol"); err == nil || !strings.Contains(err.Error(), "--again") {
		t.Errorf("a second time: %v", err)
	}
	first, err := p.run("id", "--json")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.run("enrol", "--again"); err != nil {
		t.Errorf("on request: %v", err)
	}
	second, err := p.run("id", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var a, b idCard
	if err := errors.Join(json.Unmarshal([]byte(first), &a), json.Unmarshal([]byte(second), &b)); err != nil {
		t.Fatal(err)
	}
	if a.Fingerprint == "" || a.Fingerprint == b.Fingerprint || a.Asset != "NB-0001" || a.Problem != "" {
		t.Errorf("before %+v, after %+v", a, b)
	}
}

func TestIDMakesNothing(t *testing.T) {
	p := newPlace(t, "")
	out, err := p.run("id", "--lang", "en")
	if err != nil || !strings.Contains(out, "not enrolled") {
		t.Errorf("printed %q, %v", out, err)
	}
	if _, err := os.Stat(p.path("state")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("id has made a state directory (%v)", err)
	}
}

func TestRunNamesWhatIsMissing(t *testing.T) {
	p := newPlace(t, "")
	if _, err := p.run("run"); err == nil || !strings.Contains(err.Error(), "collector") {
		t.Errorf("without a collector: %v", err)
	}
}

func TestRunWithABrokenIdentityEndsWithAClearError(t *testing.T) {
	p := newPlace(t, "collector: 127.0.0.1:1")
	if err := os.Mkdir(p.path("state"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.write("state/identity.json", `{"format":1,`)
	if _, err := p.run("run"); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("%v", err)
	}
}

func TestStatusInBothLanguagesAndBeforeTheService(t *testing.T) {
	p := newPlace(t, "")
	if _, err := p.run("status", "--lang", "de"); err == nil || !strings.Contains(err.Error(), "Starten Sie") {
		t.Errorf("before the service: %v", err)
	}
	p.write("status.json", `{"connection":"online","judgement":{"verdict":"deny","code":"7K4-QX2"}}`)
	for lang, want := range map[string]string{"de": "Vorgangsnummer 7K4-QX2", "en": "code 7K4-QX2"} {
		out, err := p.run("status", "--lang", lang)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v", lang, out, err)
		}
	}
	t.Setenv("LC_ALL", "en_GB.UTF-8")
	if out, err := p.run("status"); err != nil || !strings.Contains(out, "No access") {
		t.Errorf("by locale: %q, %v", out, err)
	}
	if out, err := p.run("status", "--json"); err != nil || !json.Valid([]byte(out)) {
		t.Errorf("--json: %q, %v", out, err)
	}
	// A mistake of the administration is nothing to show to its users.
	var out, errOut bytes.Buffer
	p.write("agent.yaml", "colour: red")
	err := run([]string{"status", "--config", p.path("agent.yaml"), "--status-file", p.path("status.json")}, &out, &errOut)
	if err != nil || !strings.Contains(out.String(), "No access") {
		t.Errorf("with a broken configuration: %q, %v", out.String(), err)
	}
}

func TestEvidenceNeedsNoCollector(t *testing.T) {
	p := newPlace(t, "")
	out, err := p.run("evidence", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var ev posturev1.Evidence
	if err := protojson.Unmarshal([]byte(out), &ev); err != nil {
		t.Fatal(err)
	}
	if err := posture.CheckLimits(&ev); err != nil {
		t.Errorf("a real machine's evidence is beyond the limits: %v", err)
	}
	text, err := p.run("evidence", "--lang", "en")
	if err != nil || !strings.Contains(text, "This is all that is sent.") {
		t.Errorf("printed %q, %v", text, err)
	}
}

func TestEvidenceReadsAsItIsSent(t *testing.T) {
	at := timestamppb.New(time.Date(2026, 11, 21, 13, 5, 0, 0, time.UTC))
	read := &posturev1.Reading{
		State: posturev1.ReadingState_READING_STATE_OBSERVED, Source: "/proc/1/mountinfo",
		ObservedAt: at, Duration: durationpb.New(12 * time.Millisecond),
	}
	failed := &posturev1.Reading{
		State: posturev1.ReadingState_READING_STATE_FAILED, Reason: "reading the LUKS header needs root", Source: "/proc/1/mountinfo",
	}
	ev := &posturev1.Evidence{
		Platform: &posturev1.Platform{
			Reading: read, OperatingSystem: posturev1.OperatingSystem_OPERATING_SYSTEM_LINUX,
			Distribution: "debian", BootedAt: at,
		},
		Volumes: &posturev1.Volumes{Reading: read, Volumes: []*posturev1.Volume{{
			Reading: failed, MountClass: posturev1.MountClass_MOUNT_CLASS_ROOT, Filesystem: "ext4",
			Paths: []*posturev1.StoragePath{{Layers: []*posturev1.StorageLayer{
				{Type: posturev1.LayerType_LAYER_TYPE_LUKS2, Kdfs: []string{"argon2id", "pbkdf2"}, KeyBits: 512},
				{Type: posturev1.LayerType_LAYER_TYPE_DISK},
			}}},
		}}},
		Tpm:        &posturev1.Tpm{Reading: failed},
		SecureBoot: &posturev1.SecureBoot{Reading: &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_NOT_APPLICABLE, Reason: "started by a legacy BIOS"}},
	}
	for _, lang := range []string{"de", "en"} {
		golden(t, "evidence."+lang, showEvidence(ev, headingsFor(lang)))
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s", name, got)
	}
}

func TestWrongCommandLinesAreExplained(t *testing.T) {
	for _, args := range [][]string{nil, {"dance"}, {"status", "now"}, {"status", "--shiny"}} {
		var out, errOut bytes.Buffer
		if err := run(args, &out, &errOut); !errors.Is(err, errUsage) || errOut.Len() == 0 {
			t.Errorf("%q: %v, explained by %q", args, err, errOut.String())
		}
	}
}

func TestEveryCommandSaysWhatItIsFor(t *testing.T) {
	var out bytes.Buffer
	if err := run([]string{"--help"}, &out, io.Discard); err != nil || out.String() != usage {
		t.Errorf("%q, %v", out.String(), err)
	}
	for line := range strings.Lines(usage) {
		command, of, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || !strings.HasPrefix(line, "  ") {
			continue
		}
		var explained bytes.Buffer
		if err := run([]string{command, "-h"}, io.Discard, &explained); err != nil || !strings.Contains(explained.String(), strings.TrimSpace(of)) {
			t.Errorf("%s: %q, %v", command, explained.String(), err)
		}
	}
}

func TestTemplateHasEveryKeyAndIsValid(t *testing.T) {
	if _, err := parseConfig(template); err != nil {
		t.Fatal(err)
	}
	var keys map[string]any
	if err := yaml.Unmarshal(template, &keys); err != nil {
		t.Fatal(err)
	}
	fields := reflect.TypeFor[config]()
	for i := range fields.NumField() {
		key := fields.Field(i).Tag.Get("yaml")
		if _, ok := keys[key]; !ok {
			t.Errorf("agent.yaml does not explain %s", key)
		}
		delete(keys, key)
	}
	if len(keys) > 0 {
		t.Errorf("agent.yaml has keys that nobody reads: %v", keys)
	}
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	for _, yaml := range []string{
		"colour: red",
		"collector: [a, b]",
		"collector: nowhere",
		"collector: a:1\ncollector: b:2",
		"collector: host:99999",
		"ca_fingerprint: 0011",
		"log_level: loud",
		"device_key: file",
		"device_key: TPM",
		"collector: a:1\n---\ncollector: b:2",
		"- a list",
		"\tcollector: a:1",
	} {
		name := filepath.Join(t.TempDir(), "agent.yaml")
		if err := os.WriteFile(name, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := (&settings{file: name}).load(); err == nil {
			t.Errorf("%q is taken as %+v", yaml, c)
		}
	}
	if _, err := (&settings{file: "/nowhere/agent.yaml"}).load(); err == nil {
		t.Error("a file that was named and is not there is not missed")
	}
}

func TestFlagsOverruleTheFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(name, []byte("collector: file:1\nserver_name: file"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := (&settings{file: name, flags: config{Collector: "flag:2"}}).load()
	if err != nil || c.Collector != "flag:2" || c.ServerName != "file" || c.StateDir != defaults().state || c.LogLevel != "info" || c.DeviceKey != "tpm" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestInstallPlacesTheTemplateOnce(t *testing.T) {
	name := filepath.Join(t.TempDir(), "etc", "agent.yaml")
	if fresh, err := placeTemplate(name); err != nil || !fresh {
		t.Fatalf("%v, %v", fresh, err)
	}
	if err := os.WriteFile(name, []byte("collector: mine:1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if fresh, err := placeTemplate(name); err != nil || fresh {
		t.Fatalf("%v, %v", fresh, err)
	}
	if b, err := os.ReadFile(name); err != nil || string(b) != "collector: mine:1" {
		t.Errorf("the administrator's file is now %q, %v", b, err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add(template)
	f.Add([]byte("collector: a:1\nca_fingerprint: \"00\""))
	f.Add([]byte("&a [*a]"))
	f.Fuzz(func(t *testing.T, content []byte) {
		c, err := parseConfig(content)
		if err == nil {
			_ = c.check() // must not panic
		}
	})
}
