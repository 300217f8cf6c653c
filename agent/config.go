package main

import (
	"bytes"
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

	"pfoertner/agent/uplink"
)

// template is the documented configuration file; install puts it in place.
//
//go:embed agent.yaml
var template []byte

// config is what the agent has to be told. The keys are explained in
// agent.yaml; flags of the same names overrule the file.
type config struct {
	Collector     string `yaml:"collector"`
	ServerName    string `yaml:"server_name"`
	CAFile        string `yaml:"ca_file"`
	CAFingerprint string `yaml:"ca_fingerprint"`
	TokenFile     string `yaml:"token_file"`
	StateDir      string `yaml:"state_dir"`
	StatusFile    string `yaml:"status_file"`
	LogLevel      string `yaml:"log_level"`
}

// places are the default paths of one operating system.
type places struct{ config, token, state, status string }

func defaults() places {
	if runtime.GOOS == "windows" {
		base := filepath.Join(os.Getenv("ProgramData"), "Pfoertner")
		return places{
			config: filepath.Join(base, "agent.yaml"), token: filepath.Join(base, "token"),
			state: filepath.Join(base, "agent"), status: filepath.Join(base, "status.json"),
		}
	}
	return places{
		config: "/etc/pfoertner/agent.yaml", token: "/etc/pfoertner/token",
		state: "/var/lib/pfoertner-agent", status: "/var/cache/pfoertner-agent/status.json",
	}
}

// settings are the flags that every command knows.
type settings struct {
	file  string
	flags config
}

func (s *settings) register(f *flag.FlagSet) {
	f.StringVar(&s.file, "config", "", "configuration `file` (default "+defaults().config+")")
	f.StringVar(&s.flags.Collector, "collector", "", "the collector's listener for agents, `host:port`")
	f.StringVar(&s.flags.ServerName, "server-name", "", "`name` in the collector's certificate, if not the host above")
	f.StringVar(&s.flags.CAFile, "ca-file", "", "PEM `file` with the collector's CA")
	f.StringVar(&s.flags.CAFingerprint, "ca-fingerprint", "", "`SHA-256` of the collector's CA certificate")
	f.StringVar(&s.flags.TokenFile, "token-file", "", "`file` with the one-time token")
	f.StringVar(&s.flags.StateDir, "state-dir", "", "`directory` for key and certificate")
	f.StringVar(&s.flags.StatusFile, "status-file", "", "`file` that `pfoertner-agent status` reads")
	f.StringVar(&s.flags.LogLevel, "log-level", "", "debug, info, warn or error")
}

// load reads the configuration file, which may be absent unless it was named,
// and puts flags over it and defaults under it.
func (s *settings) load() (config, error) {
	name := s.file
	if name == "" {
		name = defaults().config
	}
	content, err := os.ReadFile(name)
	if err != nil && (s.file != "" || !errors.Is(err, fs.ErrNotExist)) {
		return config{}, fmt.Errorf("reading configuration: %w", err)
	}
	c, err := parseConfig(content)
	if err != nil {
		return config{}, fmt.Errorf("%s: %w", name, err)
	}
	d := defaults()
	for _, v := range []struct {
		value          *string
		flag, fallback string
	}{
		{&c.Collector, s.flags.Collector, ""},
		{&c.ServerName, s.flags.ServerName, ""},
		{&c.CAFile, s.flags.CAFile, ""},
		{&c.CAFingerprint, s.flags.CAFingerprint, ""},
		{&c.TokenFile, s.flags.TokenFile, d.token},
		{&c.StateDir, s.flags.StateDir, d.state},
		{&c.StatusFile, s.flags.StatusFile, d.status},
		{&c.LogLevel, s.flags.LogLevel, "info"},
	} {
		if v.flag != "" {
			*v.value = v.flag
		}
		if *v.value == "" {
			*v.value = v.fallback
		}
	}
	return c, c.check()
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
	if _, err := c.level(); err != nil {
		return fmt.Errorf("log_level: %w", err)
	}
	return nil
}

func (c config) level() (slog.Level, error) {
	var l slog.Level
	err := l.UnmarshalText([]byte(c.LogLevel))
	return l, err
}

func (c config) target() uplink.Target {
	return uplink.Target{Address: c.Collector, ServerName: c.ServerName, Version: version}
}

// ledger is where the service remembers since when updates are pending.
func (c config) ledger() string { return filepath.Join(c.StateDir, "updates.json") }

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
