package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func (c *client) endorsement() *cobra.Command {
	cmd := &cobra.Command{Use: "endorsement", Short: "The authorities by which genuine TPMs are known"}
	cmd.AddCommand(c.endorsementList(), c.endorsementAdd())
	return cmd
}

func (c *client) endorsementList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the authorities that are believed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewEndorsementServiceClient(conn).ListAuthorities(ctx, &fleetv1.ListAuthoritiesRequest{})
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(answer)
				}
				return c.printAuthorities(answer.GetAuthorities(), addedHow)
			})
		},
	}
}

func (c *client) endorsementAdd() *cobra.Command {
	req := &fleetv1.AddAuthoritiesRequest{}
	cmd := &cobra.Command{
		Use: "add FILE", Short: "Add intermediates that chain to a reviewed root, and reviewed roots: all or none",
		Long: `Add intermediates that chain to a reviewed root, and roots whose fingerprint the
review lists: all certificates of the file or none.

FILE is PEM or DER, as many certificates as you like, in any order. --dry-run
shows what would be added.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.Certificates, err = os.ReadFile(args[0]); err != nil {
				return err
			}
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewEndorsementServiceClient(conn).AddAuthorities(ctx, req)
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(answer)
				}
				done, how := "added", "now"
				if req.DryRun {
					done, how = "would be added", "not yet"
				}
				fmt.Fprintf(c.progress, "%d %s\n", len(answer.GetAdded()), done)
				return c.printAuthorities(answer.GetAdded(), func(*fleetv1.EndorsementAuthority) string { return how })
			})
		},
	}
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "show what would be added, add nothing")
	return cmd
}

// addedHow is how an authority came to be believed.
func addedHow(a *fleetv1.EndorsementAuthority) string {
	switch {
	case a.GetAddedBy() != "":
		return "by " + a.GetAddedBy()
	case a.GetVirtual():
		return "configured"
	}
	return "shipped"
}

func (c *client) printAuthorities(list []*fleetv1.EndorsementAuthority, added func(*fleetv1.EndorsementAuthority) string) error {
	var rows [][]string
	for _, a := range list {
		kind := "intermediate"
		if a.GetRoot() {
			kind = "root"
		}
		if a.GetVirtual() {
			kind = "virtual " + kind
		}
		rows = append(rows, []string{
			dash(a.GetManufacturer()), kind, a.GetExpiresAt().AsTime().Format(time.DateOnly), added(a), fmt.Sprintf("%.8x", a.GetSha256()), a.GetSubject(),
		})
	}
	return c.table("MAKER KIND EXPIRES ADDED SHA-256 SUBJECT", rows)
}

func (c *client) bootReferences() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "boot-references",
		Short: "The boot values (PCRs) that each model's notebooks quote, and what was decided about them",
	}
	decide := func(use, short string, state posturev1.PcrReference) *cobra.Command {
		var model string
		d := &cobra.Command{
			Use: use + " PCR:VALUE...", Short: short, Args: cobra.MinimumNArgs(1),
			Long: short + ".\n\nA value is named by its PCR and the first digits of its SHA-256, as the list\nshows them: 7:3fa1b2c4d5e6f708. --model tells models with the same value apart.",
			RunE: func(cmd *cobra.Command, args []string) error {
				return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
					return c.decideBoot(ctx, fleetv1.NewBootReferenceServiceClient(conn), model, args, state)
				})
			},
		}
		d.Flags().StringVar(&model, "model", "", "of this model only")
		return d
	}
	cmd.AddCommand(
		c.bootReferencesList(),
		decide("approve", "Approve values: notebooks that quote them start as they should", posturev1.PcrReference_PCR_REFERENCE_APPROVED),
		decide("reject", "Reject values: no notebook should start like that", posturev1.PcrReference_PCR_REFERENCE_REJECTED),
		decide("undecide", "Take decisions back: the values are only known again", posturev1.PcrReference_PCR_REFERENCE_LEARNED),
	)
	return cmd
}

func (c *client) bootReferencesList() *cobra.Command {
	req := &fleetv1.ListBootReferencesRequest{}
	cmd := &cobra.Command{
		Use: "list", Short: "List the values, by model and PCR", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewBootReferenceServiceClient(conn).ListBootReferences(ctx, req)
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(answer)
				}
				return c.printBoot(answer.GetReferences())
			})
		},
	}
	cmd.Flags().StringVar(&req.Model, "model", "", "of this model only")
	return cmd
}

func (c *client) printBoot(list []*fleetv1.BootReference) error {
	var rows [][]string
	for _, r := range list {
		decided := "–"
		if r.GetDecidedBy() != "" {
			decided = r.GetDecidedBy() + ", " + at(r.GetDecidedAt())
		}
		rows = append(rows, []string{
			dash(strings.TrimSpace(r.GetVendor() + " " + r.GetModel())), bootValue(r), word(r.GetState()),
			fmt.Sprint(r.GetDevices()), at(r.GetFirstSeenAt()), decided,
		})
	}
	return c.table("MODEL PCR:VALUE STATE DEVICES FIRST-SEEN DECIDED", rows)
}

// bootValue is a value as the list shows it and the commands take it.
func bootValue(r *fleetv1.BootReference) string {
	return fmt.Sprintf("%d:%.8x", r.GetPcr(), r.GetSha256())
}

// decideBoot finds what is named before it decides anything: a mistake decides
// nothing.
func (c *client) decideBoot(ctx context.Context, service fleetv1.BootReferenceServiceClient, model string, named []string, state posturev1.PcrReference) error {
	known, err := service.ListBootReferences(ctx, &fleetv1.ListBootReferencesRequest{Model: model})
	if err != nil {
		return err
	}
	var chosen []*fleetv1.BootReference
	for _, name := range named {
		r, err := findBoot(known.GetReferences(), name)
		if err != nil {
			return err
		}
		chosen = append(chosen, r)
	}
	answers := &fleetv1.ListBootReferencesResponse{}
	for _, r := range chosen {
		answer, err := service.SetBootReference(ctx, &fleetv1.SetBootReferenceRequest{
			Vendor: r.GetVendor(), Model: r.GetModel(), Pcr: r.GetPcr(), Sha256: r.GetSha256(), State: state,
		})
		if err != nil {
			return err
		}
		answers.References = append(answers.References, answer.GetReference())
	}
	if c.json {
		return c.printJSON(answers)
	}
	return c.printBoot(answers.GetReferences())
}

// leastDigits is how much of a value has to be named.
const leastDigits = 8

func findBoot(known []*fleetv1.BootReference, name string) (*fleetv1.BootReference, error) {
	pcr, digits, _ := strings.Cut(name, ":")
	index, err := strconv.ParseUint(pcr, 10, 8)
	if err != nil || len(digits) < leastDigits {
		return nil, fmt.Errorf("%q is no PCR:VALUE with at least %d digits, such as 7:3fa1b2c4d5e6f708", name, leastDigits)
	}
	var found *fleetv1.BootReference
	for _, r := range known {
		if uint64(r.GetPcr()) != index || !strings.HasPrefix(hex.EncodeToString(r.GetSha256()), strings.ToLower(digits)) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s is a value of %s %s and of %s %s: name one with --model, or more digits",
				name, found.GetVendor(), found.GetModel(), r.GetVendor(), r.GetModel())
		}
		found = r
	}
	if found == nil {
		return nil, fmt.Errorf("no notebook has quoted %s: \"boot-references list\" shows what was", name)
	}
	return found, nil
}

func (c *client) collect() *cobra.Command {
	req := &fleetv1.CollectRequest{}
	cmd := &cobra.Command{
		Use: "collect DEVICE", Short: "Let a notebook read and report now, and wait for it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Device = args[0]
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewFleetServiceClient(conn).Collect(ctx, req)
				if err != nil {
					return err
				}
				d := answer.GetDevice()
				if c.json {
					return c.printJSON(d)
				}
				verdict := "no verdict"
				if d.GetResult() != nil {
					verdict = strings.TrimSpace(word(d.GetResult().GetVerdict()) + " " + d.GetResult().GetCode())
				}
				fmt.Fprintf(c.out, "%s: %s by evidence of %s\n", d.GetAsset().GetAssetNumber(), verdict, at(d.GetResult().GetCollectedAt()))
				if !req.GetQuote() {
					return nil
				}
				for _, f := range (identity{when: at}).attested(d.GetAttested()) {
					fmt.Fprintf(c.out, "  %s: %s\n", f.label, f.value)
				}
				if state := d.GetAttested().GetReading().GetState(); state != posturev1.ReadingState_READING_STATE_OBSERVED {
					return errors.New("the TPM vouches for nothing")
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&req.Quote, "quote", false, "with a quote of its TPM")
	return cmd
}
