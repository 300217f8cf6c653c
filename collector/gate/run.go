//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"pfoertner/collector/gate/link"
	"pfoertner/collector/gate/nft"
	"pfoertner/collector/gate/openvpn"
	"pfoertner/collector/gate/session"
	"pfoertner/internal/mtls"
)

// run guards the gateway until ctx ends. The packet filter stays: what was
// admitted ends by the kernel's time-outs.
func run(ctx context.Context, path string, errs io.Writer) error {
	config, err := loadConfig(path)
	if err != nil {
		return err
	}
	if err := config.guards(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	log := config.logger(errs)
	reviews, err := reviewServers(config, log)
	if err != nil {
		return err
	}
	links, gateway, err := dialCollectors(config, log)
	if err != nil {
		return err
	}
	drivers, err := newDrivers(config, log)
	if err != nil {
		return err
	}
	filter, err := nft.Open(filterOptions(config, reviews))
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	keeper := session.NewKeeper(session.Options{
		Rules: session.Rules{
			Gateway:         gateway,
			QuarantineFor:   config.Quarantine.Stay,
			QuarantineKnown: config.Degraded == degradedQuarantineKnown,
			NewID:           newSessionID,
		},
		Drivers:   drivers,
		Filter:    filter,
		Collector: links,
		Journal:   filepath.Join(config.State, "sessions.json"),
		Log:       log,
		Metrics:   session.NewMetrics(registry),
	})
	log.Info("gate runs", "gateway", gateway, "version", version)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return keeper.Run(ctx) })
	g.Go(func() error { return filter.Guard(ctx, keeper.FilterLost) })
	g.Go(func() error { return links.Run(ctx, keeper) })
	g.Go(func() error { return serveHealth(ctx, config.Health, links, registry) })
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info("gate stops, leases run out by themselves")
	return nil
}

// reviewServers refuses to start beside a server that would let sessions or
// packets pass the gate by.
func reviewServers(c Config, log *slog.Logger) ([]openvpn.Review, error) {
	var reviews []openvpn.Review
	var unsafe error
	for _, s := range c.OpenVPN {
		r, err := openvpn.Check(s.Config, s.Management)
		if err != nil {
			return nil, err
		}
		for _, f := range r.Findings {
			if f.Unsafe {
				unsafe = errors.Join(unsafe, errors.New(f.String()))
			} else {
				log.Info("openvpn configuration", "where", f.Where, "note", f.Problem, "remedy", f.Remedy)
			}
		}
		reviews = append(reviews, r)
	}
	if unsafe != nil {
		return nil, fmt.Errorf("unsafe openvpn configuration:\n%w", unsafe)
	}
	return reviews, nil
}

func dialCollectors(c Config, log *slog.Logger) (*link.Links, string, error) {
	o, err := linkOptions(c, log)
	if err != nil {
		return nil, "", err
	}
	links, err := link.Dial(o)
	return links, o.Gateway, err
}

// linkOptions reads the gate's keys. Its name is what its certificate says.
func linkOptions(c Config, log *slog.Logger) (link.Options, error) {
	certificate := mtls.FromFiles(filepath.Join(c.PKI, "gate.crt"), filepath.Join(c.PKI, "gate.key"))
	own, err := certificate()
	if err != nil {
		return link.Options{}, err
	}
	leaf, err := x509.ParseCertificate(own.Certificate[0])
	if err != nil {
		return link.Options{}, fmt.Errorf("gate certificate: %w", err)
	}
	role, name, err := mtls.Identity(leaf)
	if err != nil {
		return link.Options{}, fmt.Errorf("gate certificate: %w", err)
	}
	if role != mtls.RoleGate {
		return link.Options{}, fmt.Errorf("gate certificate: it is for a %s", role)
	}
	servers, err := mtls.Pool(filepath.Join(c.PKI, "server-ca.crt"))
	if err != nil {
		return link.Options{}, fmt.Errorf("collectors' CA: %w", err)
	}
	return link.Options{
		Addresses: c.Collectors,
		TLS:       mtls.ClientOptions{Certificate: certificate, Servers: servers},
		Gateway:   name,
		Servers:   servers,
		Log:       log,
	}, nil
}

func newDrivers(c Config, log *slog.Logger) (map[string]session.Driver, error) {
	drivers := map[string]session.Driver{}
	for _, s := range c.OpenVPN {
		password, err := s.password()
		if err != nil {
			return nil, err
		}
		// The socket is unique, also in the journal of the next gate.
		drivers[s.Management] = openvpn.NewServer(s.Management, s.Management, password, log)
	}
	return drivers, nil
}

func filterOptions(c Config, reviews []openvpn.Review) nft.Options {
	o := nft.Options{TCP: c.Quarantine.TCP, UDP: c.Quarantine.UDP}
	for _, r := range reviews {
		o.Devices = append(o.Devices, r.Device)
	}
	for _, p := range c.Quarantine.Destinations {
		o.Remedies = append(o.Remedies, netip.Prefix(p))
	}
	return o
}

// newSessionID is unique for ever: the server's numbers repeat.
func newSessionID(k session.Key) string {
	return fmt.Sprintf("ovpn/%d/%s", k.CID, strings.ToLower(rand.Text()))
}
