package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"pfoertner/internal/mtls"
)

// maxAnswer is the largest answer of the server that a command takes.
const maxAnswer = 64 << 20

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
		c.inventory(), c.bind(), c.token(), c.setState(),
		c.devices(), c.explain(), c.sessions(), c.events(),
		c.policy(), c.audit(),
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

// connect opens a connection with the operator's certificate. The connection
// is made with the first call.
func (c *client) connect() (*grpc.ClientConn, error) {
	certificate := mtls.FromFiles(filepath.Join(c.identity, "operator.crt"), filepath.Join(c.identity, "operator.key"))
	if _, err := certificate(); err != nil {
		return nil, fmt.Errorf("reading the operator's certificate (--operator): %w", err)
	}
	servers, err := mtls.Pool(filepath.Join(c.identity, "server-ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("reading the collector's CA (--operator): %w", err)
	}
	host, _, err := net.SplitHostPort(c.address)
	if err != nil {
		return nil, fmt.Errorf("--collector: %w", err)
	}
	config := mtls.ClientConfig(mtls.ClientOptions{
		Certificate: certificate,
		Servers:     servers,
		ServerName:  host,
	})
	return grpc.NewClient(c.address,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer), grpc.MaxCallSendMsgSize(maxAnswer)))
}

// ask connects, calls and closes.
func (c *client) ask(ctx context.Context, call func(context.Context, *grpc.ClientConn) error) (err error) {
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return call(ctx, conn)
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
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// at prints a moment in local time; "–" for none.
func at(t interface {
	IsValid() bool
	AsTime() time.Time
}) string {
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
