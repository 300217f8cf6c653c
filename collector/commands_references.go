package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"pfoertner/collector/appraisal"
	"pfoertner/collector/authority"
	"pfoertner/internal/mtls"
	"pfoertner/internal/signed"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

func (c *client) references() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "references",
		Short: "Reference values and VPN catalogues: sign, verify, import and show them",
	}
	cmd.AddCommand(c.referencesImport(), c.referencesShow(), c.referencesHistory(), c.referencesSign(), c.referencesVerify())
	return cmd
}

func (c *client) referencesImport() *cobra.Command {
	req := &fleetv1.ImportReferencesRequest{}
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Put a signed file in force for the whole fleet, at once", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.SignedFile, err = os.ReadFile(args[0]); err != nil {
				return err
			}
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				stream, err := fleetv1.NewReferenceServiceClient(conn).ImportReferences(ctx, req)
				if err != nil {
					return err
				}
				return c.followImport(args[0], stream)
			})
		},
	}
	cmd.Flags().StringVar(&req.Comment, "comment", "", "why, for the history")
	cmd.Flags().BoolVar(&req.AllowOlder, "allow-older", false, "take reference values that were issued before those in force")
	return cmd
}

func (c *client) followImport(file string, stream grpc.ServerStreamingClient[fleetv1.ImportReferencesResponse]) error {
	for {
		step, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the collector ended before the file was applied to all devices; it goes on by itself")
		}
		if err != nil {
			return err
		}
		if err := c.policyErrors(file, step.GetErrors()); err != nil {
			return err
		}
		if !step.GetDone() {
			fmt.Fprintf(c.progress, "\r%d of %d devices judged", step.GetAppraised(), step.GetTotal())
			continue
		}
		fmt.Fprintln(c.progress)
		if c.json {
			return c.printJSON(step)
		}
		v := step.GetImported()
		fmt.Fprintf(c.out, "version %d, %s signed by %s, is in force", v.GetVersion(), v.GetKind(), v.GetSigner())
		if v.GetKind() == signed.References {
			fmt.Fprintf(c.out, " for %d devices; changed to admitted: %d, quarantine: %d, denied: %d",
				step.GetAppraised(), step.GetNowAdmitted(), step.GetNowQuarantined(), step.GetNowDenied())
		}
		fmt.Fprintln(c.out)
		return nil
	}
}

func (c *client) referencesShow() *cobra.Command {
	req := &fleetv1.ShowReferencesRequest{}
	var file bool
	cmd := &cobra.Command{
		Use: "show", Short: "Say what is in force, and until when it is usable", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewReferenceServiceClient(conn).ShowReferences(ctx, req)
				if err != nil {
					return err
				}
				switch {
				case file:
					_, err := c.out.Write(answer.GetSignedFile())
					return err
				case c.json:
					return c.printJSON(answer)
				}
				c.showReferences(answer, time.Now())
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Kind, "kind", signed.References, kinds())
	f.Uint64Var(&req.Version, "version", 0, "which; 0 is the one in force")
	f.BoolVar(&file, "file", false, "print the file itself")
	return cmd
}

func kinds() string { return "kind of file: " + signed.References + " or " + signed.VPNCatalogue }

func (c *client) showReferences(answer *fleetv1.ShowReferencesResponse, now time.Time) {
	v := answer.GetVersion()
	switch {
	case v.GetVersion() != 0:
		fmt.Fprintf(c.out, "%s version %d\n", v.GetKind(), v.GetVersion())
		fmt.Fprintf(c.out, "  signed by    %s\n  imported by  %s, %s\n", v.GetSigner(), v.GetOperator(), at(v.GetImportedAt()))
		if v.GetComment() != "" {
			fmt.Fprintf(c.out, "  comment      %s\n", v.GetComment())
		}
		if v.GetIssuedAt() != nil {
			fmt.Fprintf(c.out, "  issued       %s\n", dayOf(v.GetIssuedAt().AsTime()))
		}
	case v.GetKind() == signed.VPNCatalogue:
		fmt.Fprintln(c.out, "no VPN catalogue was imported: agents know what they came with")
	default:
		fmt.Fprintf(c.out, "nothing was imported: the values that this collector came with are in force, issued %s\n", dayOf(v.GetIssuedAt().AsTime()))
	}
	f := answer.GetInForce()
	if f == nil {
		return
	}
	fmt.Fprintf(c.out, "in force\n  %s, %s, %s of the ring, %s, %s\n",
		count(int(f.GetWindowsBuilds()), "Windows update"), count(int(f.GetWindowsLifecycle()), "Windows edition"),
		count(int(f.GetRing()), "row"), count(int(f.GetDistributions()), "distribution"), count(int(f.GetVpnClients()), "VPN client"))
	asOf, until := f.GetWindowsAsOf().AsTime(), f.GetWindowsUsableUntil().AsTime()
	switch {
	case f.GetWindowsAsOf() == nil:
		fmt.Fprintln(c.out, "  no table of Windows updates: the exposure of Windows is UNKNOWN")
	case now.After(until):
		fmt.Fprintf(c.out, "  the table of Windows updates ends on %s and is too old since %s: the exposure of Windows is UNKNOWN\n", dayOf(asOf), dayOf(until))
	default:
		fmt.Fprintf(c.out, "  the table of Windows updates ends on %s and is usable until %s\n", dayOf(asOf), dayOf(until))
	}
}

// dayOf is a moment as files write it: the day alone, if that is all it says.
func dayOf(t time.Time) string {
	if t.Equal(t.Truncate(24 * time.Hour)) {
		return t.UTC().Format(time.DateOnly)
	}
	return t.UTC().Format(time.RFC3339)
}

func (c *client) referencesHistory() *cobra.Command {
	return &cobra.Command{
		Use: "history", Short: "List every file that was imported, with who signed it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewReferenceServiceClient(conn).ListReferences(ctx, &fleetv1.ListReferencesRequest{})
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(answer)
				}
				var rows [][]string
				for _, v := range answer.GetVersions() {
					issued := "–"
					if v.GetIssuedAt() != nil {
						issued = dayOf(v.GetIssuedAt().AsTime())
					}
					rows = append(rows, []string{
						fmt.Sprint(v.GetVersion()), v.GetKind(), v.GetSigner(), v.GetOperator(), issued, at(v.GetImportedAt()),
						fmt.Sprintf("%.8x", v.GetSha256()), dash(v.GetComment()),
					})
				}
				return c.table("VERSION KIND SIGNER OPERATOR ISSUED IMPORTED SHA-256 COMMENT", rows)
			})
		},
	}
}

func (c *client) referencesSign() *cobra.Command {
	var signer, out, kind string
	cmd := &cobra.Command{
		Use:   "sign FILE --signer DIR --out FILE",
		Short: "Sign a file, without the collector",
		Long:  "Sign a file, without the collector. DIR is what `bundle signer NAME` has made.",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			content, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			if err := c.checkContent(args[0], kind, content); err != nil {
				return err
			}
			pair, err := tls.LoadX509KeyPair(filepath.Join(signer, authority.ReferenceSignerFile+".crt"), filepath.Join(signer, authority.ReferenceSignerFile+".key"))
			if err != nil {
				return fmt.Errorf("reading the signer's key (--signer): %w", err)
			}
			file, err := signed.Sign(kind, content, pair)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if err := os.WriteFile(out, file, 0o644); err != nil {
				return err
			}
			fmt.Fprintf(c.out, "%s: %s, signed by %s, whose certificate ends on %s\n", out, kind, pair.Leaf.Subject.CommonName, pair.Leaf.NotAfter.UTC().Format(time.DateOnly))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&signer, "signer", "", "directory of the signer's key and certificate")
	f.StringVar(&out, "out", "", "file to write")
	f.StringVar(&kind, "kind", signed.References, kinds())
	cobra.CheckErr(cmd.MarkFlagRequired("signer"))
	cobra.CheckErr(cmd.MarkFlagRequired("out"))
	return cmd
}

// checkContent finds mistakes before anybody puts his name under them. What a
// catalogue says only agents understand.
func (c *client) checkContent(name, kind string, content []byte) error {
	if kind != signed.References {
		return nil
	}
	_, faults := appraisal.ParseReferences(content)
	return c.policyErrors(name, faults)
}

func (c *client) referencesVerify() *cobra.Command {
	var ca string
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check signature and content of a signed file, without the collector; nothing is changed",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if ca == "" {
				ca = filepath.Join(c.identity, "server-ca.crt")
			}
			roots, err := mtls.Pool(ca)
			if err != nil {
				return fmt.Errorf("reading the collector's CA (--ca): %w", err)
			}
			file, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			kind, err := signed.KindOf(file)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			content, signer, err := signed.Open(kind, file, roots, time.Now())
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if err := c.checkContent(args[0], kind, content); err != nil {
				return err
			}
			fmt.Fprintf(c.out, "%s: %s, signed by %s, in order, %s\n", args[0], kind, signer, count(strings.Count(string(content), "\n"), "line"))
			return nil
		},
	}
	cmd.Flags().StringVar(&ca, "ca", "", "server-ca.crt of the collector; by default that of the operator's directory")
	return cmd
}
