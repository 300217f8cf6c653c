package probe

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	currentVersionName = `registry Windows NT\CurrentVersion`
	// hotpatchPolicyKey is where the Policy CSP Update/AllowRebootlessUpdates
	// is kept. From documentation.
	hotpatchPolicyKey = `SOFTWARE\Microsoft\PolicyManager\current\device\Update`
	memoryKey         = `SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management`
	// bootCountKey holds BootId, which the kernel raises with every start. Not
	// documented; known from forensics.
	bootCountKey = memoryKey + `\PrefetchParameters`

	// Windows 11 and Server 2025 are what takes hotpatches without being a
	// server in Azure.
	firstHotpatchBuild = 26100
	windows10Last      = 19045
	serverAzureEdition = "ServerTurbine"
)

// collectWindows fills in all it can read and returns all that it could not.
func (p *platform) collectWindows(ctx context.Context, h Host, out *posturev1.Platform) error {
	w := h.Windows
	out.OperatingSystem = posturev1.OperatingSystem_OPERATING_SYSTEM_WINDOWS
	out.Distribution = "windows"
	out.Reading = &posturev1.Reading{Source: currentVersionName}
	out.Windows = &posturev1.WindowsRelease{}
	errRelease := readWindowsRelease(w, out)
	errRunning := crossCheckRunning(w, out)
	errHotpatch := readHotpatch(w, out)
	out.Reading.Reason = p.readExtendedSupport(ctx, h, out.Windows)

	firmware, errFirmware := readSMBIOS(w)
	out.Hypervisor = hypervisorOf(firmware)
	out.FormFactor = formOfChassis(firmware.chassis, out.Hypervisor != "")
	errSystem := p.collectWindowsSystem(ctx, h, out)
	return errors.Join(errRelease, errRunning, errHotpatch, errFirmware, errSystem)
}

// readWindowsRelease reads what the registry says of the installed release.
// ProductName is not read: on Windows 11 it says Windows 10.
func readWindowsRelease(w *Windows, out *posturev1.Platform) error {
	build, errBuild := registryBuild(w.Registry, "CurrentBuild")
	other, errOther := registryBuild(w.Registry, "CurrentBuildNumber")
	out.Windows.Build = build
	if build != 0 && other != 0 && build != other {
		out.Contradictions = append(out.Contradictions, &posturev1.Contradiction{
			Subject: "platform.windows.build",
			SourceA: currentVersionName + ` CurrentBuild`, SaysA: fmt.Sprint(build),
			SourceB: currentVersionName + ` CurrentBuildNumber`, SaysB: fmt.Sprint(other),
		})
	}
	if errBuild == nil && build == 0 {
		errBuild = errors.New("the registry names no build")
	}
	ubr, set, errUBR := registryNumber(w.Registry, currentVersionKey, "UBR")
	if errUBR == nil && !set {
		errUBR = errors.New("the registry names no update build revision")
	}
	out.Windows.Ubr = uint32(min(ubr, 1<<32-1))
	var errVersion, errEdition, errKind error
	out.Version, errVersion = optionalText(w.Registry, "DisplayVersion")
	if out.Version == "" && errVersion == nil { // before 20H2
		out.Version, errVersion = optionalText(w.Registry, "ReleaseId")
	}
	out.Edition, errEdition = optionalText(w.Registry, "EditionID")
	out.Windows.InstallationType, errKind = optionalText(w.Registry, "InstallationType")
	return errors.Join(errBuild, errOther, errUBR, errVersion, errEdition, errKind)
}

// registryBuild is a build number, which is kept as text; zero when it is not
// there.
func registryBuild(r Registry, name string) (uint32, error) {
	text, set, err := registryText(r, currentVersionKey, name)
	if err != nil || !set {
		return 0, err
	}
	build, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
	if err != nil || build == 0 {
		return 0, fmt.Errorf("%s %s is no build number", currentVersionName, name)
	}
	return uint32(build), nil
}

func optionalText(r Registry, name string) (string, error) {
	text, _, err := registryText(r, currentVersionKey, name)
	return strings.TrimSpace(text), err
}

// crossCheckRunning holds the registry against RtlGetVersion: programs may
// write the one, not the other.
func crossCheckRunning(w *Windows, out *posturev1.Platform) error {
	installed := out.Windows
	if w.Version == nil {
		return errors.New("the kernel does not say which version it is")
	}
	major, minor, build, err := w.Version.Running()
	if err != nil {
		return fmt.Errorf("RtlGetVersion: %w", err)
	}
	if installed.Build != 0 && installed.Build != build {
		out.Contradictions = append(out.Contradictions, &posturev1.Contradiction{
			Subject: "platform.windows.build",
			SourceA: currentVersionName + ` CurrentBuild`, SaysA: fmt.Sprint(installed.Build),
			SourceB: "RtlGetVersion", SaysB: fmt.Sprint(build),
		})
	}
	out.KernelRelease = fmt.Sprintf("%d.%d.%d", major, minor, build)
	if installed.Ubr != 0 {
		out.KernelRelease += fmt.Sprintf(".%d", installed.Ubr)
	}
	return nil
}

// readHotpatch tells whether this Windows takes hotpatches, which count their
// own revisions. Clients are enrolled by the policy AllowRebootlessUpdates
// (Policy CSP, Update; Windows 11 24H2 Enterprise and Education), servers are
// by being the Azure edition or by a table that the kernel holds ready
// (HotPatchTableSize). Where nothing enrols them they take none. From
// documentation: not seen on a machine that is enrolled.
func readHotpatch(w *Windows, out *posturev1.Platform) error {
	release := out.Windows
	switch {
	case release.Build == 0 || release.InstallationType == "":
		return nil // unspecified: what it depends on is not known, which is said already
	case strings.HasPrefix(release.InstallationType, "Server"):
		table, _, err := registryNumber(w.Registry, memoryKey, "HotPatchTableSize")
		if err != nil {
			return err
		}
		release.Hotpatch = ternary(out.Edition == serverAzureEdition || table > 0)
	case release.Build < firstHotpatchBuild:
		release.Hotpatch = no
	default:
		allowed, _, err := registryNumber(w.Registry, hotpatchPolicyKey, "AllowRebootlessUpdates")
		if err != nil {
			return err
		}
		release.Hotpatch = ternary(allowed == 1)
	}
	return nil
}

// readExtendedSupport tells whether Extended Security Updates are licensed. It
// returns why that cannot be told, which is no failure of the section: what the
// machine is, is known. Windows 11 has no such programme.
func (p *platform) readExtendedSupport(ctx context.Context, h Host, release *posturev1.WindowsRelease) (reason string) {
	if release.Build > windows10Last || release.Build == 0 || release.InstallationType != "Client" {
		return ""
	}
	p.asking.Lock()
	defer p.asking.Unlock()
	licences, err := p.licences.current(ctx, h.Windows.Licences, h.Now())
	if err != nil {
		return "whether Extended Security Updates are licensed cannot be told: " + err.Error()
	}
	release.ExtendedSupport = extendedSupport(licences, h.Now())
	return ""
}

// hypervisorOf names the hypervisor by what its virtual firmware calls itself,
// with the names that the same ones have on Linux. Empty: none is known.
func hypervisorOf(firmware smbios) string {
	vendor, model := strings.ToLower(firmware.vendor), strings.ToLower(firmware.model)
	switch {
	// Microsoft makes notebooks too.
	case vendor == "microsoft corporation" && model == "virtual machine":
		return "hyperv"
	case strings.HasPrefix(vendor, "vmware"):
		return "vmware"
	case vendor == "innotek gmbh", model == "virtualbox":
		return "vbox"
	case vendor == "xen":
		return "xen"
	case strings.HasPrefix(vendor, "parallels"):
		return "parallels"
	case vendor == "qemu", strings.HasPrefix(model, "kvm"), strings.HasPrefix(model, "standard pc ("),
		vendor == "red hat", vendor == "amazon ec2", model == "google compute engine", model == "openstack nova":
		return "kvm"
	}
	return ""
}

func (p *platform) collectWindowsSystem(ctx context.Context, h Host, out *posturev1.Platform) error {
	if h.System == nil {
		return errors.New("the running system is not readable")
	}
	info, err := h.System.Info(ctx)
	out.Architecture = goArchitecture(info.KernelArch)
	boots, counted, errBoots := registryNumber(h.Windows.Registry, bootCountKey, "BootId")
	if counted {
		out.BootId = strconv.FormatUint(boots, 10)
	}
	if !info.BootTime.IsZero() {
		booted := p.bootTime(out.BootId, info.BootTime)
		if !counted {
			booted = p.sameBoot(info.BootTime)
			out.BootId = "started " + booted.UTC().Format(time.RFC3339)
		}
		out.BootedAt = timestamppb.New(booted)
	}
	return errors.Join(err, errBoots)
}

// clockCorrection is how far the time of the last start may move without a
// start: Windows works it out from the wall clock anew each time.
const clockCorrection = 5 * time.Minute

// sameBoot keeps the first time of a start that nothing else names.
func (p *platform) sameBoot(read time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if read.Sub(p.booted).Abs() > clockCorrection {
		p.booted = read
	}
	return p.booted
}
