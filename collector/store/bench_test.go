package store

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// BenchmarkSaveReport is what a burst of check-ins costs: 64 callers, each
// report full evidence that changed, on the disk when the call returns. The
// floor beside it writes the same bytes in groups of the same size to a bare
// file, with one fsync for each group.
func BenchmarkSaveReport(b *testing.B) {
	var commits atomic.Int64
	s := open(b, filepath.Join(b.TempDir(), "pfoertner.db"), Options{Committed: func(int) { commits.Add(1) }})
	const fleet = 1000
	enrol(b, s, fleet)
	ev, res := threeKB()

	var next atomic.Int64
	b.SetParallelism(32) // times two cores: 64 callers
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		mine := proto.CloneOf(res)
		for pb.Next() {
			n := next.Add(1)
			mine.EvidenceDigest = fmt.Appendf(nil, "%032d", n)
			if err := s.SaveReport(b.Context(), deviceID(int(n%fleet)), ev, mine); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
	perSecond := float64(b.N) / b.Elapsed().Seconds()
	group := max(b.N/int(commits.Load()), 1)
	floor := floorPerSecond(b, proto.Size(ev)+proto.Size(res), group)
	b.ReportMetric(perSecond, "reports/s")
	b.ReportMetric(float64(group), "reports/commit")
	b.ReportMetric(floor, "floor/s")
	b.ReportMetric(perSecond/floor, "of-floor")
}

// floorPerSecond appends and fsyncs groups of records for a while.
func floorPerSecond(b *testing.B, size, group int) float64 {
	f, err := os.Create(filepath.Join(b.TempDir(), "floor"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, size*group)
	const groups = 200
	started := time.Now()
	for range groups {
		if _, err := f.Write(buf); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	return groups * float64(group) / time.Since(started).Seconds()
}

// threeKB is a report as a real notebook with many pending updates makes it:
// 3 KB of evidence, a result with twelve findings.
func threeKB() (*posturev1.Evidence, *posturev1.Result) {
	ev := &posturev1.Evidence{Patch: &posturev1.Patch{}}
	for i := 0; proto.Size(ev) < 3000; i++ {
		ev.Patch.Pending = append(ev.Patch.Pending, &posturev1.PendingUpdate{
			Package: fmt.Sprintf("lib-number-%d", i), Architecture: "amd64", InstalledVersion: fmt.Sprintf("1.%d-1", i),
			FixedVersion: fmt.Sprintf("1.%d-1+deb12u%d", i, i%7), FirstSeenAt: timestamppb.New(morning.Add(time.Duration(i) * time.Minute)),
			Origin: "Debian-Security",
		})
	}
	res := &posturev1.Result{Verdict: posturev1.Verdict_VERDICT_ADMIT, Policy: "dienstgeraete", PolicyVersion: 3, AppraisedAt: timestamppb.New(morning)}
	for i := range 12 {
		res.Findings = append(res.Findings, &posturev1.Finding{
			Rule: fmt.Sprintf("rule-%d", i), Outcome: posturev1.Outcome_OUTCOME_PASS, Effect: posturev1.Effect_EFFECT_NONE,
			Title:  &posturev1.LocalText{De: "Festplatten verschlüsselt", En: "Disks encrypted"},
			Values: []*posturev1.Value{{Path: "evidence.patch.pending_security", Value: "0"}},
		})
	}
	return ev, res
}
