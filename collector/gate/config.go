//go:build linux

package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// defaultConfig documents every key and holds its default.
//
//go:embed gate.yaml
var defaultConfig []byte

// What new sessions get while no collector answers.
const (
	degradedDeny            = "deny"
	degradedQuarantineKnown = "quarantine_known"
)

// longestStay bounds quarantine without a collector.
const longestStay = 24 * time.Hour

// Config is gate.yaml.
type Config struct {
	Collectors []string  `yaml:"collectors"`
	PKI        string    `yaml:"pki"`
	State      string    `yaml:"state"`
	OpenVPN    []OpenVPN `yaml:"openvpn"`
	Quarantine struct {
		Destinations []prefix      `yaml:"destinations"`
		TCP          []uint16      `yaml:"tcp"`
		UDP          []uint16      `yaml:"udp"`
		Stay         time.Duration `yaml:"stay"`
	} `yaml:"quarantine"`
	Degraded string `yaml:"degraded"`
	Health   string `yaml:"health"`
	Log      struct {
		Level  slog.Level `yaml:"level"`
		Format string     `yaml:"format"`
	} `yaml:"log"`
}

// OpenVPN is one server.
type OpenVPN struct {
	Config       string `yaml:"config"`
	Management   string `yaml:"management"`
	PasswordFile string `yaml:"password_file"`
}

// prefix is a network, or one address.
type prefix netip.Prefix

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *prefix) UnmarshalText(text []byte) error {
	if a, err := netip.ParseAddr(string(text)); err == nil {
		*p = prefix(netip.PrefixFrom(a, a.BitLen()))
		return nil
	}
	n, err := netip.ParsePrefix(string(text))
	if err != nil {
		return fmt.Errorf("%q is neither an address nor a network", text)
	}
	*p = prefix(n.Masked())
	return nil
}

// loadConfig reads the defaults and, over them, the file at path. Unknown keys
// and impossible values are errors.
func loadConfig(path string) (Config, error) {
	var c Config
	if err := decodeConfig(defaultConfig, &c); err != nil {
		return Config{}, fmt.Errorf("built-in configuration: %w", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("reading configuration: %w", err)
	}
	if err := decodeConfig(b, &c); err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	if err := c.check(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
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
	if len(c.Collectors) == 0 {
		return errors.New("collectors: at least one is needed")
	}
	for i, address := range c.Collectors {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("collectors[%d]: %w", i, err)
		}
	}
	if err := c.checkServers(); err != nil {
		return err
	}
	for i, p := range c.Quarantine.Destinations {
		n := netip.Prefix(p)
		if n.Bits() == 0 {
			return fmt.Errorf("quarantine.destinations[%d]: %s is everything", i, n)
		}
		if n.Addr().Is4In6() {
			return fmt.Errorf("quarantine.destinations[%d]: write %s as IPv4", i, n)
		}
	}
	switch {
	case c.PKI == "":
		return errors.New("pki: a directory is needed")
	case c.State == "":
		return errors.New("state: a directory is needed")
	case c.Quarantine.Stay < 0 || c.Quarantine.Stay > longestStay:
		return fmt.Errorf("quarantine.stay: %s is outside 0s to %s", c.Quarantine.Stay, longestStay)
	case slices.Contains(c.Quarantine.TCP, 0) || slices.Contains(c.Quarantine.UDP, 0):
		return errors.New("quarantine: port 0 is none")
	case c.Degraded != degradedDeny && c.Degraded != degradedQuarantineKnown:
		return fmt.Errorf("degraded: %q is neither %s nor %s", c.Degraded, degradedDeny, degradedQuarantineKnown)
	case c.Log.Format != "text" && c.Log.Format != "json":
		return fmt.Errorf("log.format: %q is neither text nor json", c.Log.Format)
	}
	return nil
}

// guards says whether there is anything to guard: to ask, nothing is needed.
func (c Config) guards() error {
	if len(c.OpenVPN) == 0 {
		return errors.New("openvpn: at least one server is needed")
	}
	return nil
}

func (c Config) checkServers() error {
	sockets := map[string]bool{}
	for i, s := range c.OpenVPN {
		switch {
		case s.Config == "":
			return fmt.Errorf("openvpn[%d].config: a file is needed", i)
		case !filepath.IsAbs(s.Management):
			return fmt.Errorf("openvpn[%d].management: an absolute path is needed", i)
		case sockets[s.Management]:
			return fmt.Errorf("openvpn[%d].management: another server has this socket", i)
		}
		sockets[s.Management] = true
	}
	return nil
}

// password reads the management socket's password; empty when there is none.
func (s OpenVPN) password() (string, error) {
	if s.PasswordFile == "" {
		return "", nil
	}
	b, err := os.ReadFile(s.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("reading management password: %w", err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	if first = strings.TrimRight(first, "\r"); first == "" {
		return "", fmt.Errorf("%s: no password in the first line", s.PasswordFile)
	}
	return first, nil
}

// logger writes to w as configured.
func (c Config) logger(w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: c.Log.Level}
	if c.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
