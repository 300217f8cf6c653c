package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"time"

	"pfoertner/agent/identity"
	"pfoertner/agent/probe"
	"pfoertner/agent/service"
	"pfoertner/agent/status"
	"pfoertner/internal/posture"
)

// maxTokenBytes is far above any token.
const maxTokenBytes = 4 << 10

// readToken reads the one-time token; "-" is standard input.
func readToken(name string) (string, error) {
	in := io.Reader(os.Stdin)
	if name != "-" {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%w: %s is not there", identity.ErrNoToken, name)
		}
		if err != nil {
			return "", fmt.Errorf("reading token: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxTokenBytes))
	if err != nil {
		return "", fmt.Errorf("reading token: %w", err)
	}
	token := string(bytes.TrimSpace(b))
	if token == "" {
		return "", fmt.Errorf("%w: %s is empty", identity.ErrNoToken, name)
	}
	return token, nil
}

// enrolment gathers what is needed to enrol.
func (c config) enrolment() (identity.Enrolment, error) {
	if c.Collector == "" {
		return identity.Enrolment{}, errNoCollector
	}
	pin, err := c.pin()
	if err != nil {
		return identity.Enrolment{}, err
	}
	token, err := readToken(c.TokenFile)
	// A TPM may be enough.
	if err != nil && !(errors.Is(err, identity.ErrNoToken) && c.DeviceKey == identity.KindTPM) {
		return identity.Enrolment{}, err
	}
	return identity.Enrolment{
		Target: c.target(), Pin: pin, Token: token,
		Machine: identity.Stated(probe.Machine(probe.NewHost())),
	}, nil
}

// newEnrol enrols once and says how it went.
func newEnrol(f *flag.FlagSet, out io.Writer) func(context.Context) error {
	var s settings
	s.register(f)
	again := f.Bool("again", false, "also when there is a valid certificate: it is replaced")
	return func(ctx context.Context) error {
		c, err := s.loadGuarded()
		if err != nil {
			return err
		}
		state, err := c.openState(func(other *identity.CopiedError) {
			fmt.Fprintf(out, "Key and certificate of another machine were set aside: %s\n", other.Aside)
		})
		if err != nil {
			return err
		}
		defer state.Close()
		if id, err := state.Load(); err == nil && id.Enrolled() && time.Now().Before(id.Expires()) && !*again {
			return fmt.Errorf("already enrolled as device %s until %s; --again replaces that",
				id.DeviceID, id.Expires().Local().Format(time.DateTime))
		}
		e, err := c.enrolment()
		if err != nil {
			return err
		}
		id, err := state.Enrol(ctx, e)
		var p *identity.PendingError
		if errors.As(err, &p) {
			fmt.Fprintf(out, "Waiting for approval. The fingerprint to compare is %s.\nThe service asks again by itself.\n", p.Fingerprint)
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "Enrolled as device %s, asset %s, until %s.\n",
			id.DeviceID, id.AssetNumber, id.Expires().Local().Format(time.DateTime))
		return nil
	}
}

// newStatus shows the public file, which the service writes.
func newStatus(f *flag.FlagSet, out io.Writer) func(context.Context) error {
	var s settings
	s.register(f)
	lang := f.String("lang", "", "`language`, de or en (default: that of the environment)")
	asJSON := f.Bool("json", false, "print the public file as it is")
	return func(context.Context) error {
		// Everybody may ask, also those who may not read the file, and also when
		// it has a mistake in it: it matters only if it names another place for
		// the status.
		c, _ := s.load()
		words := status.Language(locale(*lang))
		summary, err := status.Read(c.StatusFile)
		switch {
		case errors.Is(err, status.ErrNone) && !*asJSON:
			return errors.New(words.NoService())
		case err != nil:
			return err
		case *asJSON:
			return printJSON(out, summary)
		}
		_, err = fmt.Fprint(out, status.Show(summary, words, time.Now()))
		return err
	}
}

// locale is the language that was asked for, that of the environment (POSIX,
// locale variables), or what Windows speaks to its user.
func locale(asked string) string {
	for _, l := range []string{asked, os.Getenv("LC_ALL"), os.Getenv("LC_MESSAGES"), os.Getenv("LANG"), service.UserLanguage()} {
		if l != "" {
			return l
		}
	}
	return ""
}

func newVersion(_ *flag.FlagSet, out io.Writer) func(context.Context) error {
	return func(context.Context) error {
		_, err := fmt.Fprintf(out, "pfoertner-agent %s (protocol %d, %s, %s/%s)\n",
			version, posture.Capability, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	}
}

func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
