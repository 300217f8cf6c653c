package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConfigNeedsNoFile(t *testing.T) {
	c, err := loadConfig("")
	if err != nil {
		t.Fatal(err)
	}
	if c.Lease != 15*time.Second || c.Listen.Agents != ":7601" || c.State == "" {
		t.Errorf("defaults are %+v", c)
	}
}

func TestConfigFileOverridesOnlyWhatItNames(t *testing.T) {
	c, err := loadConfig(configFile(t, "lease: 5s\nlisten:\n  gates: \"10.0.0.1:1\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Lease != 5*time.Second || c.Listen.Gates != "10.0.0.1:1" || c.Listen.Agents != ":7601" {
		t.Errorf("got %+v", c)
	}
}

func TestConfigRefusesWhatItDoesNotUnderstand(t *testing.T) {
	for name, c := range map[string]struct{ yaml, says string }{
		"unknown key":                       {"leese: 5s\n", "leese"},
		"wrong type":                        {"lease: soon\n", "soon"},
		"impossible":                        {"lease: 0s\n", "outside"},
		"not YAML":                          {"\t:", "yaml"},
		"no listener":                       {"listen: {agents: \"\"}\n", "listen"},
		"no log format":                     {"log: {format: xml}\n", "xml"},
		"unknown level":                     {"log: {level: loud}\n", "loud"},
		"history a blink":                   {"keep_history: 1s\n", "keep_history"},
		"a software key as good as a TPM's": {"software_lifetime: 720h\n", "software_lifetime"},
		"VPN certificates for ever":         {"vpn_certificates: {lifetime: 87600h}\n", "vpn_certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loadConfig(configFile(t, c.yaml))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that names %q", err, c.says)
			}
		})
	}
}

func FuzzConfig(f *testing.F) {
	f.Add(string(defaultConfig))
	f.Add("listen: [")
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		if err := decodeConfig([]byte(text), &c); err == nil {
			_ = c.check()
		}
	})
}

func configFile(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "collector.yaml")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}
