package admission_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"pfoertner/collector/admission"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// world is what the Desk was told, kept as simply as it can be: the newest word
// about every device and every certificate.
type world struct {
	state   map[int]fleetv1.AssetState
	owner   map[int]int // certificate → notebook that named it last
	verdict map[int]posturev1.Verdict
	ends    map[int]time.Time
}

// decides is the rule in its plainest form.
func (w *world) decides(certificate int) posturev1.Verdict {
	n, owned := w.owner[certificate]
	v, appraised := w.verdict[n]
	switch {
	case !owned, w.state[n] != active:
		return deny
	case !appraised:
		return quarantine
	case v == admit && !time.Now().Before(w.ends[n]):
		return quarantine
	}
	return v
}

// Whatever the order of inventory changes, results, bindings and time: what is
// answered, listed and renewed is what the newest facts say. A gateway that
// does as it is told never holds more than that.
func TestNoOrderOfEventsAdmitsWhomTheNewestFactsDoNot(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 1))
				d := newDesk(t, admission.Options{LogSize: 64})
				d.Ready()
				w := watch(t, d, "vpn1")
				held := map[int]posturev1.Verdict{} // by the gateway, per certificate
				told := &world{
					map[int]fleetv1.AssetState{}, map[int]int{}, map[int]posturev1.Verdict{}, map[int]time.Time{},
				}
				const notebooks, certificates = 5, 7
				for step := range 400 {
					n := random.IntN(notebooks)
					switch random.IntN(6) {
					case 0, 1:
						told.setDevice(d, random, n, certificates)
					case 2, 3:
						v := posturev1.Verdict(random.IntN(3))
						holds := time.Duration(random.IntN(40)-5) * time.Second
						told.verdict[n], told.ends[n] = v, time.Now().Add(holds)
						d.SetResult(deviceID(n), result(v, holds))
					case 4:
						time.Sleep(time.Duration(random.IntN(10_000)) * time.Millisecond)
					case 5:
						c := random.IntN(certificates)
						up(t, d, "vpn1", false, posturev1.Verdict(random.IntN(3)), c)
					}
					synctest.Wait()
					news := take(t, w)
					for c := range certificates {
						want := told.decides(c)
						a := ask(t, d, c)
						if a.Verdict != want {
							t.Fatalf("step %d: certificate %d is answered %v, the facts say %v", step, c, a.Verdict, want)
						}
						if end := told.ends[told.owner[c]]; a.Verdict == admit && a.At.Add(a.TTL).After(end) {
							t.Fatalf("step %d: a lease until %v on facts until %v", step, a.At.Add(a.TTL), end)
						}
						if v, ok := verdictOf(news, c); ok {
							held[c] = v
						}
						if held[c] != want {
							t.Fatalf("step %d: the gateway holds %v for certificate %d, the facts say %v", step, held[c], c, want)
						}
						if l := leaseOf(news, c); l != nil && l.GetVerdict() > want {
							t.Fatalf("step %d: certificate %d is renewed with %v, the facts say %v", step, c, l.GetVerdict(), want)
						}
						if s := sessionOf(d, c); s != nil && s.GetVerdict() > want {
							t.Fatalf("step %d: the session of certificate %d is listed with %v, the facts say %v", step, c, s.GetVerdict(), want)
						}
					}
				}
			})
		})
	}
}

// setDevice tells Desk and world of a notebook in a random state with random
// certificates.
func (w *world) setDevice(d *admission.Desk, random *rand.Rand, n, certificates int) {
	state := active
	if random.IntN(3) == 0 {
		state = fleetv1.AssetState(random.IntN(6))
	}
	for c, owner := range w.owner {
		if owner == n {
			delete(w.owner, c)
		}
	}
	var bound []int
	for c := range certificates {
		if random.IntN(4) == 0 {
			bound = append(bound, c)
			w.owner[c] = n
		}
	}
	w.state[n] = state
	d.SetDevice(notebook(n, state, bound...))
}

// A fleet of 100,000 fits into the memory of a small machine.
func TestAHundredThousandDevicesAreModest(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: measures the memory of 100,000 devices; run without -short")
	}
	const devices, most = 100_000, 1024
	d := admission.NewDesk(admission.Options{Epoch: 1, Now: time.Now})
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := used()
	for n := range devices {
		enter(d, n, admit, time.Hour)
	}
	each := (used() - before) / devices
	t.Logf("%d bytes for each of %d devices with one certificate", each, devices)
	if each > most {
		t.Errorf("%d bytes for each device, at most %d are modest", each, most)
	}
	runtime.KeepAlive(d)
}

// BenchmarkFlip is the Desk's part of a revocation: from the new result until
// the gateway's news are at hand, with 1,000 live sessions on it. One operation
// is all 1,000, one after the other.
func BenchmarkFlip(b *testing.B) {
	const sessions = 1000
	d := newDesk(b, admission.Options{})
	for n := range sessions {
		enter(d, n, admit, time.Hour)
	}
	d.Ready()
	w := watch(b, d, "vpn1")
	results := map[posturev1.Verdict]*posturev1.Result{admit: result(admit, time.Hour), quarantine: result(quarantine, time.Hour)}
	for n := range sessions {
		up(b, d, "vpn1", false, admit, n)
	}
	take(b, w)
	v := admit
	for b.Loop() {
		v = admit + quarantine - v
		for n := range sessions {
			d.SetResult(deviceID(n), results[v])
			<-w.Woken()
			if got, ok := verdictOf(take(b, w), n); !ok || got != v {
				b.Fatalf("told %v %v, want %v", got, ok, v)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/sessions, "ns/flip")
}
