package admission

import (
	"regexp"
	"testing"
	"time"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func TestDecide(t *testing.T) {
	now := time.Unix(1_795_000_000, 0)
	later := now.Add(time.Minute)
	const (
		admit      = posturev1.Verdict_VERDICT_ADMIT
		quarantine = posturev1.Verdict_VERDICT_QUARANTINE
		deny       = posturev1.Verdict_VERDICT_DENY
		active     = fleetv1.AssetState_ASSET_STATE_ACTIVE
	)
	judged := func(state fleetv1.AssetState, v posturev1.Verdict, until time.Time) *Facts {
		return &Facts{DeviceID: "d", State: state, Appraised: true, Verdict: v, ExpiresAt: until}
	}
	for name, c := range map[string]struct {
		facts *Facts
		want  Decision
	}{
		"unknown identity":          {nil, Decision{}},
		"nothing known of it":       {&Facts{}, Decision{Cause: NotEnrolled}},
		"expected":                  {judged(fleetv1.AssetState_ASSET_STATE_EXPECTED, admit, later), Decision{Cause: NotEnrolled}},
		"pending":                   {judged(fleetv1.AssetState_ASSET_STATE_PENDING, admit, later), Decision{Cause: NotEnrolled}},
		"suspended":                 {judged(fleetv1.AssetState_ASSET_STATE_SUSPENDED, admit, later), Decision{Cause: Suspended}},
		"retired":                   {judged(fleetv1.AssetState_ASSET_STATE_RETIRED, admit, later), Decision{Cause: Retired}},
		"a state of the future":     {judged(99, admit, later), Decision{Cause: NotEnrolled}},
		"active without an id":      {&Facts{State: active, Appraised: true, Verdict: admit, ExpiresAt: later}, Decision{Cause: NotEnrolled}},
		"never reported":            {&Facts{DeviceID: "d", State: active}, Decision{quarantine, NeverReported, time.Time{}}},
		"admitted":                  {judged(active, admit, later), Decision{admit, Appraised, later}},
		"admitted until now":        {judged(active, admit, now), Decision{quarantine, Stale, time.Time{}}},
		"admitted without an end":   {judged(active, admit, time.Time{}), Decision{quarantine, Stale, time.Time{}}},
		"quarantined":               {judged(active, quarantine, later), Decision{quarantine, Appraised, later}},
		"quarantined, expired":      {judged(active, quarantine, now), Decision{quarantine, Appraised, time.Time{}}},
		"denied":                    {judged(active, deny, later), Decision{deny, Appraised, time.Time{}}},
		"denied, expired":           {judged(active, deny, now), Decision{deny, Appraised, time.Time{}}},
		"a verdict of the future":   {judged(active, 99, later), Decision{deny, Appraised, time.Time{}}},
		"a verdict below all":       {judged(active, -1, later), Decision{deny, Appraised, time.Time{}}},
		"denied, but never judged?": {&Facts{DeviceID: "d", State: active, Verdict: admit, ExpiresAt: later}, Decision{quarantine, NeverReported, time.Time{}}},
	} {
		if got := Decide(c.facts, now); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestEveryRefusalIsOneShortLineWithItsCode(t *testing.T) {
	line := regexp.MustCompile(`^[^\n"\\]+$`)
	code := regexp.MustCompile(`^[2-9A-HJKMNP-TV-Z]{3}-[2-9A-HJKMNP-TV-Z]{3}$`)
	seen := map[string]Cause{}
	for c := Unknown; c <= Appraised; c++ {
		f := &Facts{DeviceID: "0b7e6c1e-7a52-4c35-9a6e-3f3f6d8f3a11"}
		d := Decision{Cause: c}
		k := refusalCode(f, d, fingerprint{})
		if !code.MatchString(k) {
			t.Errorf("%v: code %q", c, k)
		}
		if other, again := seen[k]; again {
			t.Errorf("%v and %v share the code %q", c, other, k)
		}
		seen[k] = c
		m := message(f, d, k)
		for _, text := range []string{m.GetDe(), m.GetEn()} {
			if !line.MatchString(text) || len(text) > 200 {
				t.Errorf("%v: %d bytes: %q", c, len(text), text)
			}
		}
		if again := refusalCode(f, d, fingerprint{}); again != k {
			t.Errorf("%v: the same cause has the codes %q and %q", c, k, again)
		}
		if c.String() == "" || c.String()[:1] == "c" {
			t.Errorf("cause %d has no name", c)
		}
	}
}
