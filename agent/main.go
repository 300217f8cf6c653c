// Command pfoertner-agent runs on a service notebook: it reads the machine's
// posture and reports it to the collector.
//
// Rules. It needs nobody and shows itself to nobody, unless access is refused:
// then `status` says why, in plain words. What it sends is exactly what
// `evidence` prints. It can be stopped at any moment; nothing depends on how it
// ended.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"pfoertner/agent/notice"
	"pfoertner/agent/probe"
)

// version is set when the program is linked.
var version = "unknown"

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil:
	case errors.Is(err, errUsage):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "pfoertner-agent:", err)
		os.Exit(1)
	}
}

// errUsage is returned when the command line was wrong and has been explained.
var errUsage = errors.New("wrong usage")

const usage = `pfoertner-agent reports the posture of this service notebook to the collector.

  run        report until stopped; this is what the service does
  install    register the service with the system and start it
  uninstall  stop the service and remove it; key and certificate stay
  purge      remove key, certificate and all that the service has stored
  enrol      make this notebook a device, with its one-time token
  status     admitted or not, why, and what to do (any user)
  evidence   print exactly what is sent (any user; as root more can be read)
  id         who this notebook is: for the inventory, and to compare fingerprints
  version    print the version

  prepare-image  see that no key gets into an image of this machine

pfoertner-agent COMMAND -h explains a command's flags.
`

// purpose is what the usage says of a command.
func purpose(command string) string {
	for line := range strings.Lines(usage) {
		if text, ok := strings.CutPrefix(line, "  "+command+" "); ok {
			return strings.TrimSpace(text)
		}
	}
	return ""
}

// run is the program: arguments in, text out.
func run(args []string, out, errOut io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(errOut, usage)
		return errUsage
	}
	// What the service starts of itself; people have no use for it.
	switch args[0] {
	case "help", "-h", "--help":
		_, err := fmt.Fprint(out, usage)
		return err
	case probe.AsideCommand:
		return readAside(args[1:], out, errOut)
	case notice.Command:
		return notice.Deliver(context.Background(), os.Stdin)
	}
	// Each registers its flags and returns what to do once they are parsed.
	commands := map[string]func(*flag.FlagSet, io.Writer) func(context.Context) error{
		"run": newRun, "install": newInstall, "uninstall": newUninstall, "purge": newPurge,
		"enrol": newEnrol, "prepare-image": newPrepareImage,
		"status": newStatus, "evidence": newEvidence, "id": newID, "version": newVersion,
	}
	build, ok := commands[args[0]]
	if !ok {
		fmt.Fprint(errOut, usage)
		return errUsage
	}
	flags := flag.NewFlagSet("pfoertner-agent "+args[0], flag.ContinueOnError)
	flags.SetOutput(errOut)
	do := build(flags, out)
	flags.Usage = func() {
		fmt.Fprintf(errOut, "usage: %s [flags]\n%s\n", flags.Name(), purpose(args[0]))
		flags.PrintDefaults()
	}
	switch err := flags.Parse(args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return errors.Join(errUsage, err)
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(errOut, "unexpected argument %q\n", flags.Arg(0))
		return errUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return do(ctx)
}
