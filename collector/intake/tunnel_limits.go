package intake

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
)

const (
	// proofRate and proofBurst bound what one device may try: an agent that
	// retries needs far less.
	proofRate  = rate.Limit(0.5)
	proofBurst = 10
	// openPerDevice and openProofs bound the calls that are open.
	openPerDevice = 2
	openProofs    = 1024
	// mostTried is how many devices are remembered before those that have been
	// quiet are forgotten.
	mostTried = 4096
	// newsAfter is when a repeated refusal is recorded again.
	newsAfter = 10 * time.Minute
)

// tunnelLimits bound what devices may try.
type tunnelLimits struct {
	now func() time.Time

	mu    sync.Mutex
	open  int
	tries map[string]*tunnelTries
}

// tunnelTries are one device's.
type tunnelTries struct {
	rate *rate.Limiter
	open int
	// refusal is the last one that was recorded.
	refusal   string
	refusedAt time.Time
}

func newTunnelLimits(now func() time.Time) *tunnelLimits {
	return &tunnelLimits{now: now, tries: map[string]*tunnelTries{}}
}

// enter says whether a device may try now; then release has to be called.
func (l *tunnelLimits) enter(deviceID string) (release func(), ok bool) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tries[deviceID]
	if t == nil {
		l.tidy(now)
		t = &tunnelTries{rate: rate.NewLimiter(proofRate, proofBurst)}
		l.tries[deviceID] = t
	}
	if l.open >= openProofs || t.open >= openPerDevice || !t.rate.AllowN(now, 1) {
		return nil, false
	}
	l.open++
	t.open++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.open--
		t.open--
	}, true
}

// tidy forgets devices that are as if they had never tried.
func (l *tunnelLimits) tidy(now time.Time) {
	if len(l.tries) < mostTried {
		return
	}
	for id, t := range l.tries {
		if t.open == 0 && t.rate.TokensAt(now) >= proofBurst && now.Sub(t.refusedAt) > newsAfter {
			delete(l.tries, id)
		}
	}
}

// news says whether a refusal of a device is another one than its last, or
// long after it. A call that has ended may still ask: a device that was
// forgotten meanwhile has nothing new to say.
func (l *tunnelLimits) news(deviceID, refusal string) bool {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tries[deviceID]
	if t == nil || t.refusal == refusal && now.Sub(t.refusedAt) < newsAfter {
		return false
	}
	t.refusal, t.refusedAt = refusal, now
	return true
}

// TunnelMetrics counts tunnel proofs. Nil counts nothing.
type TunnelMetrics struct{ proofs *prometheus.CounterVec }

// tunnelOutcomes are the labels of what a call ended with; any other is
// "broken".
var tunnelOutcomes = map[codes.Code]string{
	codes.OK: "proven", codes.NotFound: "no_session", codes.PermissionDenied: "refused",
}

// NewTunnelMetrics makes and registers the metrics of tunnel proofs.
func NewTunnelMetrics(registerer prometheus.Registerer) *TunnelMetrics {
	m := &TunnelMetrics{proofs: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pfoertner_agent_tunnel_proofs_total",
		Help: "Tunnel proofs that agents tried, by outcome (proven, no_session, refused, limited, broken).",
	}, []string{"outcome"})}
	registerer.MustRegister(m.proofs)
	return m
}

func (m *TunnelMetrics) ended(outcome string) {
	if m == nil {
		return
	}
	if outcome == "" {
		outcome = "broken"
	}
	m.proofs.WithLabelValues(outcome).Inc()
}
