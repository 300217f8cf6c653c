package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// takesTwo is said of orders that one operator proposes and another carries
// out.
const takesTwo = `

It takes two: the first operator's order is a proposal for 72 h, the same order
by another operator carries it out. "proposals" lists those that wait.`

func (c *client) approve() *cobra.Command {
	a := &fleetv1.Approve{}
	cmd := c.order("approve ASSET --fingerprint FINGERPRINT --reason TEXT", "Accept the enrolment of a notebook that waits (two operators)",
		"Accept the enrolment of a notebook that waits.\n\nThe fingerprint is the one that `pfoertner-agent id` shows on the notebook\nitself: read it there, not here."+takesTwo,
		func(o *fleetv1.Order) error {
			if strings.TrimSpace(a.Fingerprint) == "" {
				return errors.New("--fingerprint: the one that `pfoertner-agent id` shows on the notebook is needed")
			}
			o.Action = &fleetv1.Order_Approve{Approve: a}
			return nil
		})
	cmd.Flags().StringVar(&a.Fingerprint, "fingerprint", "", "as `pfoertner-agent id` shows it on the notebook; case and hyphens do not matter")
	return cmd
}

func (c *client) reject() *cobra.Command {
	return c.order("reject ASSET --reason TEXT", "Refuse the enrolment of a notebook that waits; its TPM cannot ask again",
		"", func(o *fleetv1.Order) error {
			o.Action = &fleetv1.Order_Reject{Reject: &fleetv1.Reject{}}
			return nil
		})
}

func (c *client) suspend() *cobra.Command {
	return c.order("suspend ASSET --reason TEXT", "Suspend a device: connection and VPN sessions end at once", "", suspend)
}

func (c *client) resume() *cobra.Command {
	return c.order("resume ASSET --reason TEXT", "Let a suspended device in again (after an alarm: two operators)",
		"Let a suspended device in again.\n\nAfter an alarm its keys are dropped: it has to enrol anew, and keeps its device id."+takesTwo, resume)
}

func (c *client) retire() *cobra.Command {
	return c.order("retire ASSET --reason TEXT", "Retire a device for good; its TPM is refused from then on", "", retire)
}

func suspend(o *fleetv1.Order) error {
	o.Action = &fleetv1.Order_Suspend{Suspend: &fleetv1.Suspend{}}
	return nil
}

func resume(o *fleetv1.Order) error {
	o.Action = &fleetv1.Order_Resume{Resume: &fleetv1.Resume{}}
	return nil
}

func retire(o *fleetv1.Order) error {
	o.Action = &fleetv1.Order_Retire{Retire: &fleetv1.Retire{}}
	return nil
}

// setState is how earlier versions spelled three of the orders.
func (c *client) setState() *cobra.Command {
	o := &fleetv1.Order{}
	states := map[string]func(*fleetv1.Order) error{"suspend": suspend, "resume": resume, "retire": retire}
	cmd := &cobra.Command{
		Use: "state DEVICE suspend|resume|retire --reason TEXT", Short: "The same as suspend, resume and retire",
		Hidden: true, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			action, ok := states[args[1]]
			if !ok {
				return fmt.Errorf("%q is none of suspend, resume, retire", args[1])
			}
			o.Device = args[0]
			return c.give(cmd.Context(), o, action)
		},
	}
	cmd.Flags().StringVar(&o.Reason, "reason", "", "why, for the audit log")
	return cmd
}

func (c *client) reimageWindow() *cobra.Command {
	var lifetime time.Duration
	cmd := c.order("reimage-window ASSET --reason TEXT", "Let a device enrol anew without a token, with the TPM that it has",
		"Let a device enrol anew without a token, with the TPM that it has: after its disk\nwas set up anew, or its TPM cleared.",
		func(o *fleetv1.Order) error {
			if lifetime <= 0 {
				return errors.New("--for: has to be more than nothing")
			}
			o.Action = &fleetv1.Order_OpenReimageWindow{OpenReimageWindow: &fleetv1.OpenReimageWindow{Lifetime: durationpb.New(lifetime)}}
			return nil
		})
	cmd.Flags().DurationVar(&lifetime, "for", 24*time.Hour, "how long, at most 168h")
	return cmd
}

func (c *client) tpmExchange() *cobra.Command {
	return c.order("tpm-exchange ASSET --reason TEXT", "Prepare for another TPM, after the mainboard was changed (two operators)",
		"Prepare for another TPM, after the mainboard was changed. The old TPM is blocked;\nthe new one enrols with a token and waits for approval."+takesTwo,
		func(o *fleetv1.Order) error {
			o.Action = &fleetv1.Order_ExchangeTpm{ExchangeTpm: &fleetv1.ExchangeTpm{}}
			return nil
		})
}

func (c *client) softwareKey() *cobra.Command {
	cmd := &cobra.Command{Use: "software-key", Short: "The exception for devices without a usable TPM"}
	var until string
	allow := c.order("allow ASSET --until DATE --reason TEXT", "Allow a key that is not bound to hardware (two operators)",
		"Allow a key that is not bound to hardware: whoever copies it is the device, until\nits next renewal. The exception ends by itself with the day given."+takesTwo,
		func(o *fleetv1.Order) error {
			end, err := endOfDay(until)
			if err != nil {
				return err
			}
			o.Action = &fleetv1.Order_AllowSoftwareKey{AllowSoftwareKey: &fleetv1.AllowSoftwareKey{Until: timestamppb.New(end)}}
			return nil
		})
	allow.Flags().StringVar(&until, "until", "", "last day of the exception, 2027-01-31; at most a year from now")
	revoke := c.order("revoke ASSET --reason TEXT", "End the exception at once", "",
		func(o *fleetv1.Order) error {
			o.Action = &fleetv1.Order_RevokeSoftwareKey{RevokeSoftwareKey: &fleetv1.RevokeSoftwareKey{}}
			return nil
		})
	cmd.AddCommand(allow, revoke)
	return cmd
}

// endOfDay is the end of a day as written. It is the same in every time zone:
// two operators who write the same day give the same order.
func endOfDay(written string) (time.Time, error) {
	day, err := time.Parse(time.DateOnly, written)
	if err != nil {
		return time.Time{}, fmt.Errorf("--until: %q is no day such as 2027-01-31", written)
	}
	return day.AddDate(0, 0, 1), nil
}

// lastDay is an end as endOfDay reads it; other moments in full.
func lastDay(end *timestamppb.Timestamp) string {
	if !end.IsValid() {
		return "–"
	}
	t := end.AsTime()
	if !t.Equal(t.Truncate(24 * time.Hour)) {
		return at(end)
	}
	return t.AddDate(0, 0, -1).Format(time.DateOnly)
}

// order is a command that gives one order about one asset; decide fills in
// what is ordered.
func (c *client) order(use, short, long string, decide func(*fleetv1.Order) error) *cobra.Command {
	o := &fleetv1.Order{}
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Device = args[0]
			return c.give(cmd.Context(), o, decide)
		},
	}
	cmd.Flags().StringVar(&o.Reason, "reason", "", "why, for the audit log and the second operator")
	return cmd
}

func (c *client) give(ctx context.Context, o *fleetv1.Order, decide func(*fleetv1.Order) error) error {
	if err := decide(o); err != nil {
		return err
	}
	if strings.TrimSpace(o.GetReason()) == "" {
		return errors.New("--reason: the audit log needs one")
	}
	return c.ask(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		answer, err := fleetv1.NewOrderServiceClient(conn).GiveOrder(ctx, &fleetv1.GiveOrderRequest{Order: o})
		if err != nil {
			return err
		}
		if c.json {
			return c.printJSON(answer)
		}
		if !answer.GetDone() {
			c.printProposed(answer.GetProposal())
			return nil
		}
		fmt.Fprintln(c.out, outcome(o, answer)+orderedBy(answer.GetProposal()))
		return nil
	})
}

// printProposed says what the first of two operators has to tell the second.
func (c *client) printProposed(p *fleetv1.Proposal) {
	fmt.Fprintf(c.out, "proposed by %s: %s\n", p.GetProposedBy(), orderLine(p))
	fmt.Fprintf(c.out, "Another operator has to give the same order until %s:\n", at(p.GetExpiresAt()))
	fmt.Fprintf(c.out, "  pfoertner-collector %s --reason …\n", orderLine(p))
}

// orderLine is an order as it is typed, without its reason.
func orderLine(p *fleetv1.Proposal) string {
	switch a := p.GetOrder().GetAction().(type) {
	case *fleetv1.Order_Approve:
		// The second operator is to compare it, not to copy it from here.
		return fmt.Sprintf("approve %s --fingerprint …", p.GetAssetNumber())
	case *fleetv1.Order_Reject:
		return "reject " + p.GetAssetNumber()
	case *fleetv1.Order_Suspend:
		return "suspend " + p.GetAssetNumber()
	case *fleetv1.Order_Resume:
		return "resume " + p.GetAssetNumber()
	case *fleetv1.Order_Retire:
		return "retire " + p.GetAssetNumber()
	case *fleetv1.Order_OpenReimageWindow:
		return fmt.Sprintf("reimage-window %s --for %s", p.GetAssetNumber(), a.OpenReimageWindow.GetLifetime().AsDuration())
	case *fleetv1.Order_ExchangeTpm:
		return "tpm-exchange " + p.GetAssetNumber()
	case *fleetv1.Order_AllowSoftwareKey:
		return fmt.Sprintf("software-key allow %s --until %s", p.GetAssetNumber(), lastDay(a.AllowSoftwareKey.GetUntil()))
	case *fleetv1.Order_RevokeSoftwareKey:
		return "software-key revoke " + p.GetAssetNumber()
	}
	return "an order that this version does not know, about " + p.GetAssetNumber()
}

// outcome says what an order that was carried out has changed.
func outcome(o *fleetv1.Order, answer *fleetv1.GiveOrderResponse) string {
	a := answer.GetDevice().GetAsset()
	is := fmt.Sprintf("%s is %s", a.GetAssetNumber(), word(a.GetState()))
	switch o.GetAction().(type) {
	case *fleetv1.Order_Approve:
		return a.GetAssetNumber() + " is approved: it becomes ACTIVE when the notebook asks again"
	case *fleetv1.Order_Reject:
		return is + ": the enrolment was refused, and that TPM cannot ask again"
	case *fleetv1.Order_OpenReimageWindow:
		return fmt.Sprintf("%s may enrol anew with its own TPM, without a token, until %s", a.GetAssetNumber(), at(a.GetReimageUntil()))
	case *fleetv1.Order_ExchangeTpm:
		return is + ": its TPM is blocked; a new one enrols with a token and waits for approval"
	case *fleetv1.Order_AllowSoftwareKey:
		return fmt.Sprintf("%s may use a key that is not bound to hardware until %s", a.GetAssetNumber(), lastDay(a.GetSoftwareKey().GetUntil()))
	case *fleetv1.Order_RevokeSoftwareKey:
		return is + ": its key may no longer be outside a TPM"
	}
	return is
}

// orderedBy names the two who have carried out a proposal.
func orderedBy(p *fleetv1.Proposal) string {
	if p.GetConfirmedBy() == "" {
		return ""
	}
	return fmt.Sprintf(" (ordered by %s and %s)", p.GetProposedBy(), p.GetConfirmedBy())
}

func (c *client) proposals() *cobra.Command {
	cmd := &cobra.Command{
		Use: "proposals", Short: "List the orders that wait for a second operator", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewOrderServiceClient(conn).ListProposals(ctx, &fleetv1.ListProposalsRequest{})
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(answer)
				}
				var rows [][]string
				for _, p := range answer.GetProposals() {
					rows = append(rows, []string{p.GetId(), orderLine(p), p.GetProposedBy(), at(p.GetProposedAt()), at(p.GetExpiresAt()), p.GetOrder().GetReason()})
				}
				return c.table("ID ORDER BY PROPOSED UNTIL REASON", rows)
			})
		},
	}
	cmd.AddCommand(&cobra.Command{
		Use: "withdraw ID", Short: "End a proposal; any operator may", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				if _, err := fleetv1.NewOrderServiceClient(conn).WithdrawProposal(ctx, &fleetv1.WithdrawProposalRequest{Id: args[0]}); err != nil {
					return err
				}
				fmt.Fprintf(c.out, "%s is withdrawn\n", args[0])
				return nil
			})
		},
	})
	return cmd
}
