package appraisal

import (
	"testing"
	"time"
)

func TestTunnelProofIsMandatoryWhereThePolicySaysSo(t *testing.T) {
	for _, tt := range []struct {
		name, policy string
		required     map[string]bool
		within       time.Duration
	}{
		{"nowhere", "", map[string]bool{"gw-1": false, "": false, "*": false}, 0},
		{"everywhere", `tunnel_proof: {gateways: ["*"], within: 90s}`,
			map[string]bool{"gw-1": true, "": true, "berlin/mitte.gw": true}, 90 * time.Second},
		{"by name", "tunnel_proof: {gateways: [gw-1, gw-2]}",
			map[string]bool{"gw-1": true, "gw-2": true, "gw-3": false, "gw-10": false, "a-gw-1": false, "": false, "GW-1": true}, time.Minute},
		{"by pattern", `tunnel_proof: {gateways: ["Berlin-*", "*.test", "a*c*e"]}`,
			map[string]bool{"berlin-": true, "berlin-1": true, "BERLIN-x/y": true, "berlin": false, "x.test": true, "x.test.de": false,
				"ace": true, "abcde": true, "acce": true, "ac": false, "aec": false}, time.Minute},
		{"a dot is a dot", `tunnel_proof: {gateways: ["gw.1"]}`, map[string]bool{"gw.1": true, "gwx1": false}, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := onePolicy(t, "yes(evidence.tpm.present)", "", tt.policy+"\n")
			for gateway, want := range tt.required {
				within, required := p.TunnelProof(gateway)
				if required != want || required && within != tt.within || !required && within != 0 {
					t.Errorf("%q: %v within %v, want %v", gateway, required, within, want)
				}
			}
		})
	}
	if within, required := shipped(t).TunnelProof("gw-1"); required || within != 0 {
		t.Errorf("the shipped policy demands proof within %v", within)
	}
}

func TestTunnelProofNeedsAGatewayAndATimeThatIsPossible(t *testing.T) {
	for text, want := range map[string]string{
		"tunnel_proof: {within: 60s}":                      `key "gateways" is missing`,
		"tunnel_proof: {gateways: []}":                     `no gateway is named: write "*" for all, or leave tunnel_proof out`,
		"tunnel_proof: {gateways: gw-1}":                   "a list is expected here",
		`tunnel_proof: {gateways: ["gw 1"]}`:               `the name of a gateway is expected here, in which * stands for anything: "gw-berlin", "gw-*"`,
		`tunnel_proof: {gateways: ["gw-[12]"]}`:            `the name of a gateway is expected here, in which * stands for anything: "gw-berlin", "gw-*"`,
		`tunnel_proof: {gateways: ["*"], within: 9s}`:      "between 10s and 10m are taken",
		`tunnel_proof: {gateways: ["*"], within: 11m}`:     "between 10s and 10m are taken",
		`tunnel_proof: {gateways: ["*"], within: soon}`:    `a duration such as "45m", "36h" or "14d" is expected here`,
		`tunnel_proof: {gateways: ["*"], mandatory: true}`: `unknown key "mandatory": known are gateways, within`,
		`tunnel_proof: {gateways: ["*****"]}`:              "at most 4 * are taken in one name",
	} {
		p, errs := Compile([]byte("name: a\nfreshness: {max_age: 45m}\n" + text + `
rules:
  - {id: a, title: {de: A, en: A}, remedy: {de: A, en: A}, on_fail: deny, require: yes(evidence.tpm.present)}
`))
		if p != nil || len(errs) != 1 || errs[0].GetMessage() != want || errs[0].GetLine() != 3 {
			t.Errorf("%s: %v", text, errs)
		}
	}
}
