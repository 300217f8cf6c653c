package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/appraisal"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

func (c *client) devices() *cobra.Command {
	req := &fleetv1.ListDevicesRequest{}
	cmd := &cobra.Command{
		Use:   "devices [DEVICE]",
		Short: "List devices, or show one by asset number or device id",
		Long: `List devices, or show one by asset number or device id.

The filter is a CEL expression over device, asset, evidence, result and now:
  --filter 'result.verdict == DENY && asset.unit.startsWith("inneres/")'
  --filter 'evidence.patch.pending_security > 0'
  --filter 'asset.state == ACTIVE && !has(device.result)'
What a device has not reported reads as zero, and the zero verdict is DENY.
Counts are unsigned: write == 0u.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				fleet := fleetv1.NewFleetServiceClient(conn)
				if len(args) == 1 {
					answer, err := fleet.GetDevice(ctx, &fleetv1.GetDeviceRequest{Device: args[0]})
					if err != nil {
						return err
					}
					if c.json {
						return c.printJSON(answer.GetDevice())
					}
					return c.showDevice(answer.GetDevice())
				}
				return c.listDevices(ctx, fleet, req)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Filter, "filter", "", "CEL expression; empty lists all")
	f.StringVar(&req.OrderBy, "order-by", "asset_number", `asset_number, last_seen, verdict or unit; "-" before it reverses`)
	f.Uint32Var(&req.PageSize, "page-size", 500, "devices asked for at a time, at most 1000")
	return cmd
}

// listDevices follows the pages to the end.
func (c *client) listDevices(ctx context.Context, fleet fleetv1.FleetServiceClient, req *fleetv1.ListDevicesRequest) error {
	req.Summary = !c.json
	var rows [][]string
	for {
		page, err := fleet.ListDevices(ctx, req)
		if err != nil {
			return err
		}
		for _, d := range page.GetDevices() {
			if c.json {
				if err := c.printJSON(d); err != nil {
					return err
				}
			}
			rows = append(rows, deviceRow(d))
		}
		if req.PageToken == "" && page.GetNextPageToken() == "" {
			break
		}
		fmt.Fprintf(c.progress, "\r%d of %d", len(rows), page.GetTotal())
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			fmt.Fprintln(c.progress)
			break
		}
	}
	if c.json {
		return nil
	}
	return c.table("ASSET UNIT STATE VERDICT CODE ONLINE LAST-SEEN MARKS", rows)
}

func deviceRow(d *fleetv1.Device) []string {
	verdict, online := "–", "no"
	if d.GetResult() != nil {
		verdict = word(d.GetResult().GetVerdict())
	}
	if d.GetOnline() {
		online = "yes"
	}
	return []string{
		d.GetAsset().GetAssetNumber(), dash(d.GetAsset().GetUnit()), word(d.GetAsset().GetState()),
		verdict, dash(d.GetResult().GetCode()), online, at(d.GetLastSeenAt()), marks(d),
	}
}

// showDevice prints what is known of one device, line by line: what the
// inventory says, what binds it to its hardware, what its TPM vouches for, and
// apart from that what the notebook says of itself.
func (c *client) showDevice(d *fleetv1.Device) error {
	a, res := d.GetAsset(), d.GetResult()
	seen := at(d.GetLastSeenAt())
	if d.GetOnline() {
		seen += ", online"
	}
	verdict := "–"
	if res != nil {
		verdict = fmt.Sprintf("%s by %s, version %d", word(res.GetVerdict()), res.GetPolicy(), res.GetPolicyVersion())
		if res.GetCode() != "" {
			verdict += ", code " + res.GetCode()
		}
	}
	i := identity{when: at}
	w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
	rows := func(facts ...fact) {
		for _, f := range facts {
			fmt.Fprintf(w, "%s\t%s\n", f.label, dash(f.value))
		}
	}
	rows(
		fact{"asset", a.GetAssetNumber()},
		fact{"device", d.GetId()},
		fact{"state", word(a.GetState())},
		fact{"unit", a.GetUnit()},
		fact{"groups", strings.Join(a.GetGroups(), ", ")},
		fact{"model", strings.TrimSpace(a.GetVendor() + " " + a.GetModel())},
		fact{"serial", a.GetSerial()},
	)
	rows(i.about(d)...)
	rows(
		fact{"enrolled", at(d.GetEnrolledAt())},
		fact{"certificate until", at(d.GetCertificateExpiresAt())},
		fact{"last seen", seen},
		fact{"verdict", verdict},
	)
	if d.GetId() != "" {
		fmt.Fprintln(w, "\nthe TPM vouches for")
		rows(i.attested(d.GetAttested())...)
		fmt.Fprintln(w, "\nthe notebook reports itself")
		boot := d.GetEvidence().GetSecureBoot()
		rows(
			fact{"evidence", at(res.GetCollectedAt())},
			fact{"agent", d.GetAgentVersion()},
			fact{"Secure Boot", i.secureBoot(boot.GetEnabled(), boot.GetSetupMode())},
		)
	}
	fmt.Fprintf(w, "\n\"explain %s\" says why; --json shows all of the evidence.\n", a.GetAssetNumber())
	return w.Flush()
}

func (c *client) explain() *cobra.Command {
	return &cobra.Command{
		Use:   "explain DEVICE|CODE",
		Short: "Say why a device stands where it stands, or what a refusal code means",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := explainEither(ctx, fleetv1.NewFleetServiceClient(conn), args[0])
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(answer)
				}
				for i, e := range answer.GetExplanations() {
					if i > 0 {
						fmt.Fprintln(c.out, strings.Repeat("─", 72))
					}
					fmt.Fprint(c.out, appraisal.Explain(e, c.lang, time.Local), identityOf(e, c.lang))
				}
				return nil
			})
		},
	}
}

// explainEither takes the word for a device first, then for a code: the person
// at the telephone should not have to know which it is.
func explainEither(ctx context.Context, fleet fleetv1.FleetServiceClient, word string) (*fleetv1.ExplainResponse, error) {
	answer, err := fleet.Explain(ctx, &fleetv1.ExplainRequest{Subject: &fleetv1.ExplainRequest_Device{Device: word}})
	if status.Code(err) != codes.NotFound {
		return answer, err
	}
	answer, err = fleet.Explain(ctx, &fleetv1.ExplainRequest{Subject: &fleetv1.ExplainRequest_Code{Code: word}})
	if code := status.Code(err); code == codes.NotFound || code == codes.InvalidArgument {
		return nil, fmt.Errorf("%q is no asset number, no device id and no refusal code that is still kept", word)
	}
	return answer, err
}

func (c *client) sessions() *cobra.Command {
	req := &fleetv1.ListSessionsRequest{}
	cmd := &cobra.Command{
		Use: "sessions", Short: "List live VPN sessions", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewFleetServiceClient(conn).ListSessions(ctx, req)
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(answer)
				}
				i := identity{when: at}
				var rows [][]string
				for _, s := range answer.GetSessions() {
					verdict := word(s.GetVerdict())
					if s.GetCutPending() {
						verdict += " (cut not confirmed)"
					}
					rows = append(rows, []string{
						s.GetGateway(), dash(s.GetAssetNumber()), verdict, dash(i.proof(s)),
						dash(strings.Join(s.GetTunnelAddresses(), ",")), at(s.GetSince()), at(s.GetLeaseEndsAt()),
					})
				}
				return c.table("GATEWAY ASSET VERDICT TUNNEL-PROOF ADDRESS SINCE LEASE-ENDS", rows)
			})
		},
	}
	cmd.Flags().StringVar(&req.Gateway, "gateway", "", "only this gateway's")
	return cmd
}

func (c *client) events() *cobra.Command {
	req := &fleetv1.ListEventsRequest{}
	var since time.Duration
	cmd := &cobra.Command{
		Use: "events [DEVICE]", Short: "List what happened, newest first", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				req.Device = args[0]
			}
			if since < 0 {
				return errors.New("--since: must not be negative")
			}
			if since > 0 {
				req.Since = timestamppb.New(time.Now().Add(-since))
			}
			return c.ask(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				answer, err := fleetv1.NewFleetServiceClient(conn).ListEvents(ctx, req)
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(answer)
				}
				var rows [][]string
				for _, e := range answer.GetEvents() {
					rows = append(rows, []string{
						fmt.Sprint(e.GetSequence()), at(e.GetAt()), e.GetKind(), dash(e.GetActor()),
						dash(cmp.Or(e.GetAssetNumber(), e.GetDeviceId())), details(e.GetDetails()),
					})
				}
				return c.table("SEQ AT KIND ACTOR DEVICE DETAILS", rows)
			})
		},
	}
	cmd.Flags().DurationVar(&since, "since", 0, "only this far back: 24h")
	cmd.Flags().Uint32Var(&req.Limit, "limit", 100, "at most so many, up to 1000")
	return cmd
}

// details are those of an event in one cell; empty ones say nothing.
func details(d map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(d)) {
		if d[k] != "" {
			parts = append(parts, k+"="+d[k])
		}
	}
	return strings.Join(parts, " ")
}
