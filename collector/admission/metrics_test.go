package admission_test

import (
	"crypto/sha256"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/admission"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Only the section that fails may have been read just now, the others hours
// ago: the report is as old as they are, the revocation is not.
func TestRevocationIsMeasuredFromItsOwnBeginning(t *testing.T) {
	now := time.Date(2026, 11, 21, 14, 5, 0, 0, time.UTC)
	registry := prometheus.NewRegistry()
	d := admission.NewDesk(admission.Options{Epoch: 1, Now: func() time.Time { return now }, Metrics: admission.NewMetrics(registry)})
	certificate := sha256.Sum256([]byte("certificate"))
	d.SetDevice(&fleetv1.Device{Id: "device", Asset: &fleetv1.Asset{
		AssetNumber: "NB-1", State: fleetv1.AssetState_ASSET_STATE_ACTIVE, VpnCertificatesSha256: [][]byte{certificate[:]},
	}})
	judged := func(v posturev1.Verdict) {
		d.SetResult("device", &posturev1.Result{
			Verdict: v, CollectedAt: timestamppb.New(now.Add(-time.Hour)),
			AppraisedAt: timestamppb.New(now.Add(-20 * time.Millisecond)), ExpiresAt: timestamppb.New(now.Add(time.Hour)),
		})
	}
	tell := func(e *gatev1.SessionEvent) {
		if _, err := d.Report("g1", &gatev1.ReportRequest{Events: []*gatev1.SessionEvent{e}}); err != nil {
			t.Fatal(err)
		}
	}
	judged(posturev1.Verdict_VERDICT_ADMIT)
	d.Ready()
	tell(&gatev1.SessionEvent{Event: &gatev1.SessionEvent_Up{Up: &gatev1.SessionUp{
		Session: &gatev1.SessionFacts{SessionId: "s1", CertificateSha256: certificate[:]}, Verdict: posturev1.Verdict_VERDICT_ADMIT,
	}}})
	judged(posturev1.Verdict_VERDICT_DENY)
	now = now.Add(100 * time.Millisecond)
	tell(&gatev1.SessionEvent{Event: &gatev1.SessionEvent_CutConfirmed{CutConfirmed: &gatev1.CutConfirmed{
		SessionId: "s1", Epoch: 1, Sequence: 1, PacketsCutAfter: durationpb.New(10 * time.Millisecond),
	}}})

	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	took := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "pfoertner_revocation_seconds" {
			for _, m := range f.GetMetric() {
				took[m.GetLabel()[0].GetValue()] = m.GetHistogram().GetSampleSum()
			}
		}
	}
	if took["verdict"] != 0.02 || took["total"] != 0.12 {
		t.Errorf("measured %v, want 0.02 s to the verdict and 0.12 s in all", took)
	}
}
