package admission_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/admission"
	"pfoertner/internal/lease"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	notRequired = fleetv1.TunnelProofState_TUNNEL_PROOF_STATE_NOT_REQUIRED
	missing     = fleetv1.TunnelProofState_TUNNEL_PROOF_STATE_MISSING
	proven      = fleetv1.TunnelProofState_TUNNEL_PROOF_STATE_PROVEN

	within = 20 * time.Second
)

// demanding is a policy by which the named gateways need a proof.
func demanding(gateways ...string) func(string) (time.Duration, bool) {
	return func(gateway string) (time.Duration, bool) {
		for _, g := range gateways {
			if g == gateway {
				return within, true
			}
		}
		return 0, false
	}
}

// proofDesk has notebooks 1 and 2, admitted, and vpn1 needs a proof.
func proofDesk(t *testing.T) (*admission.Desk, *admission.Watcher) {
	t.Helper()
	d := newDesk(t, admission.Options{})
	d.SetTunnelPolicy(demanding("vpn1"))
	enter(d, 1, admit, time.Hour)
	enter(d, 2, admit, time.Hour)
	d.Ready()
	return d, watch(t, d, "vpn1")
}

// upAt reports session n, of certificate n, as live with tunnel addresses.
func upAt(t testing.TB, d *admission.Desk, gateway string, full bool, v posturev1.Verdict, n int, addresses ...string) {
	t.Helper()
	f := facts(n)
	f.TunnelAddresses = addresses
	report(t, d, gateway, &gatev1.ReportRequest{Full: full, Events: []*gatev1.SessionEvent{{
		At: timestamppb.Now(), Event: &gatev1.SessionEvent_Up{Up: &gatev1.SessionUp{Session: f, Verdict: v}},
	}}})
}

func at(text string) netip.Addr { return netip.MustParseAddr(text) }

func prove(t testing.TB, d *admission.Desk, gateway string, n, device int, from string) {
	t.Helper()
	if _, err := d.Prove(gateway, facts(n).GetSessionId(), deviceID(device), at(from)); err != nil {
		t.Fatal(err)
	}
}

func TestAnUnprovenSessionIsQuarantinedAndAProofLiftsItAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w := proofDesk(t)
		a := ask(t, d, 1)
		if a.Verdict != quarantine || a.TTL != 15*time.Second || a.Code != "" || a.Message != nil {
			t.Errorf("a new session is answered %+v", a)
		}
		upAt(t, d, "vpn1", false, quarantine, 1, "10.8.0.2", "fd00::2")
		s := sessionOf(d, 1)
		if s.GetVerdict() != quarantine || s.GetTunnelProof() != missing || !s.GetTunnelProofDueAt().AsTime().Equal(time.Now().Add(within)) {
			t.Errorf("listed: %v", s)
		}
		take(t, w)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if l := leaseOf(take(t, w), 1); l.GetVerdict() != quarantine {
			t.Errorf("renewed with %v", l)
		}
		prove(t, d, "vpn1", 1, 1, "10.8.0.2")
		if !woken(w) {
			t.Error("the gateway was not woken")
		}
		if l := leaseOf(take(t, w), 1); l.GetVerdict() != admit || l.GetTtl().AsDuration() != 15*time.Second {
			t.Errorf("the lease after the proof: %v", l)
		}
		if s := sessionOf(d, 1); s.GetTunnelProof() != proven || s.GetTunnelProofDueAt() != nil {
			t.Errorf("listed: %v", s)
		}
		// New keys inside the session: the proof goes on.
		if a := ask(t, d, 1); a.Verdict != admit {
			t.Errorf("asked again for the session: %v", a.Verdict)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := sessionOf(d, 1); s.GetVerdict() != admit || s.GetCutPending() {
			t.Errorf("a minute later: %v", s)
		}
	})
}

func TestASessionWithoutItsProofIsCutByALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		kept := &book{}
		d := newDesk(t, admission.Options{Refusals: kept, Metrics: admission.NewMetrics(registry)})
		d.SetTunnelPolicy(demanding("vpn1"))
		enter(d, 1, admit, time.Hour)
		d.Ready()
		w := watch(t, d, "vpn1")
		upAt(t, d, "vpn1", false, quarantine, 1, "10.8.0.2")
		time.Sleep(within - time.Millisecond)
		synctest.Wait()
		if l := leaseOf(take(t, w), 1); l.GetVerdict() != quarantine {
			t.Errorf("before the end: %v", l)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if !woken(w) {
			t.Error("the gateway was not woken")
		}
		news := take(t, w)
		l := leaseOf(news, 1)
		if l == nil || l.GetVerdict() != deny || l.GetTtl().AsDuration() != 0 || len(l.GetCode()) != 7 {
			t.Fatalf("at the end: %v", l)
		}
		if v, ok := verdictOf(news, 1); ok {
			t.Errorf("the identity's standing is told as %v: only the session is refused", v)
		}
		if s := sessionOf(d, 1); s.GetVerdict() != deny || !s.GetCutPending() {
			t.Errorf("listed: %v", s)
		}
		// Said again until it is confirmed; neither a proof nor a question lifts it.
		if _, err := d.Prove("vpn1", facts(1).GetSessionId(), deviceID(1), at("10.8.0.2")); !errors.Is(err, admission.ErrNoSession) {
			t.Errorf("a proof that is late: %v", err)
		}
		if a := ask(t, d, 1); a.Verdict != deny || a.Code != l.GetCode() || a.Message.GetDe() == "" {
			t.Errorf("asked again for the session: %+v", a)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if l := leaseOf(take(t, w), 1); l == nil || l.GetVerdict() != deny {
			t.Errorf("not said again: %v", l)
		}
		// A gate that has lost its memory of it is told again.
		upAt(t, d, "vpn1", true, quarantine, 1, "10.8.0.2")
		if l := leaseOf(take(t, w), 1); l == nil || l.GetVerdict() != deny {
			t.Errorf("after a restart of the gate: %v", l)
		}
		report(t, d, "vpn1", cut(1, deny))
		if s := sessionOf(d, 1); s != nil {
			t.Errorf("still listed: %v", s)
		}
		if x := kept.refusal(l.GetCode()); x.GetDevice().GetId() != deviceID(1) || x.GetVerdict() != deny || x.GetReason().GetDe() == "" {
			t.Errorf("the code stands for %v", x)
		}
		if len(kept.records) == 0 || kept.records[0].Kind != "session.refused" || kept.records[0].Details["cause"] != "not_proven" {
			t.Errorf("recorded: %v", kept.records)
		}
		if n := total(t, registry, "pfoertner_tunnel_proofs_missed_total"); n != 1 {
			t.Errorf("%v missed proofs are counted", n)
		}
	})
}

func TestOnlyTheSessionsOwnDeviceProvesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := proofDesk(t)
		upAt(t, d, "vpn1", false, quarantine, 1, "10.8.0.2")
		upAt(t, d, "vpn1", false, quarantine, 2, "10.8.0.3")
		id := facts(1).GetSessionId()
		for name, c := range map[string]struct {
			gateway, session string
			device           string
			from             string
			want             error
		}{
			"another device":      {"vpn1", id, deviceID(2), "10.8.0.2", admission.ErrNotItsSession},
			"no device":           {"vpn1", id, "", "10.8.0.2", admission.ErrNotItsSession},
			"another's address":   {"vpn1", id, deviceID(1), "10.8.0.3", admission.ErrNoSession},
			"an unknown address":  {"vpn1", id, deviceID(1), "10.8.0.9", admission.ErrNoSession},
			"another gateway":     {"vpn2", id, deviceID(1), "10.8.0.2", admission.ErrNoSession},
			"a session long over": {"vpn1", "ovpn/9", deviceID(1), "10.8.0.2", admission.ErrNoSession},
		} {
			if _, err := d.Prove(c.gateway, c.session, c.device, at(c.from)); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
		d.SetDevice(notebook(1, suspended, 1))
		if _, err := d.Prove("vpn1", id, deviceID(1), at("10.8.0.2")); err == nil {
			t.Error("a suspended device proves a session")
		}
		if s := sessionOf(d, 1); s.GetVerdict() == admit {
			t.Errorf("listed: %v", s)
		}
	})
}

func TestWhatEndsAProof(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(t *testing.T, d *admission.Desk)
		// gone is whether the proof is; stays whether the session does.
		gone, stays bool
	}{
		"a report of the same session": {func(t *testing.T, d *admission.Desk) {
			upAt(t, d, "vpn1", true, admit, 1, "10.8.0.2")
		}, false, true},
		"a new outer address": {func(t *testing.T, d *admission.Desk) { roam(t, d, 1, "10.8.0.2") }, false, true},
		"a new tunnel address": {func(t *testing.T, d *admission.Desk) {
			roam(t, d, 1, "10.8.0.7")
		}, true, true},
		"a report with another address": {func(t *testing.T, d *admission.Desk) {
			upAt(t, d, "vpn1", true, admit, 1, "10.8.0.7")
		}, true, true},
		"the session's end": {func(t *testing.T, d *admission.Desk) {
			report(t, d, "vpn1", &gatev1.ReportRequest{Full: true})
			upAt(t, d, "vpn1", false, quarantine, 1, "10.8.0.2")
		}, true, true},
		"a short silence of the gateway": {func(t *testing.T, d *admission.Desk) {
			time.Sleep(10 * time.Second)
			upAt(t, d, "vpn1", true, admit, 1, "10.8.0.2")
		}, false, true},
		"a long silence of the gateway": {func(t *testing.T, d *admission.Desk) {
			time.Sleep(16 * time.Second)
			upAt(t, d, "vpn1", true, admit, 1, "10.8.0.2")
		}, true, true},
		"a long silence that a question ends": {func(t *testing.T, d *admission.Desk) {
			time.Sleep(16 * time.Second)
			ask(t, d, 2)
			upAt(t, d, "vpn1", true, admit, 1, "10.8.0.2")
		}, true, true},
		"a long silence that a watch ends": {func(t *testing.T, d *admission.Desk) {
			time.Sleep(16 * time.Second)
			watch(t, d, "vpn1")
			upAt(t, d, "vpn1", true, admit, 1, "10.8.0.2")
		}, true, true},
		"its device's proof of another session": {func(t *testing.T, d *admission.Desk) {
			d.SetDevice(notebook(1, active, 1, 3))
			upAt(t, d, "vpn1", false, quarantine, 3, "10.8.0.3")
			prove(t, d, "vpn1", 3, 1, "10.8.0.3")
		}, true, true},
		"its certificate named by another asset": {func(t *testing.T, d *admission.Desk) {
			d.SetDevice(notebook(2, active, 2, 1))
		}, true, true},
		"its certificate there and back": {func(t *testing.T, d *admission.Desk) {
			d.SetDevice(notebook(2, active, 2, 1))
			d.SetDevice(notebook(2, active, 2))
			d.SetDevice(notebook(1, active, 1))
		}, true, false},
		"a proof that could not be recorded": {func(t *testing.T, d *admission.Desk) {
			d.Unprove("vpn1", facts(1).GetSessionId())
		}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, w := proofDesk(t)
				upAt(t, d, "vpn1", true, quarantine, 1, "10.8.0.2")
				prove(t, d, "vpn1", 1, 1, "10.8.0.2")
				take(t, w)
				w.Close()
				c.happens(t, d)
				s := sessionOf(d, 1)
				if gone := s.GetVerdict() != admit; gone != c.gone || (s.GetTunnelProof() == proven) == c.gone {
					t.Errorf("listed: %v, want gone %v", s, c.gone)
				}
				if a := ask(t, d, 1); (a.Verdict != admit) != c.gone {
					t.Errorf("answered: %v", a.Verdict)
				}
				if c.gone && c.stays && s.GetTunnelProofDueAt() == nil {
					t.Errorf("no end is set: %v", s)
				}
				time.Sleep(within)
				synctest.Wait()
				if s := sessionOf(d, 1); s.GetCutPending() != (c.gone) {
					t.Errorf("after the time for a proof: %v", s)
				}
			})
		})
	}
}

func roam(t testing.TB, d *admission.Desk, n int, addresses ...string) {
	t.Helper()
	report(t, d, "vpn1", &gatev1.ReportRequest{Events: []*gatev1.SessionEvent{{Event: &gatev1.SessionEvent_Roamed{
		Roamed: &gatev1.SessionRoamed{SessionId: facts(n).GetSessionId(), OuterAddress: "192.0.2.9:1", TunnelAddresses: addresses},
	}}}})
}

func TestADeviceIsAskedForTheProofOfItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := proofDesk(t)
		var asked []string
		d.OnProofWanted(func(id string) {
			d.Sessions("") // the Desk may be asked meanwhile
			asked = append(asked, id)
		})
		expect := func(what string, want ...string) {
			t.Helper()
			if !slices.Equal(asked, want) {
				t.Errorf("%s: asked %q, want %q", what, asked, want)
			}
			asked = nil
		}
		upAt(t, d, "vpn1", false, quarantine, 1, "10.8.0.2")
		expect("a new session", deviceID(1))
		d.SetResult(deviceID(1), result(admit, time.Hour))
		ask(t, d, 1)
		expect("nothing about it changes")
		upAt(t, d, "vpn1", false, quarantine, 1, "10.8.0.2")
		expect("reported again", deviceID(1))
		prove(t, d, "vpn1", 1, 1, "10.8.0.2")
		upAt(t, d, "vpn1", true, admit, 1, "10.8.0.2")
		expect("proven")
		roam(t, d, 1, "10.8.0.3")
		expect("it has moved", deviceID(1))
		prove(t, d, "vpn1", 1, 1, "10.8.0.3")
		d.SetDevice(notebook(1, active, 1, 3))
		upAt(t, d, "vpn1", false, quarantine, 3, "10.8.0.4")
		expect("another session", deviceID(1))
		prove(t, d, "vpn1", 3, 1, "10.8.0.4")
		expect("one proof ends the other")
		time.Sleep(16 * time.Second)
		ask(t, d, 1)
		expect("after a long silence", deviceID(1))
		upAt(t, d, "vpn2", false, admit, 2, "10.9.0.2")
		expect("where none is needed")
		d.SetTunnelPolicy(demanding("vpn2"))
		expect("a policy that needs it", deviceID(2))
	})
}

func TestReportingASessionAgainDoesNotGiveItMoreTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := proofDesk(t)
		upAt(t, d, "vpn1", false, quarantine, 1, "10.8.0.2")
		for i := range 4 {
			time.Sleep(within / 4)
			synctest.Wait()
			upAt(t, d, "vpn1", true, quarantine, 1, fmt.Sprintf("10.8.0.%d", 3+i))
		}
		if s := sessionOf(d, 1); !s.GetCutPending() {
			t.Errorf("listed: %v", s)
		}
	})
}

func TestARestartedCollectorAsksForProofsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w := proofDesk(t) // what the gateway reports is all it knows
		upAt(t, d, "vpn1", true, admit, 1, "10.8.0.2")
		if l := leaseOf(take(t, w), 1); l.GetVerdict() != quarantine {
			t.Errorf("an admitted session that is reported: %v", l)
		}
		if s := sessionOf(d, 1); s.GetVerdict() != quarantine || s.GetTunnelProof() != missing {
			t.Errorf("listed: %v", s)
		}
		prove(t, d, "vpn1", 1, 1, "10.8.0.2")
		if l := leaseOf(take(t, w), 1); l.GetVerdict() != admit {
			t.Errorf("proven again: %v", l)
		}
	})
}

func TestAnAddressIsOfOneSessionOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := proofDesk(t)
		if _, _, _, ok := d.SessionAt(at("10.8.0.2")); ok {
			t.Error("found before it is reported")
		}
		upAt(t, d, "vpn1", false, quarantine, 1, "10.8.0.2", "FD00:0::2", "no address")
		for _, a := range []string{"10.8.0.2", "::ffff:10.8.0.2", "fd00::2"} {
			if g, s, dev, ok := d.SessionAt(at(a)); !ok || g != "vpn1" || s != "ovpn/1" || dev != deviceID(1) {
				t.Errorf("%s: %q %q %q %v", a, g, s, dev, ok)
			}
		}
		upAt(t, d, "vpn2", false, admit, 2, "10.8.0.2")
		if g, s, _, ok := d.SessionAt(at("10.8.0.2")); ok {
			t.Errorf("an address on two gateways is that of %s on %s", s, g)
		}
		if _, err := d.Prove("vpn1", "ovpn/1", deviceID(1), at("10.8.0.2")); !errors.Is(err, admission.ErrNoSession) {
			t.Errorf("a proof from there: %v", err)
		}
		if _, _, _, ok := d.SessionAt(at("fd00::2")); !ok {
			t.Error("its other address is its own")
		}
		// A gateway that is silent still blocks what it may have, and proves nothing.
		time.Sleep(4 * time.Second)
		upAt(t, d, "vpn1", false, quarantine, 1, "10.8.0.2")
		if _, _, _, ok := d.SessionAt(at("10.8.0.2")); ok {
			t.Error("the address of a silent gateway's session is given to another's")
		}
		report(t, d, "vpn2", &gatev1.ReportRequest{Full: true})
		if _, _, _, ok := d.SessionAt(at("10.8.0.2")); !ok {
			t.Error("not found after the other session ended")
		}
		time.Sleep(4 * time.Second)
		if _, _, _, ok := d.SessionAt(at("10.8.0.2")); ok {
			t.Error("found on a gateway that is silent")
		}
	})
}

func TestOnlyTheGatewaysThatPolicyNamesNeedAProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := proofDesk(t)
		w := watch(t, d, "vpn2")
		upAt(t, d, "vpn2", true, admit, 1, "10.9.0.2")
		if s := sessionOf(d, 1); s.GetVerdict() != admit || s.GetTunnelProof() != notRequired || s.GetTunnelProofDueAt() != nil {
			t.Errorf("listed: %v", s)
		}
		prove(t, d, "vpn2", 1, 1, "10.9.0.2")
		if s := sessionOf(d, 1); s.GetTunnelProof() != proven {
			t.Errorf("a proof is not shown: %v", s)
		}
		upAt(t, d, "vpn2", false, admit, 2, "10.9.0.3")
		take(t, w)

		d.SetTunnelPolicy(demanding("vpn2"))
		if !woken(w) {
			t.Error("the gateway was not woken")
		}
		news := take(t, w)
		if l := leaseOf(news, 1); l != nil && l.GetVerdict() != admit {
			t.Errorf("one that is proven already: %v", l)
		}
		if l := leaseOf(news, 2); l.GetVerdict() != quarantine {
			t.Errorf("one that is not: %v", l)
		}
		if s := sessionOf(d, 2); !s.GetTunnelProofDueAt().AsTime().Equal(time.Now().Add(within)) {
			t.Errorf("the time for it begins with the policy: %v", s)
		}
		if a := ask(t, d, 2); a.Verdict != admit { // on vpn1
			t.Errorf("where it is no longer needed: %v", a.Verdict)
		}
		d.SetTunnelPolicy(demanding())
		if l := leaseOf(take(t, w), 2); l.GetVerdict() != admit {
			t.Errorf("no longer needed: %v", l)
		}
		time.Sleep(within)
		synctest.Wait()
		if s := sessionOf(d, 2); s.GetVerdict() != admit {
			t.Errorf("listed: %v", s)
		}
	})
}

func TestABetterStandingDoesNotLiftAnUnprovenSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w := proofDesk(t)
		d.SetResult(deviceID(1), result(quarantine, time.Hour))
		upAt(t, d, "vpn1", false, quarantine, 1, "10.8.0.2")
		take(t, w)
		d.SetResult(deviceID(1), result(admit, time.Hour))
		if l := leaseOf(take(t, w), 1); l != nil && l.GetVerdict() != quarantine {
			t.Errorf("lease: %v", l)
		}
		if s := sessionOf(d, 1); s.GetVerdict() != quarantine {
			t.Errorf("listed: %v", s)
		}
		d.SetResult(deviceID(1), result(deny, time.Hour))
		if v, ok := verdictOf(take(t, w), 1); !ok || v != deny {
			t.Errorf("a denied identity: %v %v", v, ok)
		}
	})
}

// gatehouse does what a gate does with its news: standings lower, leases say
// how it is, the newer one counts.
type gatehouse map[int]held

type held struct {
	verdict posturev1.Verdict
	at      lease.Position
}

func (g gatehouse) hears(news admission.News) {
	for _, m := range news.Changes {
		for n, h := range g {
			if v, ok := verdictOf(admission.News{Changes: []*gatev1.Standings{m}}, n); ok && lease.At(m).After(h.at) && v < h.verdict {
				g[n] = held{v, lease.At(m)}
			}
		}
	}
	for n, h := range g {
		if l := leaseOf(news, n); l != nil && lease.At(l).After(h.at) && h.verdict != deny {
			g[n] = held{l.GetVerdict(), lease.At(l)}
		}
	}
}

// Whatever the order of inventory changes, results, reports, proofs, roaming,
// silence, policies and time: on a gateway that needs a proof, a session
// without one is never admitted, by no answer, no lease, no listing, and at the
// gate; it is gone when its time is over. One with a proof is what the facts
// say.
func TestNoOrderOfEventsAdmitsAnUnprovenSession(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 2))
				d := newDesk(t, admission.Options{LogSize: 64})
				d.Ready()
				w := watch(t, d, "vpn1")
				const notebooks, certificates = 3, 5
				told := &world{map[int]fleetv1.AssetState{}, map[int]int{}, map[int]posturev1.Verdict{}, map[int]time.Time{}}
				gate, p := gatehouse{}, proofs{by: map[int]int{}, since: map[int]time.Time{}, address: map[int]string{}}
				for step := range 300 {
					n, c := random.IntN(notebooks), random.IntN(certificates)
					switch random.IntN(9) {
					case 0:
						before := maps.Clone(told.owner)
						told.setDevice(d, random, n, certificates)
						p.moved(before, told.owner)
					case 1, 2:
						told.verdict[n], told.ends[n] = admit, time.Now().Add(time.Hour)
						d.SetResult(deviceID(n), result(admit, time.Hour))
					case 3:
						time.Sleep(time.Duration(random.IntN(8000)) * time.Millisecond)
					case 4:
						address := fmt.Sprintf("10.8.0.%d", random.IntN(4))
						v := posturev1.Verdict(1 + random.IntN(2))
						upAt(t, d, "vpn1", false, v, c, address)
						if p.address[c] != address {
							delete(p.by, c)
						}
						if _, live := p.address[c]; !live {
							p.since[c] = time.Now()
						}
						p.address[c] = address
						gate[c] = held{verdict: v}
					case 5:
						report(t, d, "vpn1", cut(c, deny))
						p.over(c)
						delete(gate, c)
					case 6, 7:
						if p.address[c] == "" {
							break
						}
						if _, err := d.Prove("vpn1", facts(c).GetSessionId(), deviceID(n), at(p.address[c])); err == nil {
							if owner, ok := told.owner[c]; !ok || owner != n {
								t.Fatalf("step %d: notebook %d proves certificate %d of %d", step, n, c, owner)
							}
							p.proven(c, n)
						}
					case 8:
						demands := random.IntN(4) > 0
						if demands != p.demanded {
							p.demanded = demands
							p.restart()
						}
						if demands {
							d.SetTunnelPolicy(demanding("vpn1"))
						} else {
							d.SetTunnelPolicy(nil)
						}
					}
					synctest.Wait()
					gate.hears(take(t, w))
					p.check(t, step, d, told, gate)
				}
			})
		})
	}
}

// proofs is what the Desk was shown, kept as simply as it can be.
type proofs struct {
	demanded bool
	by       map[int]int       // certificate → notebook that has proven its session
	since    map[int]time.Time // since when its proof may be missing
	address  map[int]string    // of live sessions
}

func (p *proofs) over(c int) {
	delete(p.by, c)
	delete(p.since, c)
	delete(p.address, c)
}

func (p *proofs) proven(c, n int) {
	for other, by := range p.by {
		if by == n && other != c {
			delete(p.by, other)
			p.since[other] = time.Now()
		}
	}
	p.by[c] = n
}

func (p *proofs) moved(before, after map[int]int) {
	for c := range p.by {
		if was, ok := after[c]; !ok || was != before[c] {
			delete(p.by, c)
			p.since[c] = time.Now()
		}
	}
}

func (p *proofs) restart() {
	for c := range p.since {
		p.since[c] = time.Now()
	}
}

func (p *proofs) check(t *testing.T, step int, d *admission.Desk, told *world, gate gatehouse) {
	t.Helper()
	for c := range p.address {
		_, isProven := p.by[c]
		most := told.decides(c)
		if p.demanded && !isProven {
			most = min(most, quarantine)
		}
		if a := ask(t, d, c); a.Verdict > most {
			t.Fatalf("step %d: certificate %d is answered %v, at most %v is right", step, c, a.Verdict, most)
		}
		s := sessionOf(d, c)
		if s.GetVerdict() > most {
			t.Fatalf("step %d: the session of certificate %d is listed with %v, at most %v is right", step, c, s.GetVerdict(), most)
		}
		if gate[c].verdict > most {
			t.Fatalf("step %d: the gate holds %v for certificate %d, at most %v is right", step, gate[c].verdict, c, most)
		}
		if p.demanded && !isProven && time.Since(p.since[c]) >= within && s.GetVerdict() != deny {
			t.Fatalf("step %d: unproven for %v and not cut: %v", step, time.Since(p.since[c]), s)
		}
		if p.demanded && isProven && !s.GetCutPending() && gate[c].verdict != most {
			t.Fatalf("step %d: proven, and the gate holds %v for certificate %d instead of %v", step, gate[c].verdict, c, most)
		}
	}
}
