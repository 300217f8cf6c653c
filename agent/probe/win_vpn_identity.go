package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// identityLife is how long a program counts as looked at: links change
	// often, programs seldom, and a signature covers the whole file.
	identityLife = 5 * time.Minute

	// trustNoSignature is TRUST_E_NOSIGNATURE.
	trustNoSignature = 0x800B0100
)

// identifiedProgram is a program that was looked at, and when.
type identifiedProgram struct {
	Program
	at time.Time
}

// identify looks at the programs of a client's services: a name proves
// nothing. It fills in publisher, signature and version, and says whether the
// client is installed: a service whose program is gone is what an
// uninstallation left, and of programs of which none could be looked at nobody
// knows whose they are.
func (v *windowsVPN) identify(ctx context.Context, w *windowsClient, c *posturev1.VpnClient) (installed posturev1.Ternary, err error) {
	var errs []error
	gone, known := 0, 0
	paths := programsOf(w.services)
	for _, path := range paths {
		program, err := v.program(ctx, path)
		switch {
		case errors.Is(err, ErrNotFound):
			gone++
			continue
		case err != nil:
			errs = append(errs, fmt.Errorf("program of the service: %w", err))
			continue
		}
		known++
		if c.SignatureValid == unknown {
			c.Publisher, c.Version = oneLine(program.Publisher), oneLine(program.FileVersion)
		}
		if c.SignatureValid != no {
			c.SignatureValid = ternary(program.Trust == 0)
		}
		c.Contradictions = append(c.Contradictions, w.identityContradictions(c, program)...)
	}
	switch {
	case len(paths) == 0:
		return unknown, errors.New("its services name no program")
	case gone == len(paths) && c.ServiceRunning == yes:
		c.Contradictions = append(c.Contradictions, clientContradiction(c, "installed",
			"service control manager", "its service runs", "files", "the service's program is not there"))
		return unknown, errors.Join(errs...)
	case gone == len(paths):
		return no, errors.Join(errs...)
	case known == 0:
		return unknown, errors.Join(errs...)
	}
	return yes, errors.Join(errs...)
}

// programsOf lists the programs of services, those that run first.
func programsOf(services []Service) []string {
	var running, others []string
	for _, s := range services {
		switch {
		case s.Program == "":
		case s.State == serviceRunning:
			running = append(running, s.Program)
		default:
			others = append(others, s.Program)
		}
	}
	slices.Sort(running)
	slices.Sort(others)
	var paths []string
	for _, path := range slices.Concat(running, others) {
		if !slices.ContainsFunc(paths, func(known string) bool { return strings.EqualFold(known, path) }) {
			paths = append(paths, path)
		}
	}
	return paths
}

// program identifies one program, from memory when it was looked at just now.
func (v *windowsVPN) program(ctx context.Context, path string) (Program, error) {
	now := v.host.Now()
	if known, ok := v.probe.programs[path]; ok && now.Sub(known.at).Abs() < identityLife {
		return known.Program, nil
	}
	if v.host.Windows.Programs == nil {
		return Program{}, errors.New("not readable on this machine")
	}
	program, err := v.host.Windows.Programs.Identify(ctx, path)
	if err != nil {
		delete(v.probe.programs, path)
		return Program{}, err
	}
	if v.probe.programs == nil {
		v.probe.programs = map[string]identifiedProgram{}
	}
	v.probe.programs[path] = identifiedProgram{program, now}
	return program, nil
}

// identityContradictions lists what of a program does not fit the catalogue.
func (w *windowsClient) identityContradictions(c *posturev1.VpnClient, p Program) []*posturev1.Contradiction {
	expected := w.Windows.Publishers
	if len(expected) == 0 {
		return nil
	}
	signed := "signed by " + strings.Join(expected, " or ")
	if p.Trust != 0 {
		return []*posturev1.Contradiction{clientContradiction(c, "signature_valid", "catalogue", signed, "WinVerifyTrust", trustWord(p.Trust))}
	}
	if slices.ContainsFunc(expected, func(name string) bool { return bareName(name) == bareName(p.Publisher) }) {
		return nil
	}
	return []*posturev1.Contradiction{clientContradiction(c, "publisher", "catalogue", signed, "signature", "signed by "+oneLine(p.Publisher))}
}

// bareName is a name without case, spaces and punctuation: makers write
// "Example, Inc." in one certificate and "Example Inc" in the next.
func bareName(name string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			return -1
		}
		return unicode.ToLower(r)
	}, name)
}

func trustWord(code uint32) string {
	if code == trustNoSignature {
		return "not signed"
	}
	return fmt.Sprintf("signature not valid: 0x%08X", code)
}
