package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// signatureLife is the age from which ClamAV itself warns of its signatures
// (clamd: "The virus database is older than 7 days!").
const signatureLife = 7 * 24 * time.Hour

// antivirusProbe reads the protection against malware. Linux has no register of
// it: products are known by the files they install. That none is there is an
// observation, not a failure.
func antivirusProbe() Probe {
	p := &antivirus{}
	return Probe{Section: "antivirus", Timeout: asideTimeout, Collect: p.collect}
}

type antivirus struct {
	mu       sync.Mutex
	packages fileCache[packageDatabase]
}

// linuxAntivirus is how one product shows on Linux.
type linuxAntivirus struct {
	name string
	// programs: installed when any of them exists.
	programs []string
	// processes: on when any of them runs.
	processes []string
	packages  []string
	// databases are its signatures, with ClamAV's header.
	databases []string
}

func linuxAntiviruses() []linuxAntivirus {
	return []linuxAntivirus{
		{
			name: "ClamAV", programs: []string{"usr/sbin/clamd"}, processes: []string{"clamd"},
			packages:  []string{"clamav-daemon", "clamd", "clamav"},
			databases: []string{"var/lib/clamav/daily.cld", "var/lib/clamav/daily.cvd"},
		},
		{
			name: "Microsoft Defender for Endpoint", programs: []string{"opt/microsoft/mdatp/sbin/wdavdaemon"},
			processes: []string{"wdavdaemon"}, packages: []string{"mdatp"},
		},
		{name: "Sophos Protection for Linux", programs: []string{"opt/sophos-spl/base/bin/sophos_watchdog"}, processes: []string{"sophos_watchdog"}},
		{name: "ESET Endpoint Antivirus", programs: []string{"opt/eset/eea/sbin/startd"}, processes: []string{"oaeventd"}, packages: []string{"eea"}},
		{name: "CrowdStrike Falcon", programs: []string{"opt/CrowdStrike/falcond"}, processes: []string{"falcon-sensor", "falcon-sensor-bpf"}, packages: []string{"falcon-sensor"}},
		{name: "Kaspersky Endpoint Security", programs: []string{"opt/kaspersky/kesl/libexec/kesl"}, processes: []string{"kesl"}, packages: []string{"kesl"}},
	}
}

func (a *antivirus) collect(ctx context.Context, h Host, ev *posturev1.Evidence) error {
	out := &posturev1.Antivirus{Reading: &posturev1.Reading{Source: "files, processes"}}
	ev.Antivirus = out
	if h.Windows != nil {
		return windowsAntivirus(ctx, h, out)
	}
	if h.Files == nil {
		return errors.New("this machine's files are not readable")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, product := range linuxAntiviruses() {
		there, err := anyFile(h.Files, product.programs)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", product.name, err))
		}
		if !there {
			continue
		}
		read, err := a.product(ctx, h, product)
		out.Products = append(out.Products, read)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", product.name, err))
		}
	}
	return errors.Join(errs...)
}

func (a *antivirus) product(ctx context.Context, h Host, product linuxAntivirus) (*posturev1.AntivirusProduct, error) {
	out := &posturev1.AntivirusProduct{Name: product.name}
	packages, _ := a.packages.get(h.Files, dpkgStatusFile, parseDpkgStatus) // without dpkg versions stay empty
	for _, name := range product.packages {
		if p, ok := packages.installed[packages.id(name, "all")]; ok {
			out.Version = p.version
			break
		}
	}
	if h.Processes == nil {
		return out, errors.New("processes: not readable on this machine")
	}
	running, err := h.Processes.Running(ctx, product.processes...)
	if err != nil {
		return out, fmt.Errorf("processes: %w", err)
	}
	out.State = posturev1.AntivirusState_ANTIVIRUS_STATE_OFF
	if len(running) > 0 {
		out.State = posturev1.AntivirusState_ANTIVIRUS_STATE_ON
	}
	if len(product.databases) > 0 {
		out.UpToDate, err = signaturesCurrent(h.Files, product.databases, h.Now())
	}
	return out, err
}

// signaturesCurrent says whether the newest of the databases is young enough;
// a product without any database finds nothing.
func signaturesCurrent(files fs.FS, databases []string, now time.Time) (posturev1.Ternary, error) {
	var newest time.Time
	for _, name := range databases {
		f, err := files.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return unknown, err
		}
		built, err := parseClamHeader(f)
		f.Close()
		if err != nil {
			return unknown, fmt.Errorf("%s: %w", name, err)
		}
		if built.After(newest) {
			newest = built
		}
	}
	return ternary(now.Sub(newest) < signatureLife), nil
}

// parseClamHeader reads when a ClamAV database was built. Its first 512 bytes
// are "ClamAV-VDB:21 Nov 2026 08-24 +0000:27000:…".
func parseClamHeader(r io.Reader) (time.Time, error) {
	header := make([]byte, 512)
	n, err := io.ReadFull(r, header)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return time.Time{}, fmt.Errorf("header: %w", err)
	}
	fields := bytes.SplitN(header[:n], []byte{':'}, 3)
	if len(fields) < 3 || string(fields[0]) != "ClamAV-VDB" {
		return time.Time{}, errors.New("no header of a ClamAV database")
	}
	return time.Parse("02 Jan 2006 15-04 -0700", string(fields[1]))
}

// anyFile says whether one of the files is there.
func anyFile(files fs.FS, names []string) (bool, error) {
	for _, name := range names {
		_, err := fs.Stat(files, name)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}
