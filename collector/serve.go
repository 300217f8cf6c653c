package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"pfoertner/collector/admission"
	"pfoertner/collector/appraisal"
	"pfoertner/collector/attestation"
	"pfoertner/collector/authority"
	"pfoertner/collector/enrolment"
	"pfoertner/collector/fleet"
	"pfoertner/collector/gateway"
	"pfoertner/collector/intake"
	"pfoertner/collector/store"
	"pfoertner/collector/verifier"
	"pfoertner/internal/lease"
	"pfoertner/internal/mtls"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// housekeeping is how often old history is trimmed and certificates are looked
// at.
const housekeeping = 12 * time.Hour

// messageBurst is how many messages an agent may send at once before
// reports_per_second slows it down: a notebook that wakes up reports several
// sections one by one.
const messageBurst = 20

func newServe() *cobra.Command {
	var configFile string
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the collector", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(configFile)
			if err != nil {
				return err
			}
			program, err := open(cmd.Context(), c, c.logger(os.Stderr))
			if err != nil {
				return err
			}
			return errors.Join(program.Run(cmd.Context()), program.Close())
		},
	}
	cmd.Flags().StringVar(&configFile, "config", "", "configuration file; without one the defaults hold")
	return cmd
}

// Program is a collector with its state loaded and its listeners bound: tests
// start it as main does.
type Program struct {
	config   Config
	log      *slog.Logger
	store    *store.Store
	keys     *authority.Authority
	registry *enrolment.Registry
	// authorities tell which TPMs are genuine, tpms what is known of each.
	authorities *authorities
	tpms        *attestation.Book
	desk        *admission.Desk
	shipped     *appraisal.References
	verifier    *verifier.Verifier
	intake      *intake.Service
	metrics     *prometheus.Registry

	agents, gates, operators *peers
	health                   net.Listener
}

// open loads the state and binds the listeners. Nothing is answered before
// Run, and no admission before the whole state is there.
func open(ctx context.Context, c Config, log *slog.Logger) (*Program, error) {
	p := &Program{config: c, log: log, metrics: newRegistry()}
	if err := p.open(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Program) open(ctx context.Context) (err error) {
	if p.keys, err = authority.Load(p.keysDir(), time.Now); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s holds no keys yet: run pfoertner-collector init", p.config.State)
	} else if err != nil {
		return fmt.Errorf("loading keys: %w", err)
	}
	if p.store, err = store.Open(ctx, filepath.Join(p.config.State, databaseFile), store.Options{}); err != nil {
		return err
	}
	p.keys.RecordTo(p.recordKeys)
	p.registry, err = enrolment.NewRegistry(ctx, p.store,
		enrolment.WithSoftwareLifetime(p.config.SoftwareLifetime), enrolment.WithLog(p.log.With("room", "enrolment")))
	if err != nil {
		return fmt.Errorf("loading inventory: %w", err)
	}
	if err := p.openTPMs(ctx); err != nil {
		return err
	}
	if err := p.openDesk(ctx); err != nil {
		return err
	}
	if err := p.openVerifier(ctx); err != nil {
		return err
	}
	vpn, err := p.vpnCertificates()
	if err != nil {
		return err
	}
	p.intake = intake.NewService(intake.Options{
		Registry:       p.registry,
		Verifier:       p.verifier,
		Reports:        p.store,
		Issuer:         p.keys,
		TPMs:           p.tpms,
		Audit:          p.store,
		VPN:            vpn,
		ReportInterval: p.verifier.ReportInterval,
		Version:        version,
		MessageRate:    p.config.messageRate(),
		MessageBurst:   messageBurst,
		Metrics:        intake.NewMetrics(p.metrics),
		Log:            p.log.With("room", "intake"),
	})
	if err := p.loadCatalogue(ctx); err != nil {
		return err
	}
	p.registry.OnChange(p.verifier.AssetChanged)
	p.desk.Ready()
	return p.listen()
}

// openTPMs loads which TPMs are genuine, and what is known of those of devices.
func (p *Program) openTPMs(ctx context.Context) (err error) {
	log := p.log.With("room", "attestation")
	if p.authorities, err = openAuthorities(ctx, p.store, p.config.TPM.VirtualRoots, time.Now, log); err != nil {
		return err
	}
	p.tpms, err = attestation.New(ctx, attestation.Options{Store: p.store, Device: p.registry.Device, Now: time.Now, Log: log})
	if err != nil {
		return fmt.Errorf("loading what is known of TPMs: %w", err)
	}
	p.registry.OnChange(func(d *fleetv1.Device) {
		if d.GetKey().GetProtection() != fleetv1.KeyProtection_KEY_PROTECTION_TPM {
			p.tpms.Forget(d.GetId())
		}
	})
	return nil
}

// vpnCertificates is what issuing them takes; nil when none are to be issued.
func (p *Program) vpnCertificates() (*intake.VPN, error) {
	c := p.config.VPNCertificates
	if !c.Enabled {
		return nil, nil
	}
	profile, err := authority.ParseVPNProfile(c.Lifetime, c.DNSSuffix, c.ExtraUsages)
	if err != nil {
		return nil, fmt.Errorf("vpn_certificates: %w", err)
	}
	return &intake.VPN{Issuer: p.keys, Registry: p.registry, TPMs: p.tpms, Profile: profile}, nil
}

// openDesk rebuilds what the Desk knows: without it no question is answered.
func (p *Program) openDesk(ctx context.Context) error {
	epoch, err := p.store.NextEpoch(ctx)
	if err != nil {
		return fmt.Errorf("beginning an epoch: %w", err)
	}
	p.desk = admission.NewDesk(admission.Options{
		Epoch:       epoch,
		Now:         time.Now,
		LeaseTTL:    p.config.Lease,
		RefusalText: appraisal.RefusalText,
		Refusals:    p.store,
		Metrics:     admission.NewMetrics(p.metrics),
		Log:         p.log.With("room", "admission"),
	})
	p.desk.OnProofWanted(func(id string) { p.intake.WantTunnelProof(id) })
	p.registry.OnChange(p.desk.SetDevice)
	for _, d := range p.registry.All() {
		p.desk.SetDevice(d)
	}
	err = p.store.EachResult(ctx, func(id string, res *posturev1.Result) error {
		p.desk.SetResult(id, res)
		return nil
	})
	if err != nil {
		return fmt.Errorf("loading results: %w", err)
	}
	return nil
}

func (p *Program) openVerifier(ctx context.Context) error {
	policy, err := p.policyInForce(ctx)
	if err != nil {
		return err
	}
	if p.shipped, err = appraisal.DefaultReferences(); err != nil {
		return fmt.Errorf("reading the shipped reference values: %w", err)
	}
	references, err := p.referencesInForce(ctx)
	if err != nil {
		return fmt.Errorf("loading the reference values: %w", err)
	}
	p.verifier = verifier.New(verifier.Options{
		Store:      p.store,
		Desk:       p.desk,
		Devices:    p.registry,
		Policy:     policy,
		References: references,
		Now:        time.Now,
		Attested:   p.tpms.Attestation,
		Announce:   func(id string, res *posturev1.Result) { p.intake.Push(id, res) },
		Adopted:    p.desk.TunnelPolicyChanged,
		Metrics:    verifier.NewMetrics(p.metrics),
		Log:        p.log.With("room", "verifier"),
	})
	p.desk.OnExpiry(p.verifier.Expired)
	p.desk.SetTunnelPolicy(func(gateway string) (time.Duration, bool) { return p.verifier.Policy().TunnelProof(gateway) })
	p.tpms.OnChange(p.verifier.AttestationChanged)
	return nil
}

func (p *Program) listen() error {
	for _, l := range []struct {
		into    **peers
		name    string
		address string
	}{
		{&p.agents, "agents", p.config.Listen.Agents},
		{&p.gates, "gates", p.config.Listen.Gates},
		{&p.operators, "operators", p.config.Listen.Operators},
	} {
		listener, err := p.listenFor(l.name, l.address)
		if err != nil {
			return err
		}
		*l.into = newPeers(listener)
	}
	if p.config.Listen.Health == "" {
		return nil
	}
	var err error
	p.health, err = p.listenFor("health", p.config.Listen.Health)
	return err
}

func (p *Program) listenFor(name, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening for %s: %w", name, err)
	}
	p.log.Info("listening", "for", name, "address", l.Addr().String())
	return l, nil
}

// Run serves until ctx ends or a part of the collector fails.
func (p *Program) Run(ctx context.Context) error {
	parts, ctx := errgroup.WithContext(ctx)
	part := func(name string, run func(context.Context) error) {
		parts.Go(func() error {
			err := run(ctx)
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%s ended: %w", name, cmp.Or(err, errors.New("without a reason")))
		})
	}
	part("desk", p.desk.Run)
	part("verifier", p.verifier.Run)
	part("inventory", p.registry.Run)
	defer context.AfterFunc(ctx, p.intake.Close)()
	part("agents' listener", serveGRPC(p.agentServer(), p.agents))
	part("gates' listener", serveGRPC(p.gateServer(), p.gates))
	part("operators' listener", serveGRPC(p.operatorServer(ctx), p.operators))
	part("housekeeping", p.keepHouse)
	part("following the CAs", p.followKeys)
	if p.health != nil {
		part("health listener", p.serveHealth)
	}
	err := parts.Wait()
	p.log.Info("stopped")
	return err
}

// Close gives back what open took.
func (p *Program) Close() error {
	var errs []error
	for _, l := range []*peers{p.agents, p.gates, p.operators} {
		if l != nil {
			errs = append(errs, closeListener(l))
		}
	}
	if p.health != nil {
		errs = append(errs, closeListener(p.health))
	}
	if p.intake != nil {
		p.intake.Close() // alarms under way are stored first
	}
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	return errors.Join(errs...)
}

func closeListener(l net.Listener) error {
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (p *Program) agentServer() *grpc.Server {
	limits := enrolment.DefaultLimits()
	limits.AttemptsPerPeer = enrolment.Rate{PerSecond: float64(p.config.EnrolmentsPerMinute) / 60, Burst: p.config.EnrolmentsPerMinute}
	s := grpc.NewServer(p.intake.ServerOptions(mtls.Following(func() *tls.Config {
		return p.intake.TLS(p.keys.ServerCertificate, p.keys.Devices())
	}))...)
	agentv1.RegisterSessionServiceServer(s, p.intake)
	agentv1.RegisterEnrolmentServiceServer(s, enrolment.NewServer(enrolment.ServerOptions{
		Registry:     p.registry,
		Issuer:       p.keys,
		Book:         p.tpms,
		Endorsements: p.authorities.Current,
		LastSeen:     p.lastSeen,
		Limits:       limits,
		Log:          p.log.With("room", "enrolment"),
		Metrics:      enrolment.NewMetrics(p.metrics),
	}))
	agentv1.RegisterTunnelServiceServer(s, intake.NewTunnelService(intake.TunnelOptions{
		Desk:     p.desk,
		Registry: p.registry,
		Audit:    p.store,
		Metrics:  intake.NewTunnelMetrics(p.metrics),
		Log:      p.log.With("room", "intake"),
	}))
	return s
}

// lastSeen is when the newest report of a device arrived: since this start, or
// as it was stored; zero if never.
func (p *Program) lastSeen(deviceID string) time.Time {
	if _, at, _ := p.intake.Online(deviceID); !at.IsZero() {
		return at
	}
	_, result, err := p.store.Report(context.Background(), deviceID)
	if err != nil || result.GetCollectedAt() == nil {
		return time.Time{}
	}
	return result.GetCollectedAt().AsTime()
}

func (p *Program) gateServer() *grpc.Server {
	key, _ := p.keys.LeaseSigner()
	s := grpc.NewServer(append(gateway.ServerOptions(), p.credentials(mtls.RoleGate, p.keys.Gates))...)
	gatev1.RegisterGateServiceServer(s, gateway.New(gateway.Options{
		Desk:   p.desk,
		Audit:  p.store,
		Signer: lease.NewSigner(key),
		SignerChain: func() [][]byte {
			_, chain := p.keys.LeaseSigner()
			return chain
		},
		Log: p.log.With("room", "gateway"),
	}))
	return s
}

func (p *Program) operatorServer(ctx context.Context) *grpc.Server {
	return fleet.NewServer(ctx, fleet.Options{
		Devices:   p.registry,
		Reports:   p.store,
		Desk:      p.desk,
		Presence:  p.intake,
		Inventory: p.registry,
		Orders:    p.registry,
		Policies:  p.store,
		Verifier:  p.verifier,
		Audit:     p.store,
		TPMs:      p.tpms,
		Collector: p.intake,

		Authorities:    p.authorities,
		BootReferences: p.tpms,

		References: p.store,
		Shipped:    p.shipped,
		Open:       p.openSigned,
		Catalogue:  p.intake.SetVPNCatalogue,

		Now: time.Now,
		Log: p.log.With("room", "fleet"),
	}, p.credentials(mtls.RoleOperator, p.keys.Operators))
}

// credentials let in whoever has a certificate of the role under the CAs that
// are accepted at the time.
func (p *Program) credentials(role mtls.Role, accepted func() *x509.CertPool) grpc.ServerOption {
	return grpc.Creds(credentials.NewTLS(mtls.Following(func() *tls.Config {
		return mtls.ServerConfig(mtls.ServerOptions{Certificate: p.keys.ServerCertificate, Clients: accepted(), Role: role})
	})))
}

// serveGRPC serves until the context ends. Streams live as long as notebooks
// are online, so there is nothing to wait for: peers come back by themselves.
func serveGRPC(s *grpc.Server, l net.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		defer context.AfterFunc(ctx, s.Stop)()
		return s.Serve(l)
	}
}

// keepHouse trims history, renews the collector's own certificates, and removes
// CAs that have retired.
func (p *Program) keepHouse(ctx context.Context) error {
	tick := time.NewTicker(housekeeping)
	defer tick.Stop()
	for {
		if err := p.keys.Renew(); err != nil {
			p.log.Error("own certificates not renewed", "error", err)
		}
		if err := (authority.Rotation{Dir: p.keysDir(), Record: p.recordKeys}).Tidy(); err != nil {
			p.log.Error("retired CAs not removed", "error", err)
		}
		if n, err := p.store.Trim(ctx, time.Now().Add(-p.config.KeepHistory)); err != nil {
			p.log.Error("history not trimmed", "error", err)
		} else if n > 0 {
			p.log.Info("history trimmed", "results", n)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
