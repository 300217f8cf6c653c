//go:build linux

// Command pfoertner-gate stands on a VPN gateway: it asks the collector about
// every session, obeys, and reports what happened.
//
//	pfoertner-gate run --config FILE
//	pfoertner-gate check --config FILE
//	pfoertner-gate ask --config FILE --certificate FILE | --fingerprint HEX
//	pfoertner-gate version
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// version is stamped by the build.
var version = "development"

// Exit codes. Those of ask say the answer.
const (
	exitOK         = 0
	exitError      = 1
	exitUsage      = 2
	exitQuarantine = 3
	exitDenied     = 4
)

const usage = `usage: pfoertner-gate COMMAND

  run     --config FILE   guard the VPN servers of this gateway
  check   --config FILE   say what is wrong with the configuration, also OpenVPN's
  ask     --config FILE   ask the collector about one certificate
          --certificate FILE | --fingerprint HEX
          exits 0: admitted, 3: quarantine, 4: denied
  version
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func command(ctx context.Context, args []string, out, errs io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(errs, usage)
		return exitUsage
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(errs)
	flags.Usage = func() { fmt.Fprint(errs, usage) }
	path := flags.String("config", "/etc/pfoertner-gate/gate.yaml", "configuration")
	var question question
	if args[0] == "ask" {
		flags.StringVar(&question.certificate, "certificate", "", "PEM file with the certificate")
		flags.StringVar(&question.fingerprint, "fingerprint", "", "SHA-256 of the certificate, hexadecimal")
	}
	if err := flags.Parse(args[1:]); err != nil || flags.NArg() > 0 {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		if err == nil {
			flags.Usage()
		}
		return exitUsage
	}
	code, err := exitOK, error(nil)
	switch args[0] {
	case "run":
		err = run(ctx, *path, errs)
	case "check":
		err = check(*path, out)
	case "ask":
		code, err = question.ask(ctx, *path, out)
	case "version":
		fmt.Fprintln(out, version)
	default:
		flags.Usage()
		return exitUsage
	}
	if err != nil {
		fmt.Fprintln(errs, "pfoertner-gate:", err)
		return exitError
	}
	return code
}
