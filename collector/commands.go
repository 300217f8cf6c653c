package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// client is what operators' commands share: where the server is, who asks, and
// how answers are printed.
type client struct {
	out, progress io.Writer
	address       string
	identity      string
	json          bool
	lang          string
}

func newRoot(out, progress io.Writer) *cobra.Command {
	c := &client{out: out, progress: progress}
	root := &cobra.Command{
		Use:           "pfoertner-collector",
		Short:         "Judges the posture of service notebooks and gates their network access",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(out)
	root.SetErr(progress)
	f := root.PersistentFlags()
	f.StringVar(&c.address, "collector", "127.0.0.1:7603", "address of the operators' listener")
	f.StringVar(&c.identity, "operator", defaultOperator(), "directory with operator.crt, operator.key and server-ca.crt")
	f.BoolVar(&c.json, "json", false, "print JSON instead of a table")
	f.StringVar(&c.lang, "lang", language(os.Getenv("LC_ALL"), os.Getenv("LC_MESSAGES"), os.Getenv("LANG")), "language of explanations: de or en")
	root.AddCommand(
		newServe(), newInit(out), newBundle(out), newVersion(out),
		c.inventory(), c.bind(), c.token(),
		c.approve(), c.reject(), c.suspend(), c.resume(), c.retire(), c.setState(),
		c.reimageWindow(), c.tpmExchange(), c.softwareKey(), c.proposals(),
		c.endorsement(), c.bootReferences(),
		c.devices(), c.explain(), c.sessions(), c.events(), c.collect(),
		c.policy(), c.references(), c.audit(), c.appraise(), c.ca(),
	)
	return root
}

func newVersion(out io.Writer) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(*cobra.Command, []string) { fmt.Fprintln(out, version) },
	}
}

// language picks German unless the first locale that is set is not German.
func language(locales ...string) string {
	for _, l := range locales {
		if l == "" {
			continue
		}
		if strings.HasPrefix(l, "de") {
			return "de"
		}
		return "en"
	}
	return "de"
}

func defaultOperator() string {
	if d := os.Getenv("PFOERTNER_OPERATOR"); d != "" {
		return d
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "operator"
	}
	return filepath.Join(dir, "pfoertner", "operator")
}

// printJSON prints one message as a program reads it.
func (c *client) printJSON(m proto.Message) error {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true, UseProtoNames: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("rendering the answer: %w", err)
	}
	// protojson varies its white space on purpose; programs get a stable form.
	var stable any
	if err := json.Unmarshal(b, &stable); err != nil {
		return fmt.Errorf("rendering the answer: %w", err)
	}
	e := json.NewEncoder(c.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(stable)
}

// table prints rows under a header, aligned.
func (c *client) table(header string, rows [][]string) error {
	w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(strings.Fields(header), "\t"))
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// plain is an error as a person reads it: what the server said, without the
// transport's wrapping.
func plain(err error) string {
	var said interface{ GRPCStatus() *status.Status }
	if errors.As(err, &said) {
		return said.GRPCStatus().Message()
	}
	return err.Error()
}

// at prints a moment in local time; "–" for none.
func at(t *timestamppb.Timestamp) string {
	if !t.IsValid() {
		return "–"
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05")
}

// dash stands in for an empty cell.
func dash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

// count is a number of things in words: "1 error", "2 errors".
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
