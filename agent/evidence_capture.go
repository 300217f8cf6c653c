package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"pfoertner/agent/capture"
	"pfoertner/agent/probe"
)

// writeCapture runs the probes over host and writes what it answered. The file
// is for its owner's eyes first: nobody else may read it.
func writeCapture(ctx context.Context, host probe.Host, o probe.Options, name string, out io.Writer) error {
	if host.Windows == nil {
		return errors.New("--raw captures Windows only; on Linux the probes read files, which may hold more than docs/collection.md names")
	}
	host, recording := capture.Record(host)
	probe.NewCollector(host, probe.Probes(o)).Collect(ctx)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing capture: %w", err)
	}
	if err := errors.Join(recording.Write(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	_, err = fmt.Fprintf(out, "Written to %s: names, addresses and identifiers are replaced. Read it before you pass it on.\n", name)
	return err
}

// readCapture reads what a machine was like. The file may name others beside it.
func readCapture(name string) (*capture.Capture, error) {
	return capture.Read(os.DirFS(filepath.Dir(name)), filepath.Base(name))
}
