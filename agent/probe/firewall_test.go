package probe

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// described writes engines as "name service/rules/drop".
func described(f *posturev1.Firewall) string {
	short := func(t posturev1.Ternary) string {
		return map[posturev1.Ternary]string{yes: "yes", no: "no", unknown: "?"}[t]
	}
	var lines []string
	for _, e := range f.Engines {
		lines = append(lines, fmt.Sprintf("%s %s/%s/%s", e.Engine, short(e.ServiceActive), short(e.RulesLoaded), short(e.InboundDefaultDrop)))
	}
	return strings.Join(lines, ", ")
}

func TestFirewall(t *testing.T) {
	firewalld := fstest.MapFS{"usr/sbin/firewalld": file("")}
	ufw := fstest.MapFS{"usr/sbin/ufw": file(""), "etc/ufw/ufw.conf": file("# comment\nENABLED=yes\n")}
	ufwOff := fstest.MapFS{"usr/sbin/ufw": file(""), "etc/ufw/ufw.conf": file("ENABLED=no\n")}
	for _, c := range []struct {
		name           string
		files          fstest.MapFS
		chains         []FilterChain
		units          map[string]bool
		want           string
		contradictions int
	}{
		{"nothing", fstest.MapFS{}, nil, nil, "nftables no/no/no", 0},
		{"drops by policy", fstest.MapFS{}, []FilterChain{{Family: "inet", Table: "filter", Name: "input", Drop: true, Rules: 4}},
			map[string]bool{"nftables.service": true}, "nftables yes/yes/yes", 0},
		{"rejects by its last rule", fstest.MapFS{}, []FilterChain{{Family: "inet", Table: "f", Name: "in", Rules: 4, Rejects: true}},
			map[string]bool{"nftables.service": true}, "nftables yes/yes/yes", 0},
		{"service active, nothing loaded", fstest.MapFS{}, nil, map[string]bool{"nftables.service": true}, "nftables yes/no/no", 1},
		{"service active, an empty chain", fstest.MapFS{}, []FilterChain{{Family: "inet", Table: "filter", Name: "input"}},
			map[string]bool{"nftables.service": true}, "nftables yes/no/no", 1},
		{"loaded without its service", fstest.MapFS{}, []FilterChain{{Family: "inet", Table: "x", Name: "in", Drop: true}},
			map[string]bool{"nftables.service": false}, "nftables no/yes/yes", 0},
		{"IPv6 is left open", fstest.MapFS{}, []FilterChain{{Family: "ip", Table: "filter", Name: "INPUT", Drop: true}}, nil, "nftables no/yes/no", 0},
		{"both families apart", fstest.MapFS{}, []FilterChain{{Family: "ip", Table: "filter", Name: "INPUT", Drop: true}, {Family: "ip6", Table: "filter", Name: "INPUT", Drop: true}},
			nil, "nftables no/yes/yes", 0},
		{"firewalld", firewalld, []FilterChain{{Family: "inet", Table: "firewalld", Name: "filter_INPUT", Rules: 5, Rejects: true}},
			map[string]bool{"firewalld.service": true}, "nftables no/yes/yes, firewalld yes/yes/yes", 0},
		{"firewalld whose rules were flushed", firewalld, nil, map[string]bool{"firewalld.service": true},
			"nftables no/no/no, firewalld yes/no/no", 1},
		{"firewalld stopped, its rules left", firewalld, []FilterChain{{Family: "inet", Table: "firewalld", Name: "filter_INPUT", Rules: 5}},
			map[string]bool{"firewalld.service": false}, "nftables no/yes/no, firewalld no/yes/no", 1},
		{"ufw", ufw, []FilterChain{{Family: "ip", Table: "filter", Name: "INPUT", Drop: true, Rules: 6}, {Family: "ip6", Table: "filter", Name: "INPUT", Drop: true, Rules: 6}},
			map[string]bool{"ufw.service": true}, "nftables no/yes/yes, ufw yes/yes/yes", 0},
		{"ufw active but switched off", ufwOff, nil, map[string]bool{"ufw.service": true}, "nftables no/no/no, ufw yes/no/no", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := Host{Files: c.files, Firewall: fakeFirewall{chains: c.chains}, Bus: fakeBus{units: c.units}}
			got := observe(t, h, firewallProbe()).Firewall
			wantState(t, got.Reading, observed)
			if described(got) != c.want || len(got.Contradictions) != c.contradictions {
				t.Errorf("%s, want %s; contradictions %v, want %d", described(got), c.want, got.Contradictions, c.contradictions)
			}
		})
	}
}

func TestFirewallWithoutRightsIsUnknown(t *testing.T) {
	h := Host{Files: fstest.MapFS{}, Firewall: fakeFirewall{err: errNoRights}, Bus: fakeBus{units: map[string]bool{"nftables.service": true}}}
	got := observe(t, h, firewallProbe()).Firewall
	wantState(t, got.Reading, failed)
	if described(got) != "nftables yes/?/?" || got.Reading.Reason != "loaded rules: operation not permitted" {
		t.Errorf("%s, reason %q", described(got), got.Reading.Reason)
	}
	wantState(t, observe(t, Host{}, firewallProbe()).Firewall.Reading, failed)
}
