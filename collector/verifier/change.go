package verifier

import (
	"strconv"
	"strings"

	"pfoertner/collector/appraisal"
	"pfoertner/collector/audit"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// changeRecord says that a verdict flipped, from what to what, and because of
// which rules.
func changeRecord(in appraisal.Input, res *posturev1.Result) audit.Record {
	from := "none"
	if in.Previous != nil {
		from = verdictWord(in.Previous.GetVerdict())
	}
	details := map[string]string{
		"from": from, "to": verdictWord(res.GetVerdict()),
		"policy": res.GetPolicy(), "policy_version": strconv.FormatUint(res.GetPolicyVersion(), 10),
	}
	if res.GetCode() != "" {
		details["code"] = res.GetCode()
	}
	if rules := causes(res); rules != "" {
		details["rules"] = rules
	}
	return audit.Record{
		At: in.Now, Kind: "verdict.changed", DeviceID: in.Device.GetId(),
		AssetNumber: in.Device.GetAsset().GetAssetNumber(), Details: details,
	}
}

// causes are the rules that keep the device out.
func causes(res *posturev1.Result) string {
	var rules []string
	for _, f := range res.GetFindings() {
		if f.GetEffect() == posturev1.Effect_EFFECT_DENY || f.GetEffect() == posturev1.Effect_EFFECT_QUARANTINE {
			rules = append(rules, f.GetRule())
		}
	}
	return strings.Join(rules, " ")
}

// verdictWord is a verdict in records and metrics.
func verdictWord(v posturev1.Verdict) string {
	switch v {
	case posturev1.Verdict_VERDICT_ADMIT:
		return "admit"
	case posturev1.Verdict_VERDICT_QUARANTINE:
		return "quarantine"
	}
	return "deny"
}
