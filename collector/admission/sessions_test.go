package admission_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/admission"
	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func TestAFlipReachesExactlyTheGatewaysConcerned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, admission.Options{})
		enter(d, 1, admit, time.Hour)
		enter(d, 2, admit, time.Hour)
		d.Ready()
		with, without, elsewhere := watch(t, d, "with"), watch(t, d, "without"), watch(t, d, "elsewhere")
		up(t, d, "with", true, admit, 1)
		up(t, d, "elsewhere", true, admit, 2)
		take(t, with)
		take(t, elsewhere)

		d.SetResult(deviceID(1), result(deny, time.Hour))
		if !woken(with) {
			t.Error("the gateway of the session was not woken")
		}
		if woken(without) || woken(elsewhere) {
			t.Error("a gateway without the session was woken")
		}
		news := take(t, with)
		if v, ok := verdictOf(news, 1); !ok || v != deny {
			t.Errorf("told: %v %v", v, ok)
		}
		if leaseOf(news, 1) != nil {
			t.Error("a session that is cut got a lease")
		}
		// Those who only may need it later learn of it with their heartbeat.
		if v, ok := verdictOf(take(t, elsewhere), 1); !ok || v != deny {
			t.Errorf("the others were told: %v %v", v, ok)
		}
		if s := sessionOf(d, 1); !s.GetCutPending() || s.GetVerdict() != deny {
			t.Errorf("listed: %v", s)
		}
		if s := sessionOf(d, 2); s.GetCutPending() || s.GetVerdict() != admit {
			t.Errorf("the other's session: %v", s)
		}
		report(t, d, "with", cut(1, deny))
		if s := sessionOf(d, 1); s != nil {
			t.Errorf("still listed after its end was confirmed: %v", s)
		}
	})
}

func TestEveryWayToLoseAdmissionCutsALiveSession(t *testing.T) {
	for name, c := range map[string]struct {
		lose func(d *admission.Desk)
		want posturev1.Verdict
	}{
		"result":        {func(d *admission.Desk) { d.SetResult(deviceID(1), result(deny, time.Hour)) }, deny},
		"quarantine":    {func(d *admission.Desk) { d.SetResult(deviceID(1), result(quarantine, time.Hour)) }, quarantine},
		"suspended":     {func(d *admission.Desk) { d.SetDevice(notebook(1, suspended, 1)) }, deny},
		"retired":       {func(d *admission.Desk) { d.SetDevice(notebook(1, retired, 1)) }, deny},
		"unbound":       {func(d *admission.Desk) { d.SetDevice(notebook(1, active)) }, deny},
		"binding moved": {func(d *admission.Desk) { d.SetDevice(notebook(2, active, 1)) }, quarantine},
		"moved to a suspended asset": {func(d *admission.Desk) {
			d.SetDevice(notebook(2, suspended, 1))
		}, deny},
		"evidence too old": {func(*admission.Desk) { time.Sleep(time.Hour); synctest.Wait() }, quarantine},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t, admission.Options{})
				enter(d, 1, admit, time.Hour)
				d.Ready()
				w := watch(t, d, "vpn1")
				up(t, d, "vpn1", true, admit, 1)
				take(t, w)
				c.lose(d)
				if !woken(w) {
					t.Error("the gateway was not woken")
				}
				news := take(t, w)
				if v, ok := verdictOf(news, 1); !ok || v != c.want {
					t.Errorf("told %v (%v), want %v", v, ok, c.want)
				}
				if l := leaseOf(news, 1); c.want == quarantine && l.GetVerdict() != quarantine || c.want == deny && l != nil {
					t.Errorf("lease: %v", l)
				}
				if a := ask(t, d, 1); a.Verdict != c.want {
					t.Errorf("a new session: %v", a.Verdict)
				}
			})
		})
	}
}

func TestAQuarantinedSessionIsLiftedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, admission.Options{})
		enter(d, 1, quarantine, time.Hour)
		d.Ready()
		w := watch(t, d, "vpn1")
		up(t, d, "vpn1", true, quarantine, 1)
		take(t, w)
		d.SetResult(deviceID(1), result(admit, time.Hour))
		if !woken(w) {
			t.Error("the gateway was not woken")
		}
		if l := leaseOf(take(t, w), 1); l.GetVerdict() != admit || l.GetTtl().AsDuration() != 15*time.Second {
			t.Errorf("lease: %v", l)
		}
	})
}

func TestASessionThatTheGatewayIsCuttingIsNotLifted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, admission.Options{})
		enter(d, 1, admit, time.Hour)
		d.Ready()
		w := watch(t, d, "vpn1")
		up(t, d, "vpn1", true, admit, 1)
		take(t, w)
		d.SetResult(deviceID(1), result(deny, time.Hour))
		take(t, w)
		d.SetResult(deviceID(1), result(admit, time.Hour))
		time.Sleep(time.Minute)
		if l := leaseOf(take(t, w), 1); l != nil {
			t.Errorf("got a lease: %v", l)
		}
		// A flip back before the gateway heard of anything is no cut.
		enter(d, 2, admit, time.Hour)
		up(t, d, "vpn1", false, admit, 2)
		take(t, w)
		d.SetResult(deviceID(2), result(deny, time.Hour))
		d.SetResult(deviceID(2), result(admit, time.Hour))
		news := take(t, w)
		if v, ok := verdictOf(news, 2); ok && v != admit || leaseOf(news, 2).GetVerdict() != admit {
			t.Errorf("told %v, lease %v", v, leaseOf(news, 2))
		}
	})
}

func TestAReportedSessionIsHeldAgainstWhatTheDeskKnows(t *testing.T) {
	for name, c := range map[string]struct {
		session  int
		reported posturev1.Verdict
		told     bool
		want     posturev1.Verdict
		pending  bool
	}{
		"agrees":                          {1, admit, false, admit, false},
		"unknown identity":                {9, admit, true, deny, true},
		"denied since":                    {2, admit, true, deny, true},
		"quarantined since":               {3, admit, true, quarantine, false},
		"admitted since":                  {1, quarantine, true, admit, false},
		"the gateway says that it is out": {1, deny, false, deny, true},
		"a verdict of the future":         {1, 99, false, deny, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t, admission.Options{})
				enter(d, 1, admit, time.Hour)
				enter(d, 2, deny, time.Hour)
				enter(d, 3, quarantine, time.Hour)
				d.Ready()
				w := watch(t, d, "vpn1")
				up(t, d, "vpn1", false, c.reported, c.session)
				if woken(w) != c.told {
					t.Errorf("woken: %v", !c.told)
				}
				news := take(t, w)
				if v, ok := verdictOf(news, c.session); ok != c.told || ok && v != c.want {
					t.Errorf("told %v (%v)", v, ok)
				}
				s := sessionOf(d, c.session)
				if s.GetVerdict() != c.want || s.GetCutPending() != c.pending {
					t.Errorf("listed: %v", s)
				}
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if l := leaseOf(take(t, w), c.session); (l != nil) == c.pending || l != nil && l.GetVerdict() != c.want {
					t.Errorf("renewed: %v", l)
				}
			})
		})
	}
}

func TestACutIsOrderedAgainUntilItIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, admission.Options{})
		enter(d, 1, admit, time.Hour)
		d.Ready()
		w := watch(t, d, "vpn1")
		up(t, d, "vpn1", true, admit, 1)
		take(t, w)
		d.SetResult(deviceID(1), result(deny, time.Hour))
		for i := range 4 {
			if v, ok := verdictOf(take(t, w), 1); !ok || v != deny {
				t.Errorf("order %d: %v %v", i, v, ok)
			}
			time.Sleep(5 * time.Second)
			synctest.Wait()
		}
		report(t, d, "vpn1", cut(1, deny))
		take(t, w)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if _, ok := verdictOf(take(t, w), 1); ok {
			t.Error("ordered although it was confirmed")
		}
	})
}

func TestAFullReportEndsWhatItDoesNotName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, admission.Options{})
		for n := range 4 {
			enter(d, n, admit, time.Hour)
		}
		d.Ready()
		up(t, d, "vpn1", true, admit, 0, 1)
		up(t, d, "vpn2", true, admit, 2)
		up(t, d, "vpn1", false, admit, 3)
		if n := len(d.Sessions("vpn1")); n != 3 {
			t.Errorf("%d sessions, want 3", n)
		}
		up(t, d, "vpn1", true, admit, 3)
		if s := d.Sessions("vpn1"); len(s) != 1 || s[0].GetSessionId() != "ovpn/3" {
			t.Errorf("sessions after a full report: %v", s)
		}
		report(t, d, "vpn1", &gatev1.ReportRequest{Events: []*gatev1.SessionEvent{
			{Event: &gatev1.SessionEvent_Roamed{Roamed: &gatev1.SessionRoamed{SessionId: "ovpn/3", TunnelAddresses: []string{"10.8.0.9"}}}},
		}})
		if s := d.Sessions("vpn1"); s[0].GetTunnelAddresses()[0] != "10.8.0.9" || s[0].GetAssetNumber() != "NB-0003" {
			t.Errorf("after roaming: %v", s)
		}
		report(t, d, "vpn1", &gatev1.ReportRequest{Events: []*gatev1.SessionEvent{
			{Event: &gatev1.SessionEvent_Down{Down: &gatev1.SessionDown{SessionId: "ovpn/3"}}},
		}})
		if s := d.Sessions(""); len(s) != 1 || s[0].GetGateway() != "vpn2" {
			t.Errorf("what is left: %v", s)
		}
	})
}

func TestASilentGatewayKeepsItsSessionsListedAsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, admission.Options{})
		enter(d, 1, admit, time.Hour)
		d.Ready()
		w := watch(t, d, "vpn1")
		up(t, d, "vpn1", true, admit, 1)
		for range 10 {
			time.Sleep(time.Second)
			w.Told(admission.News{}) // a heartbeat that was sent
		}
		if s := sessionOf(d, 1); s.GetGatewayLost() {
			t.Errorf("lost although it answers: %v", s)
		}
		w.Close()
		time.Sleep(3*time.Second + 1)
		if s := sessionOf(d, 1); !s.GetGatewayLost() {
			t.Errorf("silent for more than three heartbeats: %v", s)
		}
		up(t, d, "vpn1", true, admit, 1)
		if s := sessionOf(d, 1); s.GetGatewayLost() {
			t.Errorf("back: %v", s)
		}
	})
}

func TestLeasesAreRenewedAtAThirdForADayAndNight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, admission.Options{})
		d.OnExpiry(func(id string) { d.SetResult(id, result(admit, time.Hour)) })
		enter(d, 1, admit, time.Hour)
		d.Ready()
		w := watch(t, d, "vpn1")
		up(t, d, "vpn1", true, admit, 1)
		ends := time.Now().Add(leaseOf(take(t, w), 1).GetTtl().AsDuration())
		begin, renewals, last := time.Now(), 0, lease.Position{}
		for time.Since(begin) < 24*time.Hour {
			<-w.Woken()
			l := leaseOf(take(t, w), 1)
			if l == nil {
				continue
			}
			if l.GetVerdict() != admit || !lease.At(l).After(last) {
				t.Fatalf("after %v: %v", time.Since(begin), l)
			}
			if time.Now().After(ends) {
				t.Fatalf("renewed at %v, the lease had ended at %v", time.Now(), ends)
			}
			last, ends = lease.At(l), time.Now().Add(l.GetTtl().AsDuration())
			renewals++
		}
		// Every 5 s, and once more at each of the 24 results' ends.
		if want := 24 * 3600 / 5; renewals < want || renewals > want+24 {
			t.Errorf("%d renewals, want about %d", renewals, want)
		}
	})
}

func TestTheEndOfAResultIsAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, admission.Options{})
		var asked []time.Duration
		begin := time.Now()
		d.OnExpiry(func(id string) {
			if id != deviceID(1) {
				t.Errorf("asked about %s", id)
			}
			asked = append(asked, time.Since(begin))
		})
		enter(d, 1, admit, time.Hour)
		d.Ready()
		w := watch(t, d, "vpn1")
		up(t, d, "vpn1", true, admit, 1)
		time.Sleep(time.Minute)
		d.SetResult(deviceID(1), result(admit, time.Hour)) // the end moves
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if len(asked) != 1 || asked[0] != time.Hour+time.Minute {
			t.Errorf("asked for a new appraisal after %v, want once, after 1h1m", asked)
		}
		news := take(t, w)
		if v, ok := verdictOf(news, 1); !ok || v != quarantine {
			t.Errorf("told %v %v", v, ok)
		}
		if l := leaseOf(news, 1); l.GetVerdict() != quarantine {
			t.Errorf("lease %v", l)
		}
		// An old end that comes again is not asked about again.
		d.SetDevice(notebook(1, active, 1))
		time.Sleep(time.Hour)
		if len(asked) != 1 {
			t.Errorf("asked %d times", len(asked))
		}
	})
}

func TestAResultThatEndedWhileTheCollectorWasDownIsAppraisedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := admission.NewDesk(admission.Options{Epoch: 8, Now: time.Now})
		asked := 0
		d.OnExpiry(func(id string) {
			asked++
			d.SetResult(id, result(admit, time.Hour))
		})
		enter(d, 1, admit, -time.Minute)
		d.Ready()
		if a := ask(t, d, 1); a.Verdict != quarantine {
			t.Errorf("before: %v", a.Verdict)
		}
		run(t, d)
		synctest.Wait()
		if a := ask(t, d, 1); asked != 1 || a.Verdict != admit {
			t.Errorf("asked %d times, then %v", asked, a.Verdict)
		}
	})
}

func TestAShortLeaseIsRenewedWhenItsEndMovesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, admission.Options{})
		enter(d, 1, admit, 3*time.Second)
		d.Ready()
		w := watch(t, d, "vpn1")
		up(t, d, "vpn1", true, admit, 1)
		if l := leaseOf(take(t, w), 1); l.GetTtl().AsDuration() != 3*time.Second {
			t.Errorf("lease: %v", l)
		}
		time.Sleep(time.Second)
		d.SetResult(deviceID(1), result(admit, time.Hour))
		if !woken(w) {
			t.Error("the gateway was not woken")
		}
		if l := leaseOf(take(t, w), 1); l.GetTtl().AsDuration() != 15*time.Second {
			t.Errorf("lease: %v", l)
		}
		// A heartbeat of an agent whose session has a full lease is no reason.
		d.SetResult(deviceID(1), result(admit, time.Hour))
		if woken(w) {
			t.Error("woken without need")
		}
	})
}

func TestWatchesGoOnWhereTheyWere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, admission.Options{LogSize: 8})
		for n := range 2500 {
			enter(d, n, admit, time.Hour)
		}
		d.Ready()
		open := func(from lease.Position) (resumed bool, chunks, identities int, w *admission.Watcher) {
			t.Helper()
			w, err := d.Watch("vpn1", from)
			if err != nil {
				t.Fatal(err)
			}
			last := false
			for m := range w.Snapshot() {
				if n := len(m.GetStandings()); n > 1000 || last || lease.At(m) != lease.At(w.Start()) {
					t.Errorf("chunk of %d at %v, after the last: %v", n, lease.At(m), last)
				}
				chunks, identities, last = chunks+1, identities+len(m.GetStandings()), m.GetLast()
			}
			if !w.Start().GetResumed() && !last {
				t.Error("the snapshot has no last chunk")
			}
			return w.Start().GetResumed(), chunks, identities, w
		}
		resumed, chunks, identities, w := open(lease.Position{})
		if resumed || chunks != 3 || identities != 2500 {
			t.Errorf("first: resumed %v, %d chunks, %d identities", resumed, chunks, identities)
		}
		at := take(t, w).Position
		d.SetResult(deviceID(3), result(deny, time.Hour))
		resumed, _, _, w = open(at)
		if v, ok := verdictOf(take(t, w), 3); !resumed || !ok || v != deny {
			t.Errorf("resumed %v, told %v %v", resumed, v, ok)
		}
		if resumed, _, _, _ := open(lease.Position{Epoch: at.Epoch - 1, Sequence: at.Sequence}); resumed {
			t.Error("resumed from another epoch")
		}
		if resumed, _, _, _ := open(lease.Position{Epoch: at.Epoch, Sequence: at.Sequence + 1000}); resumed {
			t.Error("resumed from the future")
		}
		_, _, _, w = open(lease.Position{})
		at = take(t, w).Position
		for n := range 9 {
			d.SetResult(deviceID(n+10), result(quarantine, time.Hour))
		}
		if _, err := w.Take(); !errors.Is(err, admission.ErrBehind) {
			t.Errorf("nine changes in a log of eight: %v", err)
		}
		if resumed, _, identities, _ := open(at); resumed || identities != 2500 {
			t.Errorf("after falling behind: resumed %v, %d identities", resumed, identities)
		}
		d2 := newDesk(t, admission.Options{})
		d2.Ready()
		w, err := d2.Watch("vpn1", lease.Position{})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for m := range w.Snapshot() {
			n++
			if !m.GetLast() {
				t.Error("the snapshot of an empty fleet has no last chunk")
			}
		}
		if n != 1 {
			t.Errorf("an empty fleet has %d chunks: the gateway would wait for ever", n)
		}
	})
}

func TestAGatewayHasOneWatch(t *testing.T) {
	d := newDesk(t, admission.Options{})
	d.Ready()
	old := watch(t, d, "vpn1")
	newer := watch(t, d, "vpn1")
	if !woken(old) {
		t.Error("the old watch was not woken")
	}
	if _, err := old.Take(); !errors.Is(err, admission.ErrReplaced) {
		t.Errorf("the old watch: %v", err)
	}
	old.Close()
	if _, err := newer.Take(); err != nil {
		t.Errorf("the new watch: %v", err)
	}
}

func TestARemovedIdentityIsToldAsRemoved(t *testing.T) {
	d := newDesk(t, admission.Options{})
	enter(d, 1, admit, time.Hour)
	enter(d, 2, admit, time.Hour)
	d.Ready()
	w := watch(t, d, "vpn1")
	d.SetDevice(notebook(1, active))
	news := take(t, w)
	if st := news.Changes[0].GetStandings(); len(st) != 1 || !st[0].GetRemoved() || st[0].GetVerdict() != deny {
		t.Errorf("told: %v", st)
	}
	if a := ask(t, d, 2); a.Verdict != admit {
		t.Errorf("the other one: %v", a.Verdict)
	}
}

func TestRevocationIsMeasuredByPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		d := newDesk(t, admission.Options{Metrics: admission.NewMetrics(registry)})
		enter(d, 1, admit, time.Hour)
		d.Ready()
		w := watch(t, d, "vpn1")
		up(t, d, "vpn1", true, admit, 1)
		take(t, w)
		res := result(deny, time.Hour)
		res.AppraisedAt = timestamppb.New(time.Now())
		time.Sleep(40 * time.Millisecond) // stored
		d.SetResult(deviceID(1), res)
		time.Sleep(3 * time.Millisecond)
		take(t, w)
		time.Sleep(25 * time.Millisecond)
		report(t, d, "vpn1", cut(1, deny))
		for part, want := range map[string]float64{
			"verdict": .040, "gate_told": .003, "packets_cut": .005, "cut_confirmed": .025, "total": .068,
		} {
			if n, sum := histogram(t, registry, "pfoertner_revocation_seconds", part); n != 1 || sum < want-1e-9 || sum > want+1e-9 {
				t.Errorf("%s: %d of %v s, want %v s", part, n, sum, want)
			}
		}
		for metric, want := range map[string]float64{
			"pfoertner_kicks_total": 1, "pfoertner_live_sessions": 0, "pfoertner_leases_renewed_total": 1,
		} {
			if got := total(t, registry, metric); got != want {
				t.Errorf("%s: %v, want %v", metric, got, want)
			}
		}
	})
}

func histogram(t *testing.T, g prometheus.Gatherer, name, part string) (uint64, float64) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == part {
				return m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum()
			}
		}
	}
	return 0, 0
}

func total(t *testing.T, g prometheus.Gatherer, name string) (sum float64) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}
