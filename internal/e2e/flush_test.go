//go:build linux

package e2e_test

import "testing"

// A firewall that is reloaded often begins with `flush ruleset`, which takes the
// gate's table with it. Then the gate puts it back, and what was closed stays
// closed.
func TestFlushedRulesetIsPutBack(t *testing.T) {
	s := newSite(t, setting{})
	s.change(t, "feed-stale")
	s.startAgent(t, quarantine)
	s.dialVPN(t)
	flows(t, s.quarantined()...)
	// What passes in the moment without a table shall not wait for neighbours.
	for _, address := range []string{administration, administration6} {
		s.gateway.Run(t, "ping", "-n", "-c", "1", "-W", "10", address)
	}
	s.gateway.Run(t, "nft", "flush", "ruleset")
	for _, p := range s.guarded() {
		p.AwaitSilence(t, still, soon, s.quarantined()...)
		t.Logf("while there was no table: %s", p)
	}
	flows(t, s.quarantined()...)
	closed(t, s.guarded()...)

	s.change(t, "compliant")
	flows(t, s.all()...)
	s.gateway.Run(t, "nft", "flush", "ruleset")
	flows(t, s.all()...)
	s.change(t, "unencrypted")
	for _, p := range s.all() {
		p.AwaitSilence(t, still, soon)
	}
	closed(t, s.all()...)
}
