// Command pfoertner-collector judges what notebooks report and decides who may
// use the network. `serve` is the server; every other command is an operator's
// and speaks to a running server's operators' listener, with the operator's
// certificate.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is stamped by the build.
var version = "development"

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRoot(os.Stdout, os.Stderr).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "pfoertner-collector:", plain(err))
		return 1
	}
	return 0
}
