package main

import (
	"bytes"
	"cmp"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"go.yaml.in/yaml/v3"

	"pfoertner/agent/identity"
	"pfoertner/agent/service"
	"pfoertner/agent/session"
	"pfoertner/agent/uplink"
	"pfoertner/internal/attest/chip"
)

// template is the documented configuration file; install puts it in place.
//
//go:embed agent.yaml
var template []byte

// config is what the agent has to be told. The keys are explained in
// agent.yaml. Flags of the same names overrule all of layers.go.
type config struct {
	Collector     string `yaml:"collector"`
	ServerName    string `yaml:"server_name"`
	CAFile        string `yaml:"ca_file"`
	CAFingerprint string `yaml:"ca_fingerprint"`
	TokenFile     string `yaml:"token_file"`
	Unit          string `yaml:"unit"`
	DeviceKey     string `yaml:"device_key"`
	StateDir      string `yaml:"state_dir"`
	StatusFile    string `yaml:"status_file"`
	LogLevel      string `yaml:"log_level"`
}

// errNoCollector says that the one thing without a default is missing.
var errNoCollector = errors.New("the collector is not named: set collector")

// places are the default paths of one operating system.
type places struct{ config, token, state, status string }

// dataDirectory holds everything on Windows.
func dataDirectory() string { return filepath.Join(service.DataDirectory(), "Pfoertner") }

func defaults() places {
	if runtime.GOOS == "windows" {
		base := dataDirectory()
		return places{
			config: filepath.Join(base, "agent.yaml"), token: filepath.Join(base, "token"),
			state: filepath.Join(base, "agent"), status: filepath.Join(base, "public", "status.json"),
		}
	}
	return places{
		config: "/etc/pfoertner/agent.yaml", token: "/etc/pfoertner/token",
		state: "/var/lib/pfoertner-agent", status: "/var/cache/pfoertner-agent/status.json",
	}
}

// settings are the flags that every command knows, and the layers that this
// machine has beside the file.
type settings struct {
	file   string
	flags  config
	layers layers
}

func (s *settings) register(f *flag.FlagSet) {
	s.layers = ownLayers()
	f.StringVar(&s.file, "config", "", "configuration `file` (default "+defaults().config+")")
	f.StringVar(&s.flags.Collector, "collector", "", "the collector's listener for agents, `host:port`")
	f.StringVar(&s.flags.ServerName, "server-name", "", "`name` in the collector's certificate, if not the host above")
	f.StringVar(&s.flags.CAFile, "ca-file", "", "PEM `file` with the collector's CA")
	f.StringVar(&s.flags.CAFingerprint, "ca-fingerprint", "", "`SHA-256` of the collector's CA certificate")
	f.StringVar(&s.flags.TokenFile, "token-file", "", "`file` with the one-time token, - for standard input")
	f.StringVar(&s.flags.DeviceKey, "device-key", "", "where the device key is, `tpm or software`")
	f.StringVar(&s.flags.StateDir, "state-dir", "", "`directory` for key and certificate")
	f.StringVar(&s.flags.StatusFile, "status-file", "", "`file` that `pfoertner-agent status` reads")
	f.StringVar(&s.flags.LogLevel, "log-level", "", "debug, info, warn or error")
}

// load puts the layers over each other: flags, group policy, the configuration
// file, what the installation was told, defaults. The file may be absent unless
// it was named. With an error about the file it returns what the others say.
func (s *settings) load() (config, error) {
	file, err := s.read()
	c := s.over(file).fill()
	if err != nil {
		return c, err
	}
	return c, c.check()
}

// loadGuarded is load for commands that change something: what others have
// planted where the agent keeps its files is set aside first, before it can name
// a collector, or files to remove.
func (s *settings) loadGuarded() (config, error) {
	d := service.Directories{Base: dataDirectory(), Readable: defaults().config}
	if _, err := service.Protect(d); err != nil {
		return config{}, err
	}
	return s.load()
}

// read reads the configuration file.
func (s *settings) read() (config, error) {
	content, err := os.ReadFile(s.name())
	if err != nil && (s.file != "" || !errors.Is(err, fs.ErrNotExist)) {
		return config{}, fmt.Errorf("reading configuration: %w", err)
	}
	c, err := parseConfig(content)
	if err != nil {
		return config{}, fmt.Errorf("%s: %w", s.name(), err)
	}
	return c, nil
}

// name is the configuration file.
func (s *settings) name() string { return cmp.Or(s.file, defaults().config) }

// over puts the layers around what the file says.
func (s *settings) over(file config) config {
	policy, preset := s.layers.policy.config(), s.layers.preset.config()
	return merged(s.flags, policy, file, preset)
}

// merged takes every value from the first layer that has it.
func merged(layers ...config) config {
	var c config
	for _, layer := range layers {
		values := layer.values()
		for i, v := range c.values() {
			if *v == "" {
				*v = *values[i]
			}
		}
	}
	return c
}

// values are the fields in the order of the struct.
func (c *config) values() []*string {
	return []*string{
		&c.Collector, &c.ServerName, &c.CAFile, &c.CAFingerprint, &c.TokenFile,
		&c.Unit, &c.DeviceKey, &c.StateDir, &c.StatusFile, &c.LogLevel,
	}
}

// fill puts the defaults under what is set.
func (c config) fill() config {
	d := defaults()
	return merged(c, config{DeviceKey: identity.KindTPM, TokenFile: d.token, StateDir: d.state, StatusFile: d.status, LogLevel: "info"})
}

// parseConfig reads a configuration file. Nothing at all is a valid one.
func parseConfig(content []byte) (config, error) {
	var c config
	dec := yaml.NewDecoder(bytes.NewReader(content))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return config{}, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return config{}, errors.New("more than one document")
	}
	return c, nil
}

// check finds what is set wrongly. What is missing, the commands say that need
// it.
func (c config) check() error {
	if c.Collector != "" {
		if err := c.target().Check(); err != nil {
			return err
		}
	}
	if c.CAFingerprint != "" {
		if _, err := uplink.ParseFingerprint(c.CAFingerprint); err != nil {
			return fmt.Errorf("ca_fingerprint: %w", err)
		}
	}
	if c.DeviceKey != identity.KindTPM && c.DeviceKey != identity.KindSoftware {
		return fmt.Errorf("device_key: %q is neither tpm nor software", c.DeviceKey)
	}
	if _, err := c.level(); err != nil {
		return fmt.Errorf("log_level: %w", err)
	}
	return nil
}

// keys is where device keys are. The TPM is not asked before it is needed.
func (c config) keys() identity.Keys {
	if c.DeviceKey == identity.KindSoftware {
		return identity.Software{}
	}
	return identity.TPM{Chip: chip.Open()}
}

func (c config) level() (slog.Level, error) {
	var l slog.Level
	err := l.UnmarshalText([]byte(c.LogLevel))
	return l, err
}

func (c config) target() uplink.Target {
	return uplink.Target{Address: c.Collector, ServerName: c.ServerName, Version: version}
}

// notices is where the service remembers which notices were shown today.
func (c config) notices() string { return filepath.Join(c.StateDir, "notices.json") }

// ledger is where the service remembers since when updates are pending.
func (c config) ledger() string { return filepath.Join(c.StateDir, "updates.json") }

// searches is where the service keeps what Windows Update answered last.
func (c config) searches() string { return filepath.Join(c.StateDir, "update-search.json") }

// memory are the files that say what happened on this machine: all of the state
// directory but the identity.
func (c config) memory() []string {
	return []string{c.ledger(), c.searches(), c.notices(), filepath.Join(c.StateDir, session.CatalogueFile)}
}

// vpnDirectory is where the service keeps the VPN key.
func (c config) vpnDirectory() string { return filepath.Join(c.StateDir, session.VPNDirectory) }

func (c config) pin() (uplink.Pin, error) {
	if c.CAFile != "" {
		return uplink.Pin{File: c.CAFile}, nil
	}
	if c.CAFingerprint == "" {
		return uplink.Pin{}, errors.New("the collector's CA is not named: set ca_file or ca_fingerprint")
	}
	sum, err := uplink.ParseFingerprint(c.CAFingerprint)
	return uplink.Pin{Fingerprint: sum}, err
}
