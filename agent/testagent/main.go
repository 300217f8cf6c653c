// Command testagent is the agent over a prepared file tree, for tests: the same
// enrolment, session and probes, but a Host that a test can change. It is a
// program of its own and never shipped; the released agent has no switch that
// feeds it false evidence.
//
//	testagent --tree DIR --state DIR --collector HOST:PORT --ca FILE --token TOKEN
//	testagent --tree DIR --change unencrypted
//
// With --tpm the device key is in a software TPM (swtpm), which a test runs
// behind a Unix socket; its event log is the file "eventlog" in the tree.
// Without it the key is in a file. With --tunnel it proves the tunnels of the
// machine it really runs on, to the collector as it is reached through them.
//
// An empty tree is filled with a compliant notebook. The second form changes it
// under a running agent and prints when the change was in place (nanoseconds
// since 1970), to measure from; notebook.yaml lists the changes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"pfoertner/agent/identity"
	"pfoertner/agent/probe"
	"pfoertner/agent/session"
	"pfoertner/agent/status"
	"pfoertner/agent/uplink"
)

const version = "test"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "testagent:", err)
		os.Exit(1)
	}
}

type options struct {
	tree, change, state, tpm, collector, tunnel, serverName, ca, token string
	evidence                                                           bool
}

func run() error {
	var o options
	flag.StringVar(&o.tree, "tree", "", "`directory` with the notebook; filled if it is empty")
	flag.StringVar(&o.change, "change", "", "make this `change` to the tree and end")
	flag.BoolVar(&o.evidence, "evidence", false, "print the evidence and end")
	flag.StringVar(&o.state, "state", "", "state `directory`")
	flag.StringVar(&o.tpm, "tpm", "", "`socket` of a software TPM for the device key")
	flag.StringVar(&o.collector, "collector", "", "`host:port` of the collector")
	flag.StringVar(&o.tunnel, "tunnel", "", "prove tunnels to the collector at this `host:port`")
	flag.StringVar(&o.serverName, "server-name", "", "`name` in the collector's certificate")
	flag.StringVar(&o.ca, "ca", "", "`file` with the collector's CA, or its SHA-256")
	flag.StringVar(&o.token, "token", "", "one-time `token`; needed once")
	flag.Parse()
	if o.tree == "" {
		return errors.New("--tree is missing")
	}
	if o.change != "" {
		if err := applyChange(o.tree, o.change, time.Now()); err != nil {
			return err
		}
		fmt.Println(time.Now().UnixNano())
		return nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return o.run(ctx)
}

func (o options) run(ctx context.Context) error {
	// As the agent does, so that its memory can be measured here.
	debug.SetGCPercent(40)
	debug.SetMemoryLimit(8 << 20)
	if _, err := os.Stat(filepath.Join(o.tree, answersFile)); errors.Is(err, fs.ErrNotExist) {
		if err := applyChange(o.tree, "compliant", time.Now()); err != nil {
			return err
		}
	}
	tree, err := os.OpenRoot(o.tree)
	if err != nil {
		return err
	}
	defer tree.Close()
	collector := probe.NewCollector(host(tree), probe.Probes(probe.Options{
		AgentVersion: version, Ledger: probe.FileLedger{Path: filepath.Join(o.tree, "ledger.json")},
	}))
	if o.evidence {
		b, err := protojson.MarshalOptions{Multiline: true}.Marshal(collector.Collect(ctx))
		fmt.Printf("%s\n", b)
		return err
	}
	state, err := identity.Open(o.state, o.keys())
	if err != nil {
		return err
	}
	defer state.Close()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	so := session.Options{
		Target: o.target(), State: state,
		Enrolment: func() (identity.Enrolment, error) { return o.enrolment(tree.FS()) },
		Collector: collector, Watcher: treeWatcher{o.tree},
		Board: status.NewBoard(filepath.Join(o.state, "status.json"), log), Log: log,
	}
	if o.tunnel != "" {
		defer o.proveTunnels(ctx, &so)()
	}
	return session.Run(ctx, so)
}

func (o options) target() uplink.Target {
	return uplink.Target{Address: o.collector, ServerName: o.serverName, Version: version}
}

func (o options) enrolment(files fs.FS) (identity.Enrolment, error) {
	pin := uplink.Pin{File: o.ca}
	if sum, err := uplink.ParseFingerprint(o.ca); err == nil {
		pin = uplink.Pin{Fingerprint: sum}
	}
	return identity.Enrolment{Target: o.target(), Pin: pin, Token: o.token, Machine: identity.Stated(probe.Machine(probe.Host{Files: files}))}, nil
}
