package verifier

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// trigger is why evidence was judged.
type trigger string

const (
	triggerReport      trigger = "report"
	triggerHeartbeat   trigger = "heartbeat"
	triggerPolicy      trigger = "policy"
	triggerReferences  trigger = "references"
	triggerReappraisal trigger = "reappraisal"
)

// Metrics counts appraisals. Nil counts nothing.
type Metrics struct {
	appraisals *prometheus.CounterVec
	duration   prometheus.Histogram
	changes    *prometheus.CounterVec
	waiting    prometheus.Gauge
}

// NewMetrics makes and registers the metrics of the Verifier.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{
		appraisals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pfoertner_appraisals_total",
			Help: "Appraisals by trigger (report, heartbeat, policy, references, reappraisal) and verdict.",
		}, []string{"trigger", "verdict"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "pfoertner_appraisal_seconds",
			Help:    "How long one appraisal takes, without the store.",
			Buckets: prometheus.ExponentialBuckets(10e-6, 2, 12),
		}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pfoertner_verdict_changes_total",
			Help: "Verdicts that changed, by what they changed to.",
		}, []string{"verdict"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pfoertner_reappraisals_waiting",
			Help: "Devices whose stored evidence has to be judged anew.",
		}),
	}
	registerer.MustRegister(m.appraisals, m.duration, m.changes, m.waiting)
	return m
}

func (m *Metrics) appraised(t trigger, verdict posturev1.Verdict, took time.Duration) {
	if m != nil {
		m.appraisals.WithLabelValues(string(t), verdictWord(verdict)).Inc()
		m.duration.Observe(took.Seconds())
	}
}

func (m *Metrics) flipped(to posturev1.Verdict) {
	if m != nil {
		m.changes.WithLabelValues(verdictWord(to)).Inc()
	}
}

func (m *Metrics) queued(n int) {
	if m != nil {
		m.waiting.Set(float64(n))
	}
}
