package session

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Metrics counts what the gate does.
type Metrics struct {
	up      *prometheus.GaugeVec
	answers *prometheus.CounterVec
	alarms  *prometheus.CounterVec
	asking  prometheus.Histogram
	packets *prometheus.HistogramVec
}

// NewMetrics registers the gate's metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pfoertner_gate_sessions", Help: "Sessions that are up, by verdict.",
		}, []string{"verdict"}),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pfoertner_gate_answers_total", Help: "Collectors' answers, by verdict; none when no collector answered.",
		}, []string{"verdict"}),
		alarms: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pfoertner_gate_alarms_total", Help: "Alarms, by kind.",
		}, []string{"kind"}),
		asking: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pfoertner_gate_ask_seconds", Help: "How long a collector's answer took.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		packets: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pfoertner_gate_packets_cut_seconds", Help: "From the collector's word to the packet filter's change, by new verdict.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 12),
		}, []string{"verdict"}),
	}
	r.MustRegister(m.up, m.answers, m.alarms, m.asking, m.packets)
	return m
}

var verdictNames = map[posturev1.Verdict]string{deny: "deny", quarantine: "quarantine", admitVerdict: "admit"}

func (m *Metrics) sessions(b *Book) {
	count := map[posturev1.Verdict]int{}
	for _, e := range b.sessions {
		if e.state == up {
			count[e.verdict]++
		}
	}
	for v, name := range verdictNames {
		m.up.WithLabelValues(name).Set(float64(count[v]))
	}
}

func (m *Metrics) asked(a Answer, err error, took time.Duration) {
	name := "none"
	if err == nil {
		name = verdictNames[understood(a.Lease.GetVerdict())]
	}
	m.answers.WithLabelValues(name).Inc()
	m.asking.Observe(took.Seconds())
}

func (m *Metrics) alarm(kind string) { m.alarms.WithLabelValues(kind).Inc() }

func (m *Metrics) cut(v posturev1.Verdict, packets time.Duration) {
	m.packets.WithLabelValues(verdictNames[v]).Observe(packets.Seconds())
}
