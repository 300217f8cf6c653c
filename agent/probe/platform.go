package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// platformProbe reads what system this is and what kind of machine it runs on.
func platformProbe(agentVersion string) Probe {
	p := &platform{agentVersion: agentVersion}
	return Probe{Section: "platform", Collect: p.collect}
}

type platform struct {
	agentVersion string

	mu     sync.Mutex
	bootID string
	booted time.Time

	asking   sync.Mutex
	licences knownLicences // guarded by asking
}

// collect fills in all it can read and returns all that it could not.
func (p *platform) collect(ctx context.Context, h Host, ev *posturev1.Evidence) error {
	out := &posturev1.Platform{AgentVersion: p.agentVersion}
	ev.Platform = out
	if h.Windows != nil {
		return p.collectWindows(ctx, h, out)
	}
	if h.Files == nil {
		return errors.New("this machine's files are not readable")
	}
	out.OperatingSystem = posturev1.OperatingSystem_OPERATING_SYSTEM_LINUX

	release, source, errRelease := readOSRelease(h.Files)
	out.Reading = &posturev1.Reading{Source: "/" + source}
	out.Distribution = release["ID"]
	out.Edition = release["VARIANT_ID"]
	out.Version = release["VERSION_ID"]
	out.Codename = release["VERSION_CODENAME"]

	var errKernel, errBoot, errSupport error
	out.KernelRelease, errKernel = readLine(h.Files, "proc/sys/kernel/osrelease")
	out.BootId, errBoot = readLine(h.Files, "proc/sys/kernel/random/boot_id")
	out.SupportEnds, errSupport = readSupportEnds(h.Files, release)
	errSystem := p.collectSystem(ctx, h, out)
	out.FormFactor = formFactor(h.Files, out.Hypervisor != "")
	return errors.Join(errRelease, errKernel, errBoot, errSupport, errSystem)
}

func (p *platform) collectSystem(ctx context.Context, h Host, out *posturev1.Platform) error {
	if h.System == nil {
		return errors.New("the running system is not readable")
	}
	info, err := h.System.Info(ctx)
	out.Architecture = goArchitecture(info.KernelArch)
	if info.VirtualRole == "guest" {
		out.Hypervisor = info.Virtualization
	}
	if !info.BootTime.IsZero() {
		out.BootedAt = timestamppb.New(p.bootTime(out.BootId, info.BootTime))
	}
	return err
}

// bootTime keeps the first time read for a boot: the kernel works it out from
// the wall clock anew each time, so it moves when the clock is set, and
// evidence would differ although nothing changed.
func (p *platform) bootTime(bootID string, read time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if bootID == "" {
		return read
	}
	if bootID != p.bootID {
		p.bootID, p.booted = bootID, read
	}
	return p.booted
}

// readSupportEnds collects every end of support that the installation itself
// states: os-release and distro-info of its own distribution.
func readSupportEnds(files fs.FS, release osRelease) ([]*posturev1.SupportEnd, error) {
	var ends []*posturev1.SupportEnd
	if day := release["SUPPORT_END"]; day != "" {
		end, err := lastMoment(day)
		if err != nil {
			return nil, fmt.Errorf("os-release SUPPORT_END: %w", err)
		}
		ends = append(ends, &posturev1.SupportEnd{
			Kind: posturev1.SupportKind_SUPPORT_KIND_STANDARD, EndsAt: end, Source: "os-release SUPPORT_END",
		})
	}
	id, codename := release["ID"], release["VERSION_CODENAME"]
	if id != "debian" && id != "ubuntu" || codename == "" {
		return ends, nil
	}
	f, err := files.Open("usr/share/distro-info/" + id + ".csv")
	if errors.Is(err, fs.ErrNotExist) {
		return ends, nil
	}
	if err != nil {
		return ends, err
	}
	defer f.Close()
	more, err := parseDistroInfo(f, codename, "distro-info")
	if err != nil {
		return ends, fmt.Errorf("distro-info: %w", err)
	}
	return append(ends, more...), nil
}

// formFactor tells the kind of machine by the chassis type of SMBIOS.
func formFactor(files fs.FS, virtual bool) posturev1.FormFactor {
	line, err := readLine(files, "sys/class/dmi/id/chassis_type")
	if err != nil {
		line = ""
	}
	chassis, _ := strconv.ParseUint(line, 10, 8) // zero: not stated
	return formOfChassis(uint8(chassis), virtual)
}

// formOfChassis is the kind of machine that has a chassis type (DSP0134, 7.4.1).
// A virtual machine is that, whatever chassis it pretends to have.
func formOfChassis(chassis uint8, virtual bool) posturev1.FormFactor {
	if virtual {
		return posturev1.FormFactor_FORM_FACTOR_VIRTUAL
	}
	switch chassis {
	case 8, 9, 10, 14, 31: // portable, laptop, notebook, sub-notebook, convertible
		return posturev1.FormFactor_FORM_FACTOR_NOTEBOOK
	case 11, 30, 32: // hand-held, tablet, detachable
		return posturev1.FormFactor_FORM_FACTOR_TABLET
	case 3, 4, 5, 6, 7, 13, 15, 16, 24, 35, 36: // desktop, tower, all-in-one, mini PC…
		return posturev1.FormFactor_FORM_FACTOR_DESKTOP
	case 17, 23, 25, 28, 29: // main server, rack, multi-system, blade
		return posturev1.FormFactor_FORM_FACTOR_SERVER
	default:
		return posturev1.FormFactor_FORM_FACTOR_UNSPECIFIED
	}
}

// goArchitecture turns uname's machine into Go's name for it; one that is
// unknown stays as it is.
func goArchitecture(machine string) string {
	switch machine {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	default:
		return machine
	}
}

// readLine reads a file that holds one line, as procfs and sysfs have them.
func readLine(files fs.FS, name string) (string, error) {
	content, err := fs.ReadFile(files, name)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(content), "\n")
	return strings.TrimSpace(line), nil
}
