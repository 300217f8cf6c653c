package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

func (c *client) policy() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Check, apply and show the policy"}
	cmd.AddCommand(c.policyCheck(), c.policyApply(), c.policyShow(), c.policyHistory())
	return cmd
}

func (c *client) policyCheck() *cobra.Command {
	return &cobra.Command{
		Use: "check FILE", Short: "Check a policy file; nothing is changed", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewPolicyServiceClient(conn).Check(ctx, &fleetv1.CheckRequest{Yaml: text})
				if err != nil {
					return err
				}
				if c.json {
					if err := c.printJSON(answer); err != nil {
						return err
					}
				}
				if err := c.policyErrors(args[0], answer.GetErrors()); err != nil {
					return err
				}
				if !c.json {
					fmt.Fprintf(c.out, "%s: %s, %s, in order\n", args[0], answer.GetName(), count(int(answer.GetRules()), "rule"))
				}
				return nil
			})
		},
	}
}

// policyErrors prints what is wrong, as compilers do, and returns an error when
// anything is.
func (c *client) policyErrors(file string, faults []*fleetv1.PolicyError) error {
	if len(faults) == 0 {
		return nil
	}
	if !c.json {
		for _, e := range faults {
			fmt.Fprintf(c.out, "%s:%d:%d: %s\n", file, e.GetLine(), e.GetColumn(), e.GetMessage())
		}
	}
	return fmt.Errorf("%s: %s, nothing was changed", file, count(len(faults), "error"))
}

func (c *client) policyApply() *cobra.Command {
	var comment string
	cmd := &cobra.Command{
		Use: "apply FILE", Short: "Put a policy in force for the whole fleet, at once", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				stream, err := fleetv1.NewPolicyServiceClient(conn).Apply(ctx, &fleetv1.ApplyRequest{Yaml: text, Comment: comment})
				if err != nil {
					return err
				}
				return c.followApply(args[0], stream)
			})
		},
	}
	cmd.Flags().StringVar(&comment, "comment", "", "why, for the history")
	return cmd
}

func (c *client) followApply(file string, stream grpc.ServerStreamingClient[fleetv1.ApplyResponse]) error {
	for {
		step, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the collector ended before the policy was applied to all devices; it goes on by itself")
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
		fmt.Fprintf(c.out, "version %d is in force for %d devices; changed to admitted: %d, quarantine: %d, denied: %d\n",
			step.GetVersion(), step.GetAppraised(), step.GetNowAdmitted(), step.GetNowQuarantined(), step.GetNowDenied())
		return nil
	}
}

func (c *client) policyShow() *cobra.Command {
	req := &fleetv1.ShowRequest{}
	cmd := &cobra.Command{
		Use: "show", Short: "Print a policy as it was applied", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewPolicyServiceClient(conn).Show(ctx, req)
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(answer)
				}
				_, err = c.out.Write(answer.GetYaml())
				return err
			})
		},
	}
	cmd.Flags().Uint64Var(&req.Version, "version", 0, "which; 0 is the one in force")
	return cmd
}

func (c *client) policyHistory() *cobra.Command {
	return &cobra.Command{
		Use: "history", Short: "List every policy that was in force, with who and when", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewPolicyServiceClient(conn).History(ctx, &fleetv1.HistoryRequest{})
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(answer)
				}
				var rows [][]string
				for _, v := range answer.GetVersions() {
					rows = append(rows, []string{
						fmt.Sprint(v.GetVersion()), v.GetName(), v.GetOperator(), at(v.GetAppliedAt()),
						fmt.Sprintf("%.8x", v.GetSha256()), dash(v.GetComment()),
					})
				}
				return c.table("VERSION NAME OPERATOR APPLIED SHA-256 COMMENT", rows)
			})
		},
	}
}

func (c *client) audit() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "The hash-chained audit log"}
	var head string
	verify := &cobra.Command{
		Use:   "verify",
		Short: "Check that no record was changed or is missing",
		Long: `Check that no record was changed or is missing.

Note the newest hash that it prints, away from this machine. With --head it must
be found again: even who rewrites the whole log cannot bring it back.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			noted, err := hex.DecodeString(head)
			if err != nil {
				return errors.New("--head: not hexadecimal")
			}
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				stream, err := fleetv1.NewAuditServiceClient(conn).Verify(ctx, &fleetv1.VerifyRequest{NotedHead: noted})
				if err != nil {
					return err
				}
				return c.followVerify(stream)
			})
		},
	}
	verify.Flags().StringVar(&head, "head", "", "hash of a record that was noted earlier")
	cmd.AddCommand(verify)
	return cmd
}

func (c *client) followVerify(stream grpc.ServerStreamingClient[fleetv1.VerifyResponse]) error {
	for {
		step, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the collector ended before all records were checked")
		}
		if err != nil {
			return err
		}
		if !step.GetDone() {
			fmt.Fprintf(c.progress, "\r%d of %d records checked", step.GetChecked(), step.GetTotal())
			continue
		}
		if c.json {
			if err := c.printJSON(step); err != nil {
				return err
			}
		}
		if n := len(step.GetFaults()); n > 0 {
			for _, f := range step.GetFaults() {
				fmt.Fprintf(c.progress, "record %d: %s: %s\n", f.GetSequence(), f.GetKind(), f.GetMessage())
			}
			return fmt.Errorf("the audit log is not whole: %s", count(n, "fault"))
		}
		if !c.json {
			fmt.Fprintf(c.out, "%d records, none changed, none missing; newest %x\n", step.GetChecked(), step.GetHead())
		}
		return nil
	}
}
