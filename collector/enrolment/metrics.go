package enrolment

import "github.com/prometheus/client_golang/prometheus"

// Metrics counts enrolments. Nil counts nothing.
type Metrics struct {
	attempts *prometheus.CounterVec
}

// NewMetrics makes and registers the metrics of enrolment.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pfoertner_enrolments_total",
		Help: "Attempts to enrol, by outcome: issued, pending, refused, limited, invalid, failed.",
	}, []string{"outcome"})}
	registerer.MustRegister(m.attempts)
	return m
}

func (m *Metrics) count(outcome string) {
	if m != nil {
		m.attempts.WithLabelValues(outcome).Inc()
	}
}
