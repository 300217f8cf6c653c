package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"pfoertner/agent/probe"
)

// answersFile holds, in a tree, what is no file on a real machine.
const answersFile = "answers.yaml"

// answers is that file. It is read anew for every question.
type answers struct {
	System struct {
		OS             string    `yaml:"os"`
		KernelArch     string    `yaml:"kernel_arch"`
		BootedAt       time.Time `yaml:"booted_at"`
		Virtualization string    `yaml:"virtualization"`
		VirtualRole    string    `yaml:"virtual_role"`
	} `yaml:"system"`
	Links []struct {
		Index     int            `yaml:"index"`
		Name      string         `yaml:"name"`
		Kind      string         `yaml:"kind"`
		Up        bool           `yaml:"up"`
		Running   bool           `yaml:"running"`
		OperState string         `yaml:"oper_state"`
		Loopback  bool           `yaml:"loopback"`
		Addresses []netip.Prefix `yaml:"addresses"`
	} `yaml:"links"`
	Routes []struct {
		To      netip.Prefix `yaml:"to"`
		Link    int          `yaml:"link"`
		Table   int          `yaml:"table"`
		Gateway netip.Addr   `yaml:"gateway"`
		Source  netip.Addr   `yaml:"source"`
	} `yaml:"routes"`
	InputChains []struct {
		Family  string `yaml:"family"`
		Table   string `yaml:"table"`
		Name    string `yaml:"name"`
		Drop    bool   `yaml:"drop"`
		Rules   int    `yaml:"rules"`
		Rejects bool   `yaml:"rejects"`
	} `yaml:"input_chains"`
	Units   map[string]bool `yaml:"units"`
	Running []string        `yaml:"running"`
}

// recorded answers for the kernel and the system's services.
type recorded struct{ tree string }

func (r recorded) read() (answers, error) {
	content, err := os.ReadFile(filepath.Join(r.tree, answersFile))
	if err != nil {
		return answers{}, err
	}
	var a answers
	dec := yaml.NewDecoder(bytes.NewReader(content))
	dec.KnownFields(true)
	if err := dec.Decode(&a); err != nil {
		return answers{}, fmt.Errorf("%s: %w", answersFile, err)
	}
	return a, nil
}

// host is the machine that a tree describes.
func host(tree *os.Root) probe.Host {
	r := recorded{tree.Name()}
	return probe.Host{
		Files: tree.FS(), System: r, Network: r, Firewall: r, Processes: r, Bus: r, Commands: r,
		Now: time.Now,
	}
}

// Info implements probe.System.
func (r recorded) Info(context.Context) (probe.SystemInfo, error) {
	a, err := r.read()
	s := a.System
	return probe.SystemInfo{
		OS: s.OS, KernelArch: s.KernelArch, BootTime: s.BootedAt,
		Virtualization: s.Virtualization, VirtualRole: s.VirtualRole,
	}, err
}

// Links implements probe.Network.
func (r recorded) Links(context.Context) ([]probe.Link, error) {
	a, err := r.read()
	var links []probe.Link
	for _, l := range a.Links {
		links = append(links, probe.Link{
			Index: l.Index, Name: l.Name, Kind: l.Kind, Up: l.Up, Running: l.Running,
			OperState: l.OperState, Loopback: l.Loopback, Addresses: l.Addresses,
		})
	}
	return links, err
}

// Route implements probe.Network: the longest prefix wins.
func (r recorded) Route(_ context.Context, to netip.Addr) (probe.Route, error) {
	a, err := r.read()
	if err != nil {
		return probe.Route{}, err
	}
	best, bits := probe.Route{}, -1
	for _, route := range a.Routes {
		if route.To.Contains(to) && route.To.Bits() > bits {
			bits = route.To.Bits()
			best = probe.Route{LinkIndex: route.Link, Table: route.Table, Gateway: route.Gateway, Source: route.Source}
		}
	}
	if bits < 0 {
		return probe.Route{}, probe.ErrNoRoute
	}
	return best, nil
}

// IPsecPolicies implements probe.Network.
func (r recorded) IPsecPolicies(context.Context) ([]probe.IPsecPolicy, error) { return nil, nil }

// WireGuard implements probe.Network.
func (r recorded) WireGuard(context.Context) ([]probe.WireGuardLink, error) { return nil, nil }

// InputChains implements probe.FirewallRules.
func (r recorded) InputChains(context.Context) ([]probe.FilterChain, error) {
	a, err := r.read()
	var chains []probe.FilterChain
	for _, c := range a.InputChains {
		chains = append(chains, probe.FilterChain{
			Family: c.Family, Table: c.Table, Name: c.Name, Drop: c.Drop, Rules: c.Rules, Rejects: c.Rejects,
		})
	}
	return chains, err
}

// Running implements probe.Processes.
func (r recorded) Running(_ context.Context, names ...string) ([]string, error) {
	a, err := r.read()
	return slices.DeleteFunc(a.Running, func(n string) bool { return !slices.Contains(names, n) }), err
}

// VPNConnections implements probe.Bus.
func (r recorded) VPNConnections(context.Context) ([]probe.BusConnection, error) {
	return nil, probe.ErrNotFound
}

// UnitActive implements probe.Bus.
func (r recorded) UnitActive(_ context.Context, unit string) (bool, error) {
	a, err := r.read()
	if err != nil {
		return false, err
	}
	active, ok := a.Units[unit]
	if !ok {
		return false, probe.ErrNotFound
	}
	return active, nil
}

// ZFSEncryption implements probe.Commands.
func (r recorded) ZFSEncryption(context.Context, string) (string, error) {
	return "", probe.ErrNotFound
}
