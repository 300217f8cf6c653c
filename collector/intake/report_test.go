package intake

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	admit = posturev1.Verdict_VERDICT_ADMIT
	deny  = posturev1.Verdict_VERDICT_DENY
)

func TestWelcomeTellsTheRules(t *testing.T) {
	h := newHouse(t)
	n := h.enrolled(t, deviceA).open()
	n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.ClientHello{AgentVersion: "1.2.3"}}})
	w := n.receive().GetWelcome()
	if w.GetCapability() != posture.Capability || w.GetReportInterval().AsDuration() != 5*time.Minute || w.GetCollectorVersion() != "test" {
		t.Errorf("welcome %v", w)
	}
	if after := w.GetRenewAfter().AsDuration(); after < 23*time.Hour || after > 25*time.Hour {
		t.Errorf("renew after %s", after)
	}
	online, seen, version := h.Online(deviceA)
	if !online || time.Since(seen) > time.Minute || version != "1.2.3" {
		t.Errorf("online %v, seen %v, version %s", online, seen, version)
	}
	if online, seen, version := h.Online(deviceB); online || !seen.IsZero() || version != "" {
		t.Errorf("one that was never here: %v, %v, %q", online, seen, version)
	}
}

func TestFullThenDeltaThenHeartbeat(t *testing.T) {
	registry := prometheus.NewRegistry()
	h := newHouse(t, func(o *Options) { o.Metrics = NewMetrics(registry) })
	n := h.enrolled(t, deviceA).hello()
	good, bad := evidence("amd64"), evidence("bad")
	n.acknowledged(n.full(good))
	n.judged(admit)
	n.acknowledged(n.delta(good, bad))
	n.judged(deny)
	n.acknowledged(n.heartbeat(bad)) // says nothing new: no result
	n.acknowledged(n.delta(bad, good))
	n.judged(admit)
	if ev, res, err := h.desk.Report(t.Context(), deviceA); err != nil || !proto.Equal(ev, good) || res.GetVerdict() != admit {
		t.Errorf("stored %v, %v, %v", ev, res, err)
	}
	if s, c := h.desk.counts(); s != 3 || c != 1 {
		t.Errorf("%d submitted, %d confirmed", s, c)
	}
	counted := map[string]float64{}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			counted[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for name, want := range map[string]float64{
		"pfoertner_agent_streams": 1, "pfoertner_agent_reports_total full stored": 1, "pfoertner_agent_reports_total delta stored": 2,
		"pfoertner_agent_reports_total heartbeat stored": 1, "pfoertner_agent_report_seconds delta": 2,
	} {
		if counted[name] != want {
			t.Errorf("%s is %v, want %v", name, counted[name], want)
		}
	}
}

func TestAcknowledgedIsOnlyWhatIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolled(t, deviceA).hello()
		defer n.conn.Close()
		h.desk.gate = make(chan struct{})
		n.send(message(n.full(evidence("amd64"))))
		var answer *agentv1.ConnectResponse
		go func() { answer, _ = n.stream.Recv() }()
		synctest.Wait()
		if answer != nil {
			t.Fatalf("answered before the commit: %v", answer)
		}
		close(h.desk.gate)
		synctest.Wait()
		if answer.GetAcknowledgement().GetSequence() != 1 {
			t.Errorf("answered %v", answer)
		}
	})
}

func TestWhatCannotBeStoredIsNotAcknowledged(t *testing.T) {
	h := newHouse(t)
	h.desk.err = errors.New("disk full at /var/lib")
	n := h.enrolled(t, deviceA).hello()
	n.send(message(n.full(evidence("amd64"))))
	_, err := n.stream.Recv()
	if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "disk full") {
		t.Errorf("the agent sees %v", err)
	}
}

func TestCollectedAtIsByOurClock(t *testing.T) {
	h := newHouse(t)
	n := h.enrolled(t, deviceA).hello()
	r := n.full(evidence("amd64"))
	r.CollectedAgo = durationpb.New(10 * time.Minute)
	before := time.Now()
	n.acknowledged(r)
	_, res, err := h.desk.Report(t.Context(), deviceA)
	if err != nil {
		t.Fatal(err)
	}
	at := res.GetCollectedAt().AsTime()
	if at.Before(before.Add(-10*time.Minute)) || at.After(time.Now().Add(-10*time.Minute)) {
		t.Errorf("collected at %v, now is %v", at, time.Now())
	}
}

func TestFullEvidenceIsAskedForWhenTheDigestDoesNotFit(t *testing.T) {
	good, bad := evidence("amd64"), evidence("bad")
	for name, tc := range map[string]struct {
		before func(n *notebook)
		report func(n *notebook) *agentv1.Report
	}{
		"heartbeat first": {nil, func(n *notebook) *agentv1.Report { return n.heartbeat(good) }},
		"delta first":     {nil, func(n *notebook) *agentv1.Report { return n.delta(good, bad) }},
		"full with another digest": {nil, func(n *notebook) *agentv1.Report {
			r := n.full(good)
			r.Digest = digest(n.t, bad)
			return r
		}},
		"full without a digest": {nil, func(n *notebook) *agentv1.Report {
			r := n.full(good)
			r.Digest = nil
			return r
		}},
		"heartbeat of another": {func(n *notebook) { n.acknowledged(n.full(good)) }, func(n *notebook) *agentv1.Report { return n.heartbeat(bad) }},
		"delta to another": {func(n *notebook) { n.acknowledged(n.full(good)) }, func(n *notebook) *agentv1.Report {
			r := n.delta(good, bad)
			r.Digest = digest(n.t, good)
			return r
		}},
		"delta to what is gone": {func(n *notebook) {
			n.acknowledged(n.full(good))
			n.house.desk.mu.Lock()
			defer n.house.desk.mu.Unlock()
			clear(n.house.desk.evidence)
		}, func(n *notebook) *agentv1.Report { return n.delta(good, bad) }},
		"another stream stored other evidence": {func(n *notebook) {
			n.acknowledged(n.full(good))
			n.house.desk.mu.Lock()
			defer n.house.desk.mu.Unlock()
			n.house.desk.evidence[deviceA] = bad
		}, func(n *notebook) *agentv1.Report { return n.heartbeat(good) }},
	} {
		t.Run(name, func(t *testing.T) {
			n := newHouse(t).enrolled(t, deviceA).hello()
			if tc.before != nil {
				tc.before(n)
				n.judged(admit)
			}
			n.send(message(tc.report(n)))
			if m := n.receive(); m.GetResync().GetReason() == "" {
				t.Fatalf("answered %v", m)
			}
			n.acknowledged(n.full(good))
		})
	}
}

func TestWhoNeverGetsTheDigestRightIsSentAway(t *testing.T) {
	n := newHouse(t).enrolled(t, deviceA).hello()
	for range maxResyncs {
		n.send(message(n.heartbeat(evidence("amd64"))))
		if n.receive().GetResync() == nil {
			t.Fatal("no resync")
		}
	}
	n.send(message(n.heartbeat(evidence("amd64"))))
	n.ends(codes.InvalidArgument)
}

func TestMessagesOutOfPlaceEndTheStream(t *testing.T) {
	ev := evidence("amd64")
	report := func(change func(*agentv1.Report)) func(*notebook) *agentv1.ConnectRequest {
		return func(n *notebook) *agentv1.ConnectRequest {
			r := n.full(ev)
			change(r)
			return message(r)
		}
	}
	for name, tc := range map[string]struct {
		message func(n *notebook) *agentv1.ConnectRequest
		want    string
	}{
		"nonce of another stream": {report(func(r *agentv1.Report) { r.Nonce = make([]byte, 16) }), "nonce"},
		"no nonce":                {report(func(r *agentv1.Report) { r.Nonce = nil }), "nonce"},
		"sequence replayed":       {report(func(r *agentv1.Report) { r.Sequence-- }), "sequence"},
		"sequence zero":           {report(func(r *agentv1.Report) { r.Sequence = 0 }), "sequence"},
		"no age":                  {report(func(r *agentv1.Report) { r.CollectedAgo = nil }), "collected_ago"},
		"from the future":         {report(func(r *agentv1.Report) { r.CollectedAgo = durationpb.New(-1) }), "collected_ago"},
		"from the day before":     {report(func(r *agentv1.Report) { r.CollectedAgo = durationpb.New(24*time.Hour + 1) }), "collected_ago"},
		"age that is none": {report(func(r *agentv1.Report) {
			r.CollectedAgo = &durationpb.Duration{Seconds: 1, Nanos: -1}
		}), "collected_ago"},
		"no body": {report(func(r *agentv1.Report) { r.Body = nil }), "without evidence"},
		"hello again": {func(*notebook) *agentv1.ConnectRequest {
			return &agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.ClientHello{}}}
		}, "second hello"},
		"nothing": {func(*notebook) *agentv1.ConnectRequest { return &agentv1.ConnectRequest{} }, "empty"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			n := h.enrolled(t, deviceA).hello()
			n.acknowledged(n.full(ev))
			n.judged(admit)
			submitted, _ := h.desk.counts()
			n.send(tc.message(n))
			err := n.end()
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("ended with %v, want %q", err, tc.want)
			}
			if after, _ := h.desk.counts(); after != submitted {
				t.Error("it was stored")
			}
		})
	}
}

func TestTooMuchIsRefused(t *testing.T) {
	long := evidence("amd64")
	long.Platform.KernelRelease = strings.Repeat("x", posture.MaxStringBytes+1)
	huge := evidence("amd64")
	for range 300 {
		huge.Platform.SupportEnds = append(huge.Platform.SupportEnds, &posturev1.SupportEnd{Source: strings.Repeat("x", posture.MaxStringBytes)})
	}
	for name, tc := range map[string]struct {
		ev   *posturev1.Evidence
		code codes.Code
	}{
		"a long text":    {long, codes.InvalidArgument},
		"a huge message": {huge, codes.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			n := h.enrolled(t, deviceA).hello()
			_ = n.stream.Send(message(n.full(tc.ev))) // the stream may end while it sends
			n.ends(tc.code)
		})
	}
}

// Deltas that are small each must not add up to evidence that is too large.
func TestDeltasCannotGrowBeyondTheLimits(t *testing.T) {
	h := newHouse(t)
	n := h.enrolled(t, deviceA).hello()
	large := func(ev *posturev1.Evidence, with string) *posturev1.Evidence {
		more := proto.CloneOf(ev)
		for range 180 {
			switch with {
			case "platform":
				more.Platform.SupportEnds = append(more.Platform.SupportEnds, &posturev1.SupportEnd{Source: strings.Repeat("x", 4000)})
			case "volumes":
				if more.Volumes == nil {
					more.Volumes = &posturev1.Volumes{}
				}
				more.Volumes.Volumes = append(more.Volumes.Volumes, &posturev1.Volume{Filesystem: strings.Repeat("x", 4000)})
			}
		}
		return more
	}
	one := large(evidence("amd64"), "platform")
	n.acknowledged(n.full(one))
	n.judged(admit)
	n.send(message(n.delta(one, large(one, "volumes"))))
	n.ends(codes.InvalidArgument)
}

func TestKindsThatOnlyANewerAgentKnowsAreIgnored(t *testing.T) {
	n := newHouse(t).enrolled(t, deviceA).hello()
	m := &agentv1.ConnectRequest{}
	m.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 99, protowire.BytesType), "new"))
	n.send(m)
	n.acknowledged(n.full(evidence("amd64")))
}

func TestResultsArePushedNewestFirstAndOnce(t *testing.T) {
	h := newHouse(t)
	n := h.enrolled(t, deviceA).hello()
	n.acknowledged(n.full(evidence("amd64")))
	n.judged(admit)
	_, stored, err := h.desk.Report(t.Context(), deviceA)
	if err != nil {
		t.Fatal(err)
	}
	older := proto.CloneOf(stored)
	older.Verdict = deny
	older.AppraisedAt.Seconds -= 60
	same := proto.CloneOf(stored)
	same.AppraisedAt.Seconds += 60
	newer := proto.CloneOf(same)
	newer.Verdict = deny
	newer.AppraisedAt.Seconds += 60
	for _, r := range []*posturev1.Result{older, same, newer} {
		if !h.Push(deviceA, r) {
			t.Fatal("not online")
		}
	}
	n.judged(deny)
	if h.Push(deviceB, newer) {
		t.Error("pushed to one that is not online")
	}
	if !h.Collect(deviceA, "operator", false) || h.Collect(deviceB, "operator", false) {
		t.Error("asked the wrong one")
	}
	if m := n.receive(); m.GetCollect().GetReason() != "operator" {
		t.Errorf("got %v", m)
	}
}

// A policy with another freshness reaches the notebooks that are connected, not
// only those that come later: else the whole fleet would be stale before its
// next report.
func TestAnotherPolicyChangesTheInterval(t *testing.T) {
	var interval atomic.Int64
	interval.Store(int64(15 * time.Minute))
	h := newHouse(t, func(o *Options) { o.ReportInterval = func() time.Duration { return time.Duration(interval.Load()) } })
	n := h.enrolled(t, deviceA).hello()
	n.acknowledged(n.full(evidence("amd64")))
	n.judged(admit)
	_, stored, err := h.desk.Report(t.Context(), deviceA)
	if err != nil {
		t.Fatal(err)
	}
	interval.Store(int64(20 * time.Second))
	for range 2 { // told once
		h.Push(deviceA, stored)
	}
	h.Collect(deviceA, "operator", false)
	if m := n.receive(); m.GetPace().GetReportInterval().AsDuration() != 20*time.Second {
		t.Fatalf("got %v", m)
	}
	if m := n.receive(); m.GetCollect() == nil {
		t.Errorf("got %v", m)
	}
}

// What is ordered before the notebook has said hello goes out behind the
// welcome: agents leave a collector that speaks out of order.
func TestOrdersWaitForTheWelcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolled(t, deviceA).open()
		defer n.conn.Close()
		synctest.Wait()
		if !h.Collect(deviceA, "operator", false) {
			t.Fatal("not online")
		}
		synctest.Wait()
		n.send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.ClientHello{Capability: 1}}})
		if m := n.receive(); m.GetWelcome() == nil {
			t.Fatalf("first came %v", m)
		}
		if m := n.receive(); m.GetCollect() == nil {
			t.Errorf("second came %v", m)
		}
	})
}

// What is ordered while a report is on its way to the disk goes out behind its
// acknowledgement.
func TestOrdersWaitForTheReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolled(t, deviceA).hello()
		defer n.conn.Close()
		h.desk.gate = make(chan struct{})
		n.send(message(n.full(evidence("amd64"))))
		synctest.Wait() // the report is with the Verifier
		for range 100 {
			h.Collect(deviceA, "again and again", false)
		}
		close(h.desk.gate)
		if m := n.receive(); m.GetAcknowledgement() == nil {
			t.Errorf("first came %v", m)
		}
		n.judged(admit)
		if m := n.receive(); m.GetCollect() == nil {
			t.Errorf("third came %v", m)
		}
		n.acknowledged(n.heartbeat(evidence("amd64"))) // and no second order
	})
}

func TestWhoSendsTooMuchWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolled(t, deviceA).hello()
		defer n.conn.Close()
		ev := evidence("amd64")
		n.acknowledged(n.full(ev))
		n.judged(admit)
		began := time.Now()
		for range 18 { // hello and the first report have had their part of 20
			n.acknowledged(n.heartbeat(ev))
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("the burst took %s", d)
		}
		for range 50 {
			n.acknowledged(n.heartbeat(ev))
		}
		if d := time.Since(began); d < 9*time.Second || d > 11*time.Second {
			t.Errorf("50 more at 5/s took %s", d)
		}
	})
}

func TestStreamEndsWithItsAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		defer h.server.Stop()
		n := h.enrolled(t, deviceA).hello()
		h.desk.gate = make(chan struct{}) // never opened: the report has to be given up
		n.send(message(n.full(evidence("amd64"))))
		synctest.Wait()
		n.conn.Close()
		synctest.Wait()
		if online, _, version := h.Online(deviceA); online || version != "1.2.3" {
			t.Errorf("online %v, version %q", online, version)
		}
	})
}
