//go:build linux

package packages

import (
	"strings"
	"testing"
)

// TestUnitsAreHardened holds the exposure that systemd computes for each unit
// under what was promised: 4.0 for the agent, 3.0 for gate and collector.
func TestUnitsAreHardened(t *testing.T) {
	need(t, "systemd-analyze")
	for unit, tenths := range map[string]string{"agent": "40", "collector": "30", "gate": "30"} {
		t.Run(unit, func(t *testing.T) {
			out, err := run(t, repository(t), nil, "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold="+tenths,
				"installer/systemd/pfoertner-"+unit+".service")
			if err != nil || !strings.Contains(out, "Overall exposure level") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestVersionsInTheSpellingOfEachPackage covers what git describe says.
func TestVersionsInTheSpellingOfEachPackage(t *testing.T) {
	for describe, want := range map[string]string{
		"v1.2.3":              "package=1.2.3\nmsi=1.2.3000\n",
		"1.2.3":               "package=1.2.3\nmsi=1.2.3000\n",
		"v1.2.3-4-gabc1234":   "package=1.2.3+4.gabc1234\nmsi=1.2.3004\n",
		"v1.2.3-dirty":        "package=1.2.3+0.dirty\nmsi=1.2.3000\n",
		"v1.2.3-4-gabc-dirty": "package=1.2.3+4.gabc.dirty\nmsi=1.2.3004\n",
		"abc1234":             "package=0.0.0+99.gabc1234\nmsi=0.0.99\n",
		"abc1234-dirty":       "package=0.0.0+99.gabc1234.dirty\nmsi=0.0.99\n",
		"v1.2.65":             "package=1.2.65\nmsi=1.2.65000\n",
		"v1.2.66":             "", // 66000 is above 65535
		"v1.2.3-1000-gabc":    "", // would be 1.2.4
		"v256.0.0":            "",
		"v1.2":                "",
		"v1.2.3-rc1":          "",
		"unknown":             "",
		"":                    "",
	} {
		out, err := run(t, repository(t), nil, "installer/version", describe, "99")
		if want == "" && err == nil || want != "" && out != want {
			t.Errorf("%q: %q, %v; want %q", describe, out, err, want)
		}
	}
}
