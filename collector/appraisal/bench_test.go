package appraisal

import (
	"testing"

	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// The bar for one appraisal by the shipped policy is 60 µs.
func BenchmarkAppraise(b *testing.B) {
	for name, ev := range map[string]*posturev1.Evidence{
		"compliant": goodEvidence(),
		"failing": with(func(ev *posturev1.Evidence) {
			ev.Volumes.Volumes[0].Paths = []*posturev1.StoragePath{path()}
			ev.Patch.Pending[0].FirstSeenAt = ago(20 * day)
		}),
	} {
		b.Run(name, func(b *testing.B) {
			in := inputOf(b, shipped(b), ev)
			digest, err := posture.Digest(ev)
			if err != nil {
				b.Fatal(err)
			}
			in.EvidenceDigest = digest
			in.Previous = Appraise(in)
			b.ReportAllocs()
			for b.Loop() {
				Appraise(in)
			}
		})
	}
}

func BenchmarkFilter(b *testing.B) {
	f, err := CompileFilter(`result.verdict == DENY && asset.unit.startsWith("inneres/") && evidence.patch.pending_security > 0u`)
	if err != nil {
		b.Fatal(err)
	}
	dev := activeDevice()
	dev.Evidence = goodEvidence()
	for b.Loop() {
		if _, err := f.Match(dev, noon); err != nil {
			b.Fatal(err)
		}
	}
}
