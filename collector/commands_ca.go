package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pfoertner/collector/audit"
	"pfoertner/collector/authority"
	"pfoertner/collector/store"
)

// keyHouse is where `ca` commands work: the directory of a collector's keys, on
// its machine, whether it runs or not.
type keyHouse struct {
	*client
	config string
}

// ca is the commands that look after the certificate authorities.
func (c *client) ca() *cobra.Command {
	h := &keyHouse{client: c}
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Look after the CAs: list, replace, revoke (on the collector's machine), and sign with the root (on its own)",
	}
	cmd.PersistentFlags().StringVar(&h.config, "config", "", "configuration file of the collector")
	cmd.AddCommand(h.list(), h.rotate(), h.switchOver(), h.revoke(), h.requests(), h.install(), h.moveRoot(), c.root(), c.sign())
	return cmd
}

func (h *keyHouse) list() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Show every CA and key with its state and end, and what needs attention", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return h.show() },
	}
}

// show prints what there is and what needs attention.
func (h *keyHouse) show() error {
	c, err := loadConfig(h.config)
	if err != nil {
		return err
	}
	entries, warnings, err := authority.List(filepath.Join(c.State, keysDir), time.Now())
	if errors.Is(err, fs.ErrNotExist) {
		return errNoKeys(c)
	}
	if err != nil {
		return err
	}
	if h.json {
		e := json.NewEncoder(h.out)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"certificates": entries, "warnings": warnings})
	}
	var rows [][]string
	for _, e := range entries {
		rows = append(rows, []string{e.Name, e.Role, dash(string(e.State)), dash(e.Key), date(e.NotAfter), date(e.Until), e.SHA256})
	}
	if err := h.table("NAME ROLE STATE KEY ENDS ACCEPTED-UNTIL SHA-256", rows); err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintf(h.out, "! %s\n", w)
	}
	return nil
}

func date(at time.Time) string {
	if at.IsZero() {
		return "–"
	}
	return at.Local().Format(time.DateOnly)
}

// caKinds are all kinds of CAs, also those that not everybody has.
func caKinds() []string { return slices.Concat(authority.Kinds(), authority.OptionalKinds()) }

func (h *keyHouse) rotate() *cobra.Command {
	var root, agent string
	cmd := &cobra.Command{
		Use:   "rotate KIND...",
		Short: "Make the next CA of a kind (" + strings.Join(caKinds(), ", ") + "), with a root whose key is on this machine",
		Args:  cobra.MinimumNArgs(1), ValidArgs: caKinds(),
		RunE: func(cmd *cobra.Command, kinds []string) error {
			return h.change(cmd.Context(), func(r authority.Rotation) error {
				if root == "" {
					root = r.Dir
				}
				signer := authority.Root{Dir: root, Record: r.Record}
				if err := signer.Check(); errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("the root's key is not in %s (--root): ask with `ca requests`, sign at the root with `ca sign`, then `ca install`", root)
				} else if err != nil {
					return err
				}
				requests, err := r.Request(kinds, "", source(agent))
				if err != nil {
					return err
				}
				asked, err := authority.ParseRequests(requests)
				if err != nil {
					return err
				}
				var own []string // our own, on our own machine: nobody could have swapped them
				for _, q := range asked {
					own = append(own, q.Fingerprint)
				}
				certificates, err := signer.Sign(requests, own)
				if err != nil {
					return err
				}
				return h.installed(r, certificates)
			})
		},
	}
	cmd.Flags().StringVar(&root, "root", "", "directory of the root; empty: that of the collector's keys")
	agentFlag(cmd, &agent)
	return cmd
}

func (h *keyHouse) switchOver() *cobra.Command {
	var early, back bool
	cmd := &cobra.Command{
		Use: "switch KIND", Short: "Let the next CA of a kind issue from now on; the current one retires", Args: cobra.ExactArgs(1),
		ValidArgs: caKinds(),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := h.change(cmd.Context(), func(r authority.Rotation) error {
				if back {
					return r.SwitchBack(args[0])
				}
				err := r.Switch(args[0], early)
				if errors.Is(err, authority.ErrTooEarly) {
					return fmt.Errorf("%w; --early switches all the same, and locks out who does not know it", err)
				}
				return err
			})
			if err != nil {
				return err
			}
			return h.show()
		},
	}
	cmd.Flags().BoolVar(&early, "early", false, "switch although not everybody knows the next CA")
	cmd.Flags().BoolVar(&back, "back", false, "undo the last switch")
	return cmd
}

func (h *keyHouse) revoke() *cobra.Command {
	var reason string
	var alone bool
	cmd := &cobra.Command{
		Use:   "revoke NAME|SHA-256 --reason TEXT",
		Short: "Refuse everything under an issuing CA from now on, because its key was stolen",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := h.change(cmd.Context(), func(r authority.Rotation) error { return r.Revoke(args[0], reason, alone) })
			if err != nil {
				return err
			}
			return h.show()
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	cmd.Flags().BoolVar(&alone, "without-next", false, "also if there is no next CA: nothing is issued until there is one")
	cobra.CheckErr(cmd.MarkFlagRequired("reason"))
	return cmd
}

func (h *keyHouse) requests() *cobra.Command {
	var organisation, agent, out string
	cmd := &cobra.Command{
		Use:   "requests [KIND...] --out FILE",
		Short: "Make keys for the next CAs, and requests that a root on another machine signs",
		RunE: func(cmd *cobra.Command, kinds []string) error {
			if len(kinds) == 0 {
				kinds = authority.Kinds()
			}
			return h.begin(cmd.Context(), func(r authority.Rotation) error {
				requests, err := r.Request(kinds, organisation, source(agent))
				if err != nil {
					return err
				}
				if err := os.WriteFile(out, requests, 0o600); err != nil {
					return err
				}
				return h.compare(requests)
			})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write")
	cmd.Flags().StringVar(&organisation, "organisation", "", "organisation in the CAs' names; empty: the root's")
	agentFlag(cmd, &agent)
	cobra.CheckErr(cmd.MarkFlagRequired("out"))
	return cmd
}

// compare prints what people compare: the fingerprints on both machines.
func (c *client) compare(requests []byte) error {
	asked, err := authority.ParseRequests(requests)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, q := range asked {
		rows = append(rows, []string{q.Kind, q.Fingerprint})
	}
	return c.table("CA KEY", rows)
}

func (h *keyHouse) install() *cobra.Command {
	return &cobra.Command{
		Use: "install FILE", Short: "Take CA certificates that the root has signed for our requests", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			certificates, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			return h.change(cmd.Context(), func(r authority.Rotation) error { return h.installed(r, certificates) })
		},
	}
}

func (h *keyHouse) installed(r authority.Rotation, certificates []byte) error {
	names, err := r.Install(certificates)
	if err != nil {
		return err
	}
	fmt.Fprintf(h.out, "installed: %s\n", strings.Join(names, ", "))
	return nil
}

func (h *keyHouse) moveRoot() *cobra.Command {
	return &cobra.Command{
		Use: "move-root DIR", Short: "Move the root's key to another place, such as a stick for the safe", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return h.change(cmd.Context(), func(r authority.Rotation) error {
				err := authority.Root{Dir: r.Dir, Record: r.Record}.Move(args[0])
				if err == nil {
					fmt.Fprintf(h.out, "root: %s\n", args[0])
				}
				return err
			})
		},
	}
}

// change makes a change and records it in the collector's audit log. There has
// to be something to change.
func (h *keyHouse) change(ctx context.Context, do func(authority.Rotation) error) error {
	c, err := loadConfig(h.config)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(c.State, keysDir)); err != nil {
		return errNoKeys(c)
	}
	return h.begin(ctx, do)
}

func errNoKeys(c Config) error {
	return fmt.Errorf("%s holds no keys yet: run pfoertner-collector init", c.State)
}

// begin is change for a collector that may have no keys yet.
func (h *keyHouse) begin(ctx context.Context, do func(authority.Rotation) error) error {
	c, err := loadConfig(h.config)
	if err != nil {
		return err
	}
	return recording(ctx, c, func(record authority.Recorder) error {
		return do(authority.Rotation{Dir: filepath.Join(c.State, keysDir), Record: record})
	})
}

// recording opens the collector's audit log for what is done on its machine.
// The collector may run meanwhile: both append to the same chain.
func recording(ctx context.Context, c Config, do func(authority.Recorder) error) (err error) {
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return err
	}
	log, err := store.Open(ctx, filepath.Join(c.State, databaseFile), store.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	return do(func(records ...audit.Record) error { return log.AppendAudit(ctx, records...) })
}

// root makes a root, on a machine of its own.
func (c *client) root() *cobra.Command {
	var organisation, agent string
	cmd := &cobra.Command{
		Use: "root DIR", Short: "Make a root, on a machine of its own", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o700); err != nil {
				return err
			}
			err := authority.Root{Dir: args[0], Record: rootLog(args[0])}.Create(organisation, source(agent))
			if err == nil {
				fmt.Fprintf(c.out, "root: %s\n", args[0])
			}
			return err
		},
	}
	cmd.Flags().StringVar(&organisation, "organisation", "", "organisation in the root's name")
	agentFlag(cmd, &agent)
	return cmd
}

// sign is the root's part of a rotation. It needs nothing but the root.
func (c *client) sign() *cobra.Command {
	var root, out string
	var expected []string
	cmd := &cobra.Command{
		Use:   "sign REQUESTS --root DIR --expect FINGERPRINT... --out FILE",
		Short: "Sign requests of a collector with the root, after comparing the keys' fingerprints",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			requests, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			if len(expected) == 0 {
				if err := c.compare(requests); err != nil {
					return err
				}
				return errors.New("nothing was signed: compare these with what `ca requests` has shown on the collector, then name each with --expect")
			}
			certificates, err := authority.Root{Dir: root, Record: rootLog(root)}.Sign(requests, expected)
			if err != nil {
				return err
			}
			if err := os.WriteFile(out, certificates, 0o600); err != nil {
				return err
			}
			fmt.Fprintf(c.out, "signed: %s\n", out)
			return nil
		},
	}
	cmd.Flags().StringVar(&root, "root", "", "directory of the root")
	cmd.Flags().StringVar(&out, "out", "", "file to write")
	cmd.Flags().StringSliceVar(&expected, "expect", nil, "fingerprint of a key, as the collector has shown it; one for each request")
	cobra.CheckErr(cmd.MarkFlagRequired("root"))
	cobra.CheckErr(cmd.MarkFlagRequired("out"))
	return cmd
}

// rootLog appends every use of the root's key to a file beside it: there is no
// audit log where the root is.
func rootLog(dir string) authority.Recorder {
	return func(records ...audit.Record) error {
		f, err := os.OpenFile(filepath.Join(dir, "root-ca.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		e := json.NewEncoder(f)
		for _, r := range records {
			if err = e.Encode(r); err != nil {
				break
			}
		}
		return errors.Join(err, f.Sync(), f.Close())
	}
}

func agentFlag(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "ssh-agent", "", "socket of an SSH agent that holds the keys, from a smart card or HSM (ssh-add -s); each named as its CA in `ca list`")
}

func source(agent string) authority.Source {
	if agent != "" {
		return authority.Agent{Socket: agent}
	}
	return authority.Files{}
}
