package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/internal/mtls"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

func (c *client) inventory() *cobra.Command {
	cmd := &cobra.Command{Use: "inventory", Short: "The list of notebooks that are ours"}
	req := &fleetv1.ImportRequest{}
	load := &cobra.Command{
		Use:   "import FILE",
		Short: "Take assets over from a CSV file: all or nothing",
		Long: `Take assets over from a CSV file: all or nothing.

Columns, in any order: asset_number, vendor, model, serial, unit, groups,
key_protection, vpn_certificate_sha256, endorsement_key_sha256 (as
"pfoertner-agent id --csv" prints it). --dry-run shows what would change.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			csv, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			req.Csv = csv
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewInventoryServiceClient(conn).Import(ctx, req)
				if err != nil {
					return err
				}
				return c.printImport(args[0], answer)
			})
		},
	}
	load.Flags().BoolVar(&req.DryRun, "dry-run", false, "show what would change, change nothing")
	cmd.AddCommand(load)
	return cmd
}

// printImport prints what the file changes, or everything that is wrong with
// it, as compilers do.
func (c *client) printImport(file string, answer *fleetv1.ImportResponse) error {
	faults := answer.GetErrors()
	switch {
	case c.json:
		if err := c.printJSON(answer); err != nil {
			return err
		}
	case len(faults) > 0:
		for _, e := range faults {
			fmt.Fprintf(c.out, "%s:%d: %s\n", file, e.GetLine(), strings.TrimPrefix(e.GetColumn()+": "+e.GetMessage(), ": "))
		}
	default:
		c.printChanges(answer)
	}
	if len(faults) > 0 {
		return fmt.Errorf("%s: %s, nothing was changed", file, count(len(faults), "error"))
	}
	return nil
}

func (c *client) printChanges(answer *fleetv1.ImportResponse) {
	for _, ch := range answer.GetChanges() {
		fmt.Fprintf(c.out, "%s %s\n", ch.GetKind(), ch.GetAssetNumber())
		for _, f := range ch.GetFields() {
			value := f.GetAfter()
			if ch.GetKind() != "add" {
				value = dash(f.GetBefore()) + " → " + dash(value)
			}
			fmt.Fprintf(c.out, "  %s: %s\n", f.GetField(), value)
		}
	}
	done := "would change"
	if answer.GetApplied() {
		done = "changed"
	}
	fmt.Fprintf(c.out, "%d %s, %d unchanged\n", len(answer.GetChanges()), done, answer.GetUnchanged())
}

func (c *client) bind() *cobra.Command {
	req := &fleetv1.BindRequest{}
	var certificate, fingerprint string
	cmd := &cobra.Command{
		Use:   "bind DEVICE (--certificate FILE | --fingerprint HEX)",
		Short: "Bind a VPN client certificate to a device, or release it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Device = args[0]
			if req.CertificateSha256, err = fingerprintOf(certificate, fingerprint); err != nil {
				return err
			}
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				if _, err := fleetv1.NewInventoryServiceClient(conn).Bind(ctx, req); err != nil {
					return err
				}
				done := "bound to"
				if req.Remove {
					done = "released from"
				}
				fmt.Fprintf(c.out, "%x %s %s\n", req.CertificateSha256, done, req.Device)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&certificate, "certificate", "", "PEM file of the VPN client certificate")
	cmd.Flags().StringVar(&fingerprint, "fingerprint", "", "its SHA-256, hex, colons allowed")
	cmd.Flags().BoolVar(&req.Remove, "remove", false, "release it instead")
	cmd.MarkFlagsOneRequired("certificate", "fingerprint")
	cmd.MarkFlagsMutuallyExclusive("certificate", "fingerprint")
	return cmd
}

// fingerprintOf is the SHA-256 of a certificate in a PEM file, or as written.
func fingerprintOf(file, written string) ([]byte, error) {
	if file == "" {
		b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(written), ":", ""))
		if err != nil || len(b) != sha256.Size {
			return nil, errors.New("--fingerprint: not 64 hex digits")
		}
		return b, nil
	}
	certs, err := mtls.ReadCertificates(file)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(certs[0].Raw)
	return sum[:], nil
}

func (c *client) token() *cobra.Command {
	var lifetime time.Duration
	cmd := &cobra.Command{
		Use:   "token ASSET",
		Short: "Make a one-time token with which this asset may enrol",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewInventoryServiceClient(conn).CreateToken(ctx, &fleetv1.CreateTokenRequest{
					AssetNumber: args[0], Lifetime: durationpb.New(lifetime),
				})
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(answer)
				}
				fmt.Fprintln(c.out, answer.GetToken())
				fmt.Fprintf(c.progress, "for %s, once, until %s; it is not shown again\n", args[0], at(answer.GetExpiresAt()))
				return nil
			})
		},
	}
	cmd.Flags().DurationVar(&lifetime, "lifetime", 72*time.Hour, "how long it may be used, at most 72h")
	return cmd
}
