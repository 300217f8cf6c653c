package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"

	"pfoertner/agent/probe"
)

// readAside is the hidden command that the service starts for one answer of
// Windows which is better not asked for in the service's own process. It is
// not in the usage: people have `evidence`.
func readAside(arguments []string, out, errOut io.Writer) error {
	if len(arguments) != 1 {
		fmt.Fprintf(errOut, "usage: pfoertner-agent %s NAME\n", probe.AsideCommand)
		return errUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	return probe.ReadAside(ctx, arguments[0], os.Stdin, out)
}
