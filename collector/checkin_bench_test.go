package main

import (
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// streams is how many notebooks report at the same time.
const streams = 64

// BenchmarkCheckIn is the durable check-in: full evidence that differs from the
// last (the notebook was started again), over mTLS, judged, committed with
// fsync, acknowledged. The notebooks are in the same process. Each waits for
// its acknowledgement before it reports again.
func BenchmarkCheckIn(b *testing.B) {
	h := newHouse(b, func(c *Config) { c.ReportsPerSecond, c.EnrolmentsPerMinute = 0, 1000 })
	books := h.enrol(b, streams)
	reporters := make([]*reporter, streams)
	for i, book := range books {
		reporters[i] = book.connect(b)
	}
	var boots [2]prepared
	for i := range boots {
		ev := compliant(time.Now())
		ev.Platform.BootedAt = timestamppb.New(time.Now().Add(-time.Duration(i+1) * time.Hour))
		boots[i] = prepare(b, ev)
	}
	took := make([][]time.Duration, streams)
	runtime.GC()
	b.ResetTimer()
	var all sync.WaitGroup
	for i, r := range reporters {
		all.Go(func() {
			for n := i; n < b.N; n += streams {
				begin := time.Now()
				if err := r.send(boots[n/streams%2]); err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(begin))
			}
		})
	}
	all.Wait()
	b.StopTimer()
	sorted := slices.Concat(took...)
	slices.Sort(sorted)
	b.ReportMetric(float64(len(sorted))/b.Elapsed().Seconds(), "check-ins/s")
	b.ReportMetric(float64(sorted[len(sorted)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(sorted[len(sorted)*99/100].Microseconds())/1000, "p99-ms")
}
