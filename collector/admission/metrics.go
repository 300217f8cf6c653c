package admission

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Parts of a revocation's time, in the order in which they pass. Evidence at
// hand → verdict stored → gate told → cut confirmed; and the whole. It begins
// here and not on the notebook: a report says how old its oldest section is,
// not when the one that fails was read.
const (
	partVerdict   = "verdict"
	partTold      = "gate_told"
	partConfirmed = "cut_confirmed"
	partTotal     = "total"
	// partPackets is what the gateway measured itself: from being told to the
	// packet filter's change. It lies within partConfirmed.
	partPackets = "packets_cut"
)

// Metrics is what the Desk counts.
type Metrics struct {
	admissions [len(verdictLabels)]prometheus.Counter
	sessions   [len(verdictLabels)]prometheus.Gauge
	revocation map[string]prometheus.Observer
	kicks      prometheus.Counter
	renewed    prometheus.Counter
	unrecorded prometheus.Counter
	// proofs are tunnel proofs taken, proofsMissed sessions cut without one.
	proofs, proofsMissed prometheus.Counter
}

// NewMetrics registers the Desk's metrics; with nil they are counted and shown
// nowhere.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	f := promauto.With(registry)
	admissions := f.NewCounterVec(prometheus.CounterOpts{
		Name: "pfoertner_admissions_total",
		Help: "Answers to gateways that asked for a session, by verdict.",
	}, []string{"verdict"})
	sessions := f.NewGaugeVec(prometheus.GaugeOpts{
		Name: "pfoertner_live_sessions",
		Help: "Live sessions that gateways have reported, by verdict.",
	}, []string{"verdict"})
	revocation := f.NewHistogramVec(prometheus.HistogramOpts{
		Name: "pfoertner_revocation_seconds",
		Help: "Time until a session was cut or quarantined, by part: verdict (evidence at hand to verdict stored), " +
			"gate_told, packets_cut (measured by the gateway), cut_confirmed, total.",
		Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .3, .5, 1, 2, 5, 15, 60},
	}, []string{"part"})
	m := &Metrics{
		revocation: map[string]prometheus.Observer{},
		kicks: f.NewCounter(prometheus.CounterOpts{
			Name: "pfoertner_kicks_total",
			Help: "Live sessions that lost their admission and were ordered to be cut.",
		}),
		renewed: f.NewCounter(prometheus.CounterOpts{
			Name: "pfoertner_leases_renewed_total",
			Help: "Leases of live sessions that were renewed.",
		}),
		unrecorded: f.NewCounter(prometheus.CounterOpts{
			Name: "pfoertner_refusals_unlisted_total",
			Help: "Refusals that were recorded only as a number because too many came at once.",
		}),
		proofs: f.NewCounter(prometheus.CounterOpts{
			Name: "pfoertner_tunnel_proofs_total",
			Help: "Sessions that a notebook has proven to be its own.",
		}),
		proofsMissed: f.NewCounter(prometheus.CounterOpts{
			Name: "pfoertner_tunnel_proofs_missed_total",
			Help: "Live sessions that were cut because their tunnel proof did not come in time.",
		}),
	}
	for verdict, label := range verdictLabels {
		m.admissions[verdict] = admissions.WithLabelValues(label)
		m.sessions[verdict] = sessions.WithLabelValues(label)
	}
	for _, part := range []string{partVerdict, partTold, partPackets, partConfirmed, partTotal} {
		m.revocation[part] = revocation.WithLabelValues(part)
	}
	return m
}

var verdictLabels = [...]string{
	posturev1.Verdict_VERDICT_ADMIT:      "admit",
	posturev1.Verdict_VERDICT_QUARANTINE: "quarantine",
	posturev1.Verdict_VERDICT_DENY:       "deny",
}

func (m *Metrics) admission(v posturev1.Verdict) { m.admissions[v].Inc() }

// session counts n sessions more (or fewer) under a verdict.
func (m *Metrics) session(v posturev1.Verdict, n float64) { m.sessions[v].Add(n) }

// part observes one part of a revocation; nothing when its beginning is not
// known.
func (m *Metrics) part(part string, from, to time.Time) {
	if !from.IsZero() && !to.IsZero() {
		m.revocation[part].Observe(max(0, to.Sub(from)).Seconds())
	}
}
