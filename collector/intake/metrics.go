package intake

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// Metrics counts what happens on agents' streams. Nil counts nothing.
type Metrics struct {
	live       prometheus.Gauge
	ends       *prometheus.CounterVec
	handshakes prometheus.Counter
	reports    *prometheus.CounterVec
	latency    *prometheus.HistogramVec
	renewals   prometheus.Counter
}

// NewMetrics makes and registers the metrics of intake.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{
		live: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pfoertner_agent_streams",
			Help: "Devices that are online.",
		}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pfoertner_agent_streams_ended_total",
			Help: "Streams that the collector ended, by status code.",
		}, []string{"code"}),
		handshakes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pfoertner_agent_handshakes_refused_total",
			Help: "Handshakes with a certificate of ours that is no longer accepted.",
		}),
		reports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pfoertner_agent_reports_total",
			Help: "Reports by kind (full, delta, heartbeat) and outcome (stored, resync, failed).",
		}, []string{"kind", "outcome"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "pfoertner_agent_report_seconds",
			Help:    "From a report's arrival to its acknowledgement: appraised and on the disk.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"kind"}),
		renewals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pfoertner_agent_renewals_total",
			Help: "Device certificates renewed.",
		}),
	}
	registerer.MustRegister(m.live, m.ends, m.handshakes, m.reports, m.latency, m.renewals)
	return m
}

func (m *Metrics) streams(n int) {
	if m != nil {
		m.live.Set(float64(n))
	}
}

func (m *Metrics) ended(code codes.Code) {
	if m != nil {
		m.ends.WithLabelValues(code.String()).Inc()
	}
}

func (m *Metrics) handshakeRefused() {
	if m != nil {
		m.handshakes.Inc()
	}
}

// reported counts a report; after is observed for stored ones only.
func (m *Metrics) reported(kind, outcome string, after time.Duration) {
	if m == nil {
		return
	}
	m.reports.WithLabelValues(kind, outcome).Inc()
	if outcome == "stored" {
		m.latency.WithLabelValues(kind).Observe(after.Seconds())
	}
}

func (m *Metrics) renewed() {
	if m != nil {
		m.renewals.Inc()
	}
}
