package capture

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"pfoertner/agent/probe"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// errNotRecorded answers what the capture does not hold.
var errNotRecorded = errors.New("not in the capture")

// Host is the recorded machine. Its clock stands still at the time of the
// capture.
func (c *Capture) Host() probe.Host {
	r := replayer{c}
	return probe.Host{
		System:  replayedSystem{r},
		Network: replayedNetwork{r},
		Windows: &probe.Windows{
			Registry:       replayedRegistry{r},
			BitLocker:      replayedBitLocker{r},
			Disks:          replayedDisks{r},
			Updates:        replayedUpdates{r},
			Services:       replayedServices{r},
			Programs:       replayedPrograms{r},
			Dialups:        replayedDialups{r},
			Firmware:       replayedFirmware{r},
			SecurityChip:   replayedChip{r},
			Firewall:       replayedFirewall{r},
			SecurityCenter: replayedCenter{r},
			Licences:       replayedLicences{r},
			Version:        replayedVersion{r},
		},
		Now: func() time.Time { return c.At },
	}
}

// Evidence is what the probes make of the machine, after they have seen it as
// it was before.
func (c *Capture) Evidence(ctx context.Context, probes []probe.Probe) *posturev1.Evidence {
	if c.Before != nil {
		c.Before.Evidence(ctx, probes)
	}
	return probe.NewCollector(c.Host(), probes).Collect(ctx)
}

// replayer answers from a capture.
type replayer struct{ capture *Capture }

// recall answers a question. What is not recorded is an error, the one given
// when the capture says that such things are not there.
func recall[T any](r replayer, absent error, method string, arguments ...string) (T, error) {
	var none T
	recorded, ok := r.capture.replies[string(ask(method, arguments...))]
	switch {
	case ok:
		value, _ := recorded.value.(T)
		return value, recorded.err
	case r.capture.absent[method]:
		return none, absent
	}
	return none, fmt.Errorf("%s: %w", method, errNotRecorded)
}

// ask is the name of a question.
func ask(method string, arguments ...string) question {
	if len(arguments) == 0 {
		return question(method)
	}
	return question(method + " " + strings.Join(arguments, " "))
}

type replayedSystem struct{ replayer }

// Info implements probe.System.
func (r replayedSystem) Info(context.Context) (probe.SystemInfo, error) {
	return recall[probe.SystemInfo](r.replayer, nil, askSystem)
}

type replayedNetwork struct{ replayer }

// Links implements probe.Network, as the following three do.
func (r replayedNetwork) Links(context.Context) ([]probe.Link, error) {
	links, err := recall[[]probe.Link](r.replayer, nil, askLinks)
	return slices.Clone(links), err
}

// Route answers ErrNoRoute where the capture says that what is not listed is
// not there.
func (r replayedNetwork) Route(_ context.Context, addr netip.Addr) (probe.Route, error) {
	return recall[probe.Route](r.replayer, probe.ErrNoRoute, askRoute, addr.String())
}

func (r replayedNetwork) IPsecPolicies(context.Context) ([]probe.IPsecPolicy, error) {
	policies, err := recall[[]probe.IPsecPolicy](r.replayer, nil, askIPsec)
	return slices.Clone(policies), err
}

func (r replayedNetwork) WireGuard(context.Context) ([]probe.WireGuardLink, error) {
	links, err := recall[[]probe.WireGuardLink](r.replayer, nil, askWireGuard)
	return slices.Clone(links), err
}

type replayedRegistry struct{ replayer }

// Value implements probe.Registry.
func (r replayedRegistry) Value(key, name string) (probe.RegistryValue, error) {
	return recall[probe.RegistryValue](r.replayer, probe.ErrNotFound, askValue, key+`\`+name)
}

// Exists implements probe.Registry.
func (r replayedRegistry) Exists(key string) (bool, error) {
	return recall[bool](r.replayer, nil, askExists, key)
}

type replayedBitLocker struct{ replayer }

// Volumes implements probe.BitLocker.
func (r replayedBitLocker) Volumes(context.Context) ([]probe.EncryptableVolume, error) {
	volumes, err := recall[[]probe.EncryptableVolume](r.replayer, nil, askBitLocker)
	return slices.Clone(volumes), err
}

type replayedDisks struct{ replayer }

// Volumes implements probe.Disks.
func (r replayedDisks) Volumes(context.Context) ([]probe.DiskVolume, error) {
	volumes, err := recall[[]probe.DiskVolume](r.replayer, nil, askDisks)
	return slices.Clone(volumes), err
}

type replayedUpdates struct{ replayer }

// Search implements probe.Updates.
func (r replayedUpdates) Search(context.Context) (probe.UpdateSearch, error) {
	return recall[probe.UpdateSearch](r.replayer, nil, askUpdates)
}

type replayedServices struct{ replayer }

// Matching implements probe.Services: each name is a question of its own, and
// a service that several names match is listed once.
func (r replayedServices) Matching(_ context.Context, names ...string) ([]probe.Service, error) {
	var found []probe.Service
	for _, name := range names {
		matching, err := recall[[]probe.Service](r.replayer, nil, askServices, name)
		if err != nil {
			return found, err
		}
		for _, s := range matching {
			if !slices.Contains(found, s) {
				found = append(found, s)
			}
		}
	}
	return found, nil
}

type replayedPrograms struct{ replayer }

// Identify implements probe.Programs.
func (r replayedPrograms) Identify(_ context.Context, path string) (probe.Program, error) {
	return recall[probe.Program](r.replayer, probe.ErrNotFound, askProgram, path)
}

type replayedDialups struct{ replayer }

// Connections implements probe.Dialups.
func (r replayedDialups) Connections(context.Context) ([]probe.Dialup, error) {
	connections, err := recall[[]probe.Dialup](r.replayer, nil, askDialups)
	return slices.Clone(connections), err
}

type replayedFirmware struct{ replayer }

// Variable implements probe.Firmware.
func (r replayedFirmware) Variable(name, vendor string) ([]byte, error) {
	content, err := recall[[]byte](r.replayer, probe.ErrNotFound, askVariable, name, vendor)
	return slices.Clone(content), err
}

// SMBIOS implements probe.Firmware.
func (r replayedFirmware) SMBIOS() ([]byte, error) {
	table, err := recall[[]byte](r.replayer, nil, askSMBIOS)
	return slices.Clone(table), err
}

type replayedChip struct{ replayer }

// Device implements probe.SecurityChip.
func (r replayedChip) Device() (probe.ChipAnswer, error) {
	return recall[probe.ChipAnswer](r.replayer, nil, askChip)
}

type replayedFirewall struct{ replayer }

// Profiles implements probe.WindowsFirewall.
func (r replayedFirewall) Profiles(context.Context) (probe.FirewallAnswer, error) {
	return recall[probe.FirewallAnswer](r.replayer, nil, askFirewall)
}

type replayedCenter struct{ replayer }

// Antivirus implements probe.SecurityCenter.
func (r replayedCenter) Antivirus(context.Context) (probe.SecurityAnswer, error) {
	return recall[probe.SecurityAnswer](r.replayer, nil, askAntivirus)
}

type replayedLicences struct{ replayer }

// ExtendedUpdates implements probe.Licences.
func (r replayedLicences) ExtendedUpdates(context.Context) ([]probe.ProductLicence, error) {
	return recall[[]probe.ProductLicence](r.replayer, nil, askLicences)
}

type replayedVersion struct{ replayer }

// Running implements probe.VersionCheck.
func (r replayedVersion) Running() (major, minor, build uint32, err error) {
	v, err := recall[runningVersion](r.replayer, nil, askVersion)
	return v.Major, v.Minor, v.Build, err
}
