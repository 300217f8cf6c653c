//go:build linux

package e2e_test

import (
	"bytes"
	"context"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"

	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	fleetSize = 50
	// reportsEach makes a thousand reports of the whole fleet.
	reportsEach = 20
)

// Case 11.
func TestAcknowledgedReportsSurviveKill(t *testing.T) {
	s := newNetwork(t)
	s.initCollector(t, setting{})
	s.startCollector(t)
	s.prepare(t)
	fleet := s.enrolFleet(t, fleetSize)
	head := s.isWhole(t, "")

	// In the middle of it.
	var total atomic.Int64
	var kill sync.Once
	reportAll(t.Context(), fleet, func() {
		if total.Add(1) >= fleetSize*reportsEach/2 {
			kill.Do(s.collector.Kill)
		}
	})
	if !s.collector.Ended() {
		t.Fatal("the collector was not killed")
	}
	t.Logf("%d of %d reports were acknowledged before the kill", total.Load(), fleetSize*reportsEach)

	s.startCollector(t)
	head = s.isWhole(t, head)
	s.holds(t, fleet)

	// All go on where they were.
	for _, err := range reportAll(t.Context(), fleet, func() { total.Add(1) }) {
		t.Error(err)
	}
	if n := total.Load(); n != fleetSize*reportsEach {
		t.Errorf("%d reports were acknowledged, want %d", n, fleetSize*reportsEach)
	}
	s.holds(t, fleet)
	s.isWhole(t, head)
}

// reportAll lets the whole fleet report at the same time until all is
// acknowledged or its streams end, and returns why they ended.
func reportAll(ctx context.Context, fleet []*member, acknowledged func()) (ended []error) {
	errs := make([]error, len(fleet))
	var reporting sync.WaitGroup
	for i, m := range fleet {
		reporting.Go(func() { errs[i] = m.report(ctx, reportsEach, acknowledged) })
	}
	reporting.Wait()
	for _, err := range errs {
		if err != nil {
			ended = append(ended, err)
		}
	}
	return ended
}

// isWhole checks the audit log, that it still has the record noted earlier, and
// returns its newest.
func (s *site) isWhole(t *testing.T, noted string) (head string) {
	t.Helper()
	said := s.operator(t, "audit", "verify", "--head", noted)
	whole := regexp.MustCompile(`(\d+) records, none changed, none missing; newest ([0-9a-f]{64})`).FindStringSubmatch(said)
	if whole == nil {
		t.Fatalf("audit verify: %s", said)
	}
	t.Logf("%s audit records, whole", whole[1])
	return whole[2]
}

func digest(t *testing.T, ev *posturev1.Evidence) []byte {
	t.Helper()
	d, err := posture.Digest(ev)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// holds checks that the collector holds of each notebook the last report that
// it has acknowledged, or the one after it, which may have been stored without
// an answer getting through.
func (s *site) holds(t *testing.T, fleet []*member) {
	t.Helper()
	stored := s.inventory(t)
	ahead := 0
	for _, m := range fleet {
		held := digest(t, stored[m.asset].GetEvidence())
		switch {
		case m.acknowledged == 0 && stored[m.asset].GetEvidence() == nil:
		case bytes.Equal(held, digest(t, m.evidence(m.acknowledged))):
		case m.acknowledged < reportsEach && bytes.Equal(held, digest(t, m.evidence(m.acknowledged+1))):
			ahead++
		default:
			t.Errorf("%s: report %d was acknowledged, the collector holds another: %v", m.asset, m.acknowledged, stored[m.asset])
		}
	}
	t.Logf("%d notebooks are a report ahead of their acknowledgement", ahead)
}
