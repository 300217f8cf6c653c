package appraisal

import (
	"strings"
	"testing"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

func TestFiltersPickDevices(t *testing.T) {
	dev := activeDevice()
	dev.Evidence = goodEvidence()
	dev.Attested = goodAttestation()
	dev.LastSeenAt = ago(30 * day)
	dev.Result = Appraise(inputOf(t, shipped(t), dev.GetEvidence()))
	for expr, want := range map[string]bool{
		"": true, "  ": true,
		"result.verdict == ADMIT":                                   true,
		"result.verdict == DENY":                                    false,
		"result.verdict in [DENY, QUARANTINE]":                      false,
		"asset.state == ACTIVE && asset.unit.startsWith('inneres')": true,
		"asset.asset_number == 'NB-0042'":                           true,
		"device.last_seen_at < now - days(14)":                      true,
		"evidence.platform.distribution == 'debian'":                true,
		"result.findings.exists(f, f.outcome == FAIL)":              false,
		"evidence.volumes.fixed().all(v, v.encrypted())":            true,
		"evidence.vpn.scope_v4 == SPLIT":                            true,
		"evidence.vpn.scope_v6 == ROUTING_SCOPE_NONE":               true,
		"evidence.patch.pending_security > 1":                       true,
		"evidence.patch.pending_security == 2u":                     true,
		"device.online":                                             false,
		"attested.secure_boot == YES":                               true,
		"attested.reading.state != READING_STATE_OBSERVED":          false,
		"attested.incomplete != ''":                                 false,
		"attested.pcrs.exists(p, p.reference == REJECTED)":          false,
		"device.key.protection == KEY_PROTECTION_TPM":               true,
	} {
		t.Run(expr, func(t *testing.T) {
			f, err := CompileFilter(expr)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := f.Match(dev, noon); err != nil || got != want {
				t.Errorf("%v, %v; want %v", got, err, want)
			}
		})
	}
}

func TestFiltersOverDevicesThatNeverReported(t *testing.T) {
	f, err := CompileFilter("result.verdict == DENY && evidence.patch.pending_security == 0u && asset.unit == '' && attested.secure_boot == TERNARY_UNSPECIFIED")
	if err != nil {
		t.Fatal(err)
	}
	for name, dev := range map[string]*fleetv1.Device{"empty": {}, "nil": nil} {
		if got, err := f.Match(dev, noon); err != nil || !got {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	breaks, err := CompileFilter("evidence.volumes.volumes[0].fixed()")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := breaks.Match(activeDevice(), noon); got || err == nil || !strings.Contains(err.Error(), "NB-0042") {
		t.Errorf("%v, %v", got, err)
	}
}

func TestFilterErrorsNameThePlace(t *testing.T) {
	for expr, want := range map[string]string{
		"asset.unti == 'x'":              "line 1, column 6: undefined field 'unti'",
		"true &&\n  asset.state == DENY": "line 2, column 18: DENY is no AssetState",
		"asset.state == 3":               "line 1, column 16: a AssetState is compared with a number",
		"now":                            "line 1, column 1: the filter has to be true or false",
		"params.x == 1":                  "declares no such name",
		"result.verdict == NONE":         "NONE stands for different values",

		"evidence.patch.pending_security == 0": "line 1, column 33: found no matching overload for '_==_' applied to '(uint, int)': counts are unsigned, write 0u instead of 0",
		"evidence.patch.pending_security > ":   "line 1, column 35: the expression ends too early",
		"device.online and device.online":      `line 1, column 15: "and" does not belong here`,
	} {
		t.Run(expr, func(t *testing.T) {
			if _, err := CompileFilter(expr); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}
