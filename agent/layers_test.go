package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pfoertner/agent/probe"
)

// registry is a prepared HKEY_LOCAL_MACHINE.
type registry map[string]probe.RegistryValue

func (r registry) Value(key, name string) (probe.RegistryValue, error) {
	v, ok := r[key+`\`+name]
	if !ok {
		return probe.RegistryValue{}, probe.ErrNotFound
	}
	return v, nil
}

func (r registry) Exists(string) (bool, error) { return false, errors.New("not asked for") }

func text(s string) probe.RegistryValue { return probe.RegistryValue{Type: "SZ", Text: s} }

func TestLayersOfConfiguration(t *testing.T) {
	r := registry{
		policyKey + `\Collector`:     text("policy:1"),
		policyKey + `\LogLevel`:      {Type: "DWORD", Number: 1}, // no text: sets nothing
		presetKey + `\Collector`:     text("preset:1"),
		presetKey + `\ServerName`:    text("preset"),
		presetKey + `\CAFingerprint`: text(" 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n"),
		presetKey + `\TokenFile`:     text(`D:\token`),
		presetKey + `\Unit`:          text("III B 2"),
		presetKey + `\DeviceKey`:     text("software"),
	}
	file := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(file, []byte("collector: file:1\nserver_name: file\nstate_dir: /file"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &settings{
		file: file, flags: config{StateDir: "/flag"},
		layers: layers{policy: registryLayer(r, policyKey), preset: registryLayer(r, presetKey)},
	}
	c, err := s.load()
	if err != nil {
		t.Fatal(err)
	}
	want := config{
		Collector: "policy:1", ServerName: "file", StateDir: "/flag", TokenFile: `D:\token`, Unit: "III B 2", DeviceKey: "software",
		CAFingerprint: "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
		StatusFile:    defaults().status, LogLevel: "info",
	}
	if c != want {
		t.Errorf("%+v, want %+v", c, want)
	}
}

// netbird#2171: what the installation was told is enough; no file is needed.
func TestNetbird2171InstallationAloneConfigures(t *testing.T) {
	s := &settings{layers: layers{preset: registryLayer(registry{presetKey + `\Collector`: text("preset:1")}, presetKey)}}
	if c := s.over(config{}).fill(); c.Collector != "preset:1" || c.check() != nil {
		t.Errorf("%+v", c)
	}
}

func TestWrongSettingOfALayerIsRefused(t *testing.T) {
	s := &settings{
		file:   filepath.Join(t.TempDir(), "agent.yaml"),
		layers: layers{policy: registryLayer(registry{policyKey + `\CAFingerprint`: text("00")}, policyKey)},
	}
	if err := os.WriteFile(s.file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := s.load(); err == nil {
		t.Errorf("taken as %+v", c)
	}
}

func TestEnvironmentNamesEverySetting(t *testing.T) {
	environ := map[string]string{}
	for _, name := range []string{
		"COLLECTOR", "SERVER_NAME", "CA_FILE", "CA_FINGERPRINT", "TOKEN_FILE", "UNIT", "DEVICE_KEY", "STATE_DIR", "STATUS_FILE", "LOG_LEVEL",
	} {
		environ["PFOERTNER_"+name] = name
	}
	asked := map[string]string{}
	c := environment(func(name string) string {
		asked[name] = environ[name]
		return environ[name]
	}).config()
	for i, v := range c.values() {
		if *v == "" {
			t.Errorf("setting %d has no variable", i)
		}
	}
	if got, want := slices.Sorted(maps.Keys(asked)), slices.Sorted(maps.Keys(environ)); !slices.Equal(got, want) {
		t.Errorf("asked for %q", got)
	}
}
