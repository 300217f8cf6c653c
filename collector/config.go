package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/time/rate"

	"pfoertner/collector/authority"
)

// defaultConfig documents every key and holds its default.
//
//go:embed collector.yaml
var defaultConfig []byte

// Config is collector.yaml.
type Config struct {
	State  string `yaml:"state"`
	Listen struct {
		Agents    string `yaml:"agents"`
		Gates     string `yaml:"gates"`
		Operators string `yaml:"operators"`
		Health    string `yaml:"health"`
	} `yaml:"listen"`
	Lease               time.Duration `yaml:"lease"`
	ReportsPerSecond    float64       `yaml:"reports_per_second"`
	EnrolmentsPerMinute int           `yaml:"enrolments_per_minute"`
	KeepHistory         time.Duration `yaml:"keep_history"`
	SoftwareLifetime    time.Duration `yaml:"software_lifetime"`
	TPM                 struct {
		VirtualRoots []string `yaml:"virtual_roots"`
	} `yaml:"tpm"`
	VPNCertificates struct {
		Enabled     bool          `yaml:"enabled"`
		Lifetime    time.Duration `yaml:"lifetime"`
		DNSSuffix   string        `yaml:"dns_suffix"`
		ExtraUsages []string      `yaml:"extra_usages"`
	} `yaml:"vpn_certificates"`
	Log struct {
		Level  slog.Level `yaml:"level"`
		Format string     `yaml:"format"`
	} `yaml:"log"`
}

// loadConfig reads the defaults and, over them, the file at path; an empty
// path is the defaults alone. Unknown keys and impossible values are errors.
func loadConfig(path string) (Config, error) {
	var c Config
	if err := decodeConfig(defaultConfig, &c); err != nil {
		return Config{}, fmt.Errorf("built-in configuration: %w", err)
	}
	if path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return Config{}, fmt.Errorf("reading configuration: %w", err)
		}
		if err := decodeConfig(b, &c); err != nil {
			return Config{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	if c.State == "" {
		state, err := defaultState()
		if err != nil {
			return Config{}, err
		}
		c.State = state
	}
	return c, c.check()
}

func decodeConfig(b []byte, into *Config) error {
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (c Config) check() error {
	switch {
	case c.Lease < time.Second || c.Lease > 5*time.Minute:
		return fmt.Errorf("lease: %s is outside 1s to 5m", c.Lease)
	case c.ReportsPerSecond < 0:
		return errors.New("reports_per_second: must not be negative")
	case c.EnrolmentsPerMinute <= 0:
		return errors.New("enrolments_per_minute: must be at least 1")
	case c.KeepHistory < 24*time.Hour:
		return fmt.Errorf("keep_history: %s is less than a day", c.KeepHistory)
	case c.SoftwareLifetime < time.Hour || c.SoftwareLifetime > authority.DeviceLifetime:
		return fmt.Errorf("software_lifetime: %s is outside 1h to %s", c.SoftwareLifetime, authority.DeviceLifetime)
	case c.VPNCertificates.Lifetime < 24*time.Hour || c.VPNCertificates.Lifetime > 366*24*time.Hour:
		return fmt.Errorf("vpn_certificates.lifetime: %s is outside a day to a year", c.VPNCertificates.Lifetime)
	case c.Log.Format != "text" && c.Log.Format != "json":
		return fmt.Errorf("log.format: %q is neither text nor json", c.Log.Format)
	case c.Listen.Agents == "" || c.Listen.Gates == "" || c.Listen.Operators == "":
		return errors.New("listen: agents, gates and operators need an address each")
	}
	return nil
}

func defaultState() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/pfoertner-collector", nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no state directory is configured: %w", err)
	}
	return filepath.Join(home, ".local", "state", "pfoertner-collector"), nil
}

// logger writes to w as configured.
func (c Config) logger(w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: c.Log.Level}
	if c.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// messageRate is reports_per_second for the agents' streams.
func (c Config) messageRate() rate.Limit {
	if c.ReportsPerSecond == 0 {
		return rate.Inf
	}
	return rate.Limit(c.ReportsPerSecond)
}
