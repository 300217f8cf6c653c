package capture

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"pfoertner/agent/probe"
)

// Recording keeps the answers of a machine. They are raw until Write.
type Recording struct {
	at time.Time

	mu      sync.Mutex
	replies map[question]reply
}

// Record returns a host that answers as the given one and keeps every answer
// of its System, Network and Windows, the newest of each question. Of files,
// processes and the like nothing is kept. host.Now must be set.
func Record(host probe.Host) (probe.Host, *Recording) {
	r := &Recording{at: host.Now(), replies: map[question]reply{}}
	if host.System != nil {
		host.System = recordedSystem{host.System, r}
	}
	if host.Network != nil {
		host.Network = recordedNetwork{host.Network, r}
	}
	if host.Windows != nil {
		host.Windows = recordedWindows(host.Windows, r)
	}
	return host, r
}

func recordedWindows(real *probe.Windows, r *Recording) *probe.Windows {
	w := *real
	if w.Registry != nil {
		w.Registry = recordedRegistry{w.Registry, r}
	}
	if w.BitLocker != nil {
		w.BitLocker = recordedBitLocker{w.BitLocker, r}
	}
	if w.Disks != nil {
		w.Disks = recordedDisks{w.Disks, r}
	}
	if w.Updates != nil {
		w.Updates = recordedUpdates{w.Updates, r}
	}
	if w.Services != nil {
		w.Services = recordedServices{w.Services, r}
	}
	if w.Programs != nil {
		w.Programs = recordedPrograms{w.Programs, r}
	}
	if w.Dialups != nil {
		w.Dialups = recordedDialups{w.Dialups, r}
	}
	if w.Firmware != nil {
		w.Firmware = recordedFirmware{w.Firmware, r}
	}
	if w.SecurityChip != nil {
		w.SecurityChip = recordedChip{w.SecurityChip, r}
	}
	if w.Firewall != nil {
		w.Firewall = recordedFirewall{w.Firewall, r}
	}
	if w.Licences != nil {
		w.Licences = recordedLicences{w.Licences, r}
	}
	if w.SecurityCenter != nil {
		w.SecurityCenter = recordedCenter{w.SecurityCenter, r}
	}
	if w.Version != nil {
		w.Version = recordedVersion{w.Version, r}
	}
	return &w
}

// Write writes the capture, reduced to what may be kept. Two calls write the
// same.
func (r *Recording) Write(w io.Writer) error {
	r.mu.Lock()
	replies := maps.Clone(r.replies)
	r.mu.Unlock()
	d := document{Version: formatVersion, CapturedAt: r.at.UTC().Truncate(time.Second), Answers: map[string]*answer{}}
	redact := newRedactor(replies)
	for _, q := range slices.Sorted(maps.Keys(replies)) {
		k, ok := kindOf(q.method())
		if !ok {
			return fmt.Errorf("writing capture: no such question: %s", q.method())
		}
		a, err := redact.answer(k, q, replies[q])
		if err != nil {
			return fmt.Errorf("writing capture: %s: %w", q.method(), err)
		}
		d.Answers[string(redact.question(q))] = a
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(d); err != nil {
		return fmt.Errorf("writing capture: %w", err)
	}
	return nil
}

// answer is a reply as it is written.
func (r *redactor) answer(k kind, q question, got reply) (*answer, error) {
	a := &answer{}
	a.Error, a.Is = r.problem(got.err)
	if got.err != nil && (got.value == nil || reflect.ValueOf(got.value).IsZero()) {
		return a, nil
	}
	var text strings.Builder
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	err := e.Encode(k.redact(r, q.argument(), got.value))
	a.Value = json.RawMessage(text.String())
	return a, err
}

// keep records an answer and passes it on.
func keep[T any](r *Recording, value T, err error, method string, arguments ...string) (T, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.replies[ask(method, arguments...)] = reply{value, err}
	return value, err
}

type recordedSystem struct {
	probe.System
	r *Recording
}

// Info implements probe.System.
func (s recordedSystem) Info(ctx context.Context) (probe.SystemInfo, error) {
	info, err := s.System.Info(ctx)
	return keep(s.r, info, err, askSystem)
}

type recordedNetwork struct {
	probe.Network
	r *Recording
}

// Links implements probe.Network, as the following three do.
func (n recordedNetwork) Links(ctx context.Context) ([]probe.Link, error) {
	links, err := n.Network.Links(ctx)
	return keep(n.r, links, err, askLinks)
}

func (n recordedNetwork) Route(ctx context.Context, addr netip.Addr) (probe.Route, error) {
	route, err := n.Network.Route(ctx, addr)
	return keep(n.r, route, err, askRoute, addr.String())
}

func (n recordedNetwork) IPsecPolicies(ctx context.Context) ([]probe.IPsecPolicy, error) {
	policies, err := n.Network.IPsecPolicies(ctx)
	return keep(n.r, policies, err, askIPsec)
}

func (n recordedNetwork) WireGuard(ctx context.Context) ([]probe.WireGuardLink, error) {
	links, err := n.Network.WireGuard(ctx)
	return keep(n.r, links, err, askWireGuard)
}

type recordedRegistry struct {
	probe.Registry
	r *Recording
}

// Value implements probe.Registry.
func (g recordedRegistry) Value(key, name string) (probe.RegistryValue, error) {
	value, err := g.Registry.Value(key, name)
	return keep(g.r, value, err, askValue, key+`\`+name)
}

// Exists implements probe.Registry.
func (g recordedRegistry) Exists(key string) (bool, error) {
	exists, err := g.Registry.Exists(key)
	return keep(g.r, exists, err, askExists, key)
}

type recordedBitLocker struct {
	probe.BitLocker
	r *Recording
}

// Volumes implements probe.BitLocker.
func (b recordedBitLocker) Volumes(ctx context.Context) ([]probe.EncryptableVolume, error) {
	volumes, err := b.BitLocker.Volumes(ctx)
	return keep(b.r, volumes, err, askBitLocker)
}

type recordedDisks struct {
	probe.Disks
	r *Recording
}

// Volumes implements probe.Disks.
func (d recordedDisks) Volumes(ctx context.Context) ([]probe.DiskVolume, error) {
	volumes, err := d.Disks.Volumes(ctx)
	return keep(d.r, volumes, err, askDisks)
}

type recordedUpdates struct {
	probe.Updates
	r *Recording
}

// Search implements probe.Updates.
func (u recordedUpdates) Search(ctx context.Context) (probe.UpdateSearch, error) {
	search, err := u.Updates.Search(ctx)
	return keep(u.r, search, err, askUpdates)
}

type recordedServices struct {
	probe.Services
	r *Recording
}

// Matching implements probe.Services.
func (s recordedServices) Matching(ctx context.Context, names ...string) ([]probe.Service, error) {
	found, err := s.Services.Matching(ctx, names...)
	for _, name := range names {
		var matching []probe.Service
		for _, service := range found {
			if serviceMatches(name, service.Name) {
				matching = append(matching, service)
			}
		}
		_, _ = keep(s.r, matching, err, askServices, name)
	}
	return found, err
}

// serviceMatches compares as the service control manager does, without regard
// to case; a "*" at the end stands for anything.
func serviceMatches(asked, name string) bool {
	prefix, isPrefix := strings.CutSuffix(asked, "*")
	if isPrefix {
		return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
	}
	return strings.EqualFold(asked, name)
}

type recordedPrograms struct {
	probe.Programs
	r *Recording
}

// Identify implements probe.Programs.
func (p recordedPrograms) Identify(ctx context.Context, path string) (probe.Program, error) {
	program, err := p.Programs.Identify(ctx, path)
	return keep(p.r, program, err, askProgram, path)
}

type recordedDialups struct {
	probe.Dialups
	r *Recording
}

// Connections implements probe.Dialups.
func (d recordedDialups) Connections(ctx context.Context) ([]probe.Dialup, error) {
	connections, err := d.Dialups.Connections(ctx)
	return keep(d.r, connections, err, askDialups)
}

type recordedFirmware struct {
	probe.Firmware
	r *Recording
}

// Variable implements probe.Firmware.
func (f recordedFirmware) Variable(name, vendor string) ([]byte, error) {
	content, err := f.Firmware.Variable(name, vendor)
	return keep(f.r, content, err, askVariable, name, vendor)
}

// SMBIOS implements probe.Firmware.
func (f recordedFirmware) SMBIOS() ([]byte, error) {
	table, err := f.Firmware.SMBIOS()
	return keep(f.r, table, err, askSMBIOS)
}

type recordedChip struct {
	probe.SecurityChip
	r *Recording
}

// Device implements probe.SecurityChip.
func (c recordedChip) Device() (probe.ChipAnswer, error) {
	chip, err := c.SecurityChip.Device()
	return keep(c.r, chip, err, askChip)
}

type recordedFirewall struct {
	probe.WindowsFirewall
	r *Recording
}

// Profiles implements probe.WindowsFirewall.
func (f recordedFirewall) Profiles(ctx context.Context) (probe.FirewallAnswer, error) {
	profiles, err := f.WindowsFirewall.Profiles(ctx)
	return keep(f.r, profiles, err, askFirewall)
}

type recordedCenter struct {
	probe.SecurityCenter
	r *Recording
}

// Antivirus implements probe.SecurityCenter.
func (c recordedCenter) Antivirus(ctx context.Context) (probe.SecurityAnswer, error) {
	found, err := c.SecurityCenter.Antivirus(ctx)
	return keep(c.r, found, err, askAntivirus)
}

type recordedLicences struct {
	probe.Licences
	r *Recording
}

// ExtendedUpdates implements probe.Licences.
func (l recordedLicences) ExtendedUpdates(ctx context.Context) ([]probe.ProductLicence, error) {
	found, err := l.Licences.ExtendedUpdates(ctx)
	return keep(l.r, found, err, askLicences)
}

type recordedVersion struct {
	probe.VersionCheck
	r *Recording
}

// Running implements probe.VersionCheck.
func (v recordedVersion) Running() (major, minor, build uint32, err error) {
	major, minor, build, err = v.VersionCheck.Running()
	_, _ = keep(v.r, runningVersion{major, minor, build}, err, askVersion)
	return major, minor, build, err
}
