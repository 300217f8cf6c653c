package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/appraisal"
	"pfoertner/internal/posture"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// maxEvidenceFile is far above the text of any evidence within the limits.
const maxEvidenceFile = 16 << 20

// appraise judges evidence without a collector. Who the notebook is stands in
// no evidence, so it is taken for a known and active one.
func (c *client) appraise() *cobra.Command {
	var policy, references string
	cmd := &cobra.Command{
		Use:   "appraise FILE|-",
		Short: "Judge evidence offline, as pfoertner-agent evidence --json prints it",
		Long: "Judges evidence offline, as `pfoertner-agent evidence --json` prints it, by the shipped policy and reference\n" +
			"values or by those given, at the moment when it was read. The notebook is taken for a known and active one;\n" +
			"what its TPM has to vouch for is left out.\n\n" +
			"    pfoertner-agent evidence --replay CAPTURE --json | pfoertner-collector appraise -",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := appraisalInput(policy, references)
			if err != nil {
				return err
			}
			in.Device = &fleetv1.Device{
				Id:    "offline",
				Asset: &fleetv1.Asset{AssetNumber: args[0], State: fleetv1.AssetState_ASSET_STATE_ACTIVE},
			}
			if in.Evidence, err = readEvidence(cmd.InOrStdin(), args[0]); err != nil {
				return err
			}
			if in.Now, err = readAt(in.Evidence); err != nil {
				return err
			}
			in.CollectedAt = in.Now
			// Evidence alone comes without a quote: what a TPM has to vouch for is
			// left out, and where the key is stays unknown.
			in.Attested = &posturev1.Attestation{Reading: &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_NOT_APPLICABLE}}
			in.Device.Asset.SoftwareKey = &fleetv1.SoftwareKeyPermission{Until: timestamppb.New(in.Now.Add(24 * time.Hour))}
			result := appraisal.Appraise(in)
			x := &fleetv1.Explanation{
				Device: in.Device, Result: result, Verdict: result.GetVerdict(), Reason: appraisal.RefusalText(result),
			}
			if c.json {
				return c.printJSON(result)
			}
			_, err = fmt.Fprint(c.out, appraisal.Explain(x, c.lang, time.Local))
			return err
		},
	}
	cmd.Flags().StringVar(&policy, "policy", "", "policy `file` (default: the shipped one)")
	cmd.Flags().StringVar(&references, "references", "", "`file` with reference values; a signature in it is not verified (default: the shipped ones)")
	return cmd
}

// appraisalInput is policy and reference values; empty names stand for what is
// shipped.
func appraisalInput(policyFile, referencesFile string) (appraisal.Input, error) {
	var in appraisal.Input
	policy, err := fileOr(policyFile, appraisal.DefaultPolicy())
	if err != nil {
		return in, err
	}
	var faults []*fleetv1.PolicyError
	if in.Policy, faults = appraisal.Compile(policy); len(faults) > 0 {
		return in, firstFault(policyFile, "the shipped policy", faults)
	}
	references, err := fileOr(referencesFile, appraisal.DefaultReferencesFile())
	if err != nil {
		return in, err
	}
	content, _, _ := bytes.Cut(references, []byte("\n-----BEGIN "))
	if in.References, faults = appraisal.ParseReferences(content); len(faults) > 0 {
		return in, firstFault(referencesFile, "the shipped reference values", faults)
	}
	return in, nil
}

func fileOr(name string, shipped []byte) ([]byte, error) {
	if name == "" {
		return shipped, nil
	}
	return os.ReadFile(name)
}

func firstFault(name, shipped string, faults []*fleetv1.PolicyError) error {
	if name == "" {
		name = shipped
	}
	return fmt.Errorf("%s:%d:%d: %s", name, faults[0].GetLine(), faults[0].GetColumn(), faults[0].GetMessage())
}

// readEvidence reads protobuf's JSON; "-" is standard input.
func readEvidence(in io.Reader, name string) (*posturev1.Evidence, error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	content, err := io.ReadAll(io.LimitReader(in, maxEvidenceFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	if len(content) > maxEvidenceFile {
		return nil, fmt.Errorf("reading evidence: larger than %d bytes", maxEvidenceFile)
	}
	ev := &posturev1.Evidence{}
	if err := protojson.Unmarshal(content, ev); err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	if err := posture.CheckLimits(ev); err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	return ev, nil
}

// readAt is when the newest section was read. Judged at any later moment the
// evidence would only be stale.
func readAt(ev *posturev1.Evidence) (time.Time, error) {
	var at time.Time
	for _, section := range posture.Sections() {
		if t := posture.ReadingOf(ev, section).GetObservedAt(); t != nil && t.AsTime().After(at) {
			at = t.AsTime()
		}
	}
	if at.IsZero() {
		return at, errors.New("reading evidence: no section says when it was read")
	}
	return at, nil
}
