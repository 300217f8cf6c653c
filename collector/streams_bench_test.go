package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// everybodyOut denies every notebook.
const everybodyOut = `name: everybody-out
freshness:
  max_age: 1h
rules:
  - id: no-packages
    title:
      de: Es ist nichts installiert
      en: Nothing is installed
    remedy:
      de: Keine.
      en: None.
    require: evidence.patch.installed_packages == 0u
    on_fail: deny
`

// peerKB is what NetBird's management server 0.77 needs for each connected peer
// at the least: 157 to 188 KB were measured on a machine of this size.
const peerKB = 157

// BenchmarkStreams is a fleet that is online: real mTLS streams held open at
// the same time, each having reported full evidence once. The notebooks are in
// a process of their own on the same processors. Its size is 5,000 or
// PFOERTNER_STREAMS.
//
//	server-KB/stream  what the collector's process grew by, as the system counts
//	                  it: inventory, stream, evidence, result, the database's
//	                  cache
//	of-peer           the same as a part of peerKB
//	live-KB/stream    the same after a garbage collection
//	idle-KB/stream    of it what a stream costs that has not reported yet
//	apply-s           from a policy that flips all to the last result stored
//	told-s            … to the last notebook that was told
//	cut-ms            from suspending a device to the end of its stream, the
//	                  median of 20
func BenchmarkStreams(b *testing.B) {
	count := crowdSize(b)
	h := newHouse(b, func(c *Config) { c.ReportsPerSecond = 0 })
	h.stop()
	key := h.populate(b, count)
	none := settled(b)
	h.start(b)
	crowd := h.invite(b, key, count)
	perStream := func(from, to int64) float64 { return float64(to-from) / 1024 / float64(count) }

	before := settled(b)
	begin := time.Now()
	crowd.do(b, stepConnect)
	b.ReportMetric(float64(count)/time.Since(begin).Seconds(), "connects/s")
	b.ReportMetric(perStream(before, settled(b)), "idle-KB/stream")

	begin = time.Now()
	theirs := crowd.do(b, stepReport)
	b.ReportMetric(float64(count)/time.Since(begin).Seconds(), "reports/s")
	server := perStream(none, resident(b))
	b.ReportMetric(server, "server-KB/stream")
	b.ReportMetric(server/peerKB, "of-peer")
	b.ReportMetric(perStream(none, settled(b)), "live-KB/stream")
	b.ReportMetric(perStream(0, theirs), "client-KB/stream")

	begin = time.Now()
	h.apply(b, everybodyOut)
	b.ReportMetric(time.Since(begin).Seconds(), "apply-s")
	crowd.do(b, stepDenied)
	b.ReportMetric(time.Since(begin).Seconds(), "told-s")

	begin = time.Now()
	crowd.do(b, stepHeartbeat)
	b.ReportMetric(float64(count)/time.Since(begin).Seconds(), "heartbeats/s")

	var cuts []float64
	for i := range min(20, count) {
		crowd.begin(b, stepEnd)
		begin = time.Now()
		if _, err := h.registry.SetState(b.Context(), "anna", deviceOf(i).GetId(), fleetv1.AssetState_ASSET_STATE_SUSPENDED, "lost"); err != nil {
			b.Fatal(err)
		}
		crowd.done(b)
		cuts = append(cuts, time.Since(begin).Seconds()*1000)
	}
	slices.Sort(cuts)
	b.ReportMetric(cuts[len(cuts)/2], "cut-ms")
	b.ReportMetric(0, "ns/op") // the sum of all this says nothing
}

// BenchmarkStart100k is the start of a collector that knows 100,000 enrolled
// notebooks, each with a VPN certificate and a report: from the database on the
// disk to the first answer. One in ten is refused.
//
//	ready-s  from the start until gateways are answered
//	rss-MB   the memory of the process then, as the system counts it
//	live-MB  the same after a garbage collection
func BenchmarkStart100k(b *testing.B) {
	const count = 100_000
	h := newHouse(b)
	h.stop()
	h.populate(b, count)
	h.report(b, count)
	before := settled(b)
	for b.Loop() {
		begin := time.Now()
		p, err := open(b.Context(), h.config, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(begin).Seconds(), "ready-s")
		if !p.desk.IsReady() || len(p.registry.All()) != count {
			b.Fatal("the collector is not ready")
		}
		b.ReportMetric(float64(resident(b)-before)/(1<<20), "rss-MB")
		b.ReportMetric(float64(settled(b)-before)/(1<<20), "live-MB")
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// crowdSize is how many streams are asked for. Each takes a file descriptor on
// either side.
func crowdSize(b *testing.B) int {
	count := 5000
	if s := os.Getenv("PFOERTNER_STREAMS"); s != "" {
		var err error
		if count, err = strconv.Atoi(s); err != nil || count < 1 {
			b.Fatalf("PFOERTNER_STREAMS=%q is not a number of streams", s)
		}
	}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		b.Fatal(err)
	}
	if uint64(count)+200 > files.Cur {
		b.Fatalf("%d streams need as many open files; the limit is %d: raise it (ulimit -n)", count, files.Cur)
	}
	return count
}

// invite starts a crowd of the devices that populate made.
func (h *house) invite(b *testing.B, key *ecdsa.PrivateKey, count int) *crowdProcess {
	b.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		b.Fatal(err)
	}
	p := plan{Address: h.agents.Addr().String(), Servers: h.keys.TrustBundle()[0], Key: der, Count: count}
	return startCrowd(b, p, func(i int) [][]byte {
		cert, err := h.keys.IssueDevice(deviceOf(i).GetId(), key.Public(), 0)
		if err != nil {
			b.Fatal(err)
		}
		return cert.Chain
	})
}

// apply puts a policy in force as an operator does, and waits for the end.
func (h *house) apply(b *testing.B, yaml string) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	stream, err := fleetv1.NewPolicyServiceClient(h.operator(b)).Apply(ctx, &fleetv1.ApplyRequest{Yaml: []byte(yaml)})
	if err != nil {
		b.Fatal(err)
	}
	for {
		step, err := stream.Recv()
		if err != nil {
			b.Fatal(err)
		}
		if len(step.GetErrors()) > 0 {
			b.Fatal(step.GetErrors())
		}
		if step.GetDone() {
			return
		}
	}
}

// resident is the memory of this process as it is.
func resident(b *testing.B) int64 {
	b.Helper()
	n, err := residentMemory()
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// settled is the memory of this process when all garbage is gone.
func settled(b *testing.B) int64 {
	b.Helper()
	debug.FreeOSMemory()
	return resident(b)
}
