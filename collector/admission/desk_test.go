package admission_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/admission"
	"pfoertner/internal/lease"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	admit      = posturev1.Verdict_VERDICT_ADMIT
	quarantine = posturev1.Verdict_VERDICT_QUARANTINE
	deny       = posturev1.Verdict_VERDICT_DENY

	active    = fleetv1.AssetState_ASSET_STATE_ACTIVE
	suspended = fleetv1.AssetState_ASSET_STATE_SUSPENDED
	retired   = fleetv1.AssetState_ASSET_STATE_RETIRED
)

// newDesk is a Desk that runs until the test ends.
func newDesk(t testing.TB, o admission.Options) *admission.Desk {
	t.Helper()
	if o.Epoch == 0 {
		o.Epoch = 7
	}
	o.Now = time.Now
	d := admission.NewDesk(o)
	run(t, d)
	return d
}

func run(t testing.TB, d *admission.Desk) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = d.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

// certificate is the fingerprint of notebook n's VPN certificate.
func certificate(n int) []byte {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n)))
	return sum[:]
}

func deviceID(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

func notebook(n int, state fleetv1.AssetState, certificates ...int) *fleetv1.Device {
	dev := &fleetv1.Device{
		Id:    deviceID(n),
		Asset: &fleetv1.Asset{AssetNumber: fmt.Sprintf("NB-%04d", n), State: state},
	}
	for _, c := range certificates {
		dev.Asset.VpnCertificatesSha256 = append(dev.Asset.VpnCertificatesSha256, certificate(c))
	}
	return dev
}

// result holds for so long from now.
func result(v posturev1.Verdict, holds time.Duration) *posturev1.Result {
	res := &posturev1.Result{
		Verdict:     v,
		CollectedAt: timestamppb.New(time.Now()),
		ExpiresAt:   timestamppb.New(time.Now().Add(holds)),
	}
	if v != admit {
		res.Code = "7K4-QX2"
	}
	return res
}

// enter makes notebook n with certificate n active, with a result.
func enter(d *admission.Desk, n int, v posturev1.Verdict, holds time.Duration) {
	d.SetDevice(notebook(n, active, n))
	d.SetResult(deviceID(n), result(v, holds))
}

func facts(n int) *gatev1.SessionFacts {
	return &gatev1.SessionFacts{SessionId: fmt.Sprintf("ovpn/%d", n), CertificateSha256: certificate(n)}
}

func ask(t testing.TB, d *admission.Desk, n int) admission.Answer {
	t.Helper()
	a, err := d.Admit("vpn1", facts(n))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// up reports session n as live on a gateway.
func up(t testing.TB, d *admission.Desk, gateway string, full bool, v posturev1.Verdict, sessions ...int) {
	t.Helper()
	req := &gatev1.ReportRequest{Full: full}
	for _, n := range sessions {
		req.Events = append(req.Events, &gatev1.SessionEvent{
			At:    timestamppb.New(time.Now()),
			Event: &gatev1.SessionEvent_Up{Up: &gatev1.SessionUp{Session: facts(n), Verdict: v}},
		})
	}
	report(t, d, gateway, req)
}

func report(t testing.TB, d *admission.Desk, gateway string, req *gatev1.ReportRequest) {
	t.Helper()
	if _, err := d.Report(gateway, req); err != nil {
		t.Fatal(err)
	}
}

func cut(n int, v posturev1.Verdict) *gatev1.ReportRequest {
	return &gatev1.ReportRequest{Events: []*gatev1.SessionEvent{{Event: &gatev1.SessionEvent_CutConfirmed{
		CutConfirmed: &gatev1.CutConfirmed{
			SessionId: fmt.Sprintf("ovpn/%d", n), Epoch: 7, Sequence: 1, Verdict: v,
			PacketsCutAfter: durationpb.New(5 * time.Millisecond), SessionGoneAfter: durationpb.New(20 * time.Millisecond),
		},
	}}}}
}

// watch opens a gateway's Watch from the beginning and takes the snapshot.
func watch(t testing.TB, d *admission.Desk, gateway string) *admission.Watcher {
	t.Helper()
	w, err := d.Watch(gateway, lease.Position{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	for range w.Snapshot() {
		continue
	}
	take(t, w)
	return w
}

// take is everything that a gateway is told now.
func take(t testing.TB, w *admission.Watcher) admission.News {
	t.Helper()
	select {
	case <-w.Woken():
	default:
	}
	news, err := w.Take()
	if err != nil {
		t.Fatal(err)
	}
	w.Told(news)
	return news
}

// woken says whether the Watch is woken without time passing.
func woken(w *admission.Watcher) bool {
	select {
	case <-w.Woken():
		return true
	default:
		return false
	}
}

// verdictOf is what news say of certificate n; false when nothing.
func verdictOf(news admission.News, n int) (posturev1.Verdict, bool) {
	for _, m := range news.Changes {
		for _, st := range m.GetStandings() {
			if slices.Equal(st.GetCertificateSha256(), certificate(n)) {
				return st.GetVerdict(), true
			}
		}
	}
	return deny, false
}

// leaseOf is the renewed lease of session n; nil when there is none.
func leaseOf(news admission.News, n int) *gatev1.Lease {
	for _, batch := range news.Renewals {
		for _, l := range batch {
			if l.GetSessionId() == facts(n).GetSessionId() {
				return l
			}
		}
	}
	return nil
}

func sessionOf(d *admission.Desk, n int) *fleetv1.Session {
	for _, s := range d.Sessions("") {
		if s.GetSessionId() == facts(n).GetSessionId() {
			return s
		}
	}
	return nil
}

func TestNobodyIsAnsweredBeforeTheStateIsLoaded(t *testing.T) {
	d := newDesk(t, admission.Options{})
	enter(d, 1, admit, time.Hour)
	if _, err := d.Admit("vpn1", facts(1)); err != admission.ErrNotReady {
		t.Errorf("Admit: %v", err)
	}
	if _, err := d.Watch("vpn1", lease.Position{}); err != admission.ErrNotReady {
		t.Errorf("Watch: %v", err)
	}
	if _, err := d.Report("vpn1", &gatev1.ReportRequest{}); err != admission.ErrNotReady {
		t.Errorf("Report: %v", err)
	}
	d.Ready()
	if a := ask(t, d, 1); a.Verdict != admit {
		t.Errorf("first answer after a restart: %v", a.Verdict)
	}
}

func TestUnknownIdentityIsDenied(t *testing.T) {
	d := newDesk(t, admission.Options{})
	enter(d, 1, admit, time.Hour)
	d.Ready()
	for name, c := range map[string][]byte{
		"another certificate": certificate(2),
		"none":                nil,
		"too short":           certificate(1)[:31],
		"too long":            append(certificate(1), 0),
		"zeros":               make([]byte, 32),
	} {
		a, err := d.Admit("vpn1", &gatev1.SessionFacts{SessionId: "s", CertificateSha256: c})
		if err != nil || a.Verdict != deny || a.TTL != 0 || a.DeviceID != "" {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		if len(a.Code) != 7 || !strings.Contains(a.Message.GetDe(), a.Code) || !strings.Contains(a.Message.GetEn(), a.Code) {
			t.Errorf("%s: code %q, text %v", name, a.Code, a.Message)
		}
	}
	if v, text := d.Explain("nobody"); v != deny || text.GetDe() == "" {
		t.Errorf("explained: %v %v", v, text)
	}
}

func TestEveryFactCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, admission.Options{RefusalText: func(res *posturev1.Result) *posturev1.LocalText {
			return &posturev1.LocalText{De: "Die Festplatte ist nicht verschlüsselt. " + res.GetCode(), En: "Disk. " + res.GetCode()}
		}})
		d.Ready()
		expect := func(what string, v posturev1.Verdict) {
			t.Helper()
			if a := ask(t, d, 1); a.Verdict != v {
				t.Errorf("%s: %v, want %v", what, a.Verdict, v)
			}
			if got, _ := d.Explain(deviceID(1)); what != "no binding" && what != "binding moved away" && got != v {
				t.Errorf("%s: explained as %v, want %v", what, got, v)
			}
		}
		d.SetResult(deviceID(1), result(admit, time.Hour))
		expect("a result without a device", deny)
		d.SetDevice(notebook(1, fleetv1.AssetState_ASSET_STATE_PENDING, 1))
		expect("pending", deny)
		d.SetDevice(notebook(1, active, 1))
		expect("active", admit)
		d.SetResult(deviceID(1), result(deny, time.Hour))
		expect("failing", deny)
		if a := ask(t, d, 1); a.Code != "7K4-QX2" || !strings.HasPrefix(a.Message.GetDe(), "Die Festplatte") {
			t.Errorf("the result's own words: %+v", a)
		}
		d.SetResult(deviceID(1), result(quarantine, time.Hour))
		expect("failing less", quarantine)
		d.SetResult(deviceID(1), result(admit, time.Hour))
		d.SetDevice(notebook(1, suspended, 1))
		expect("suspended", deny)
		d.SetDevice(notebook(1, retired, 1))
		expect("retired", deny)
		d.SetDevice(notebook(1, active))
		expect("no binding", deny)
		d.SetDevice(notebook(1, active, 1))
		expect("bound again", admit)
		d.SetDevice(notebook(2, active, 2, 1))
		expect("binding moved away", quarantine) // notebook 2 has never reported
		d.SetDevice(notebook(1, active))
		d.SetDevice(notebook(2, active, 2))
		expect("no binding", deny)
		d.SetDevice(notebook(1, active, 1))
		time.Sleep(time.Hour)
		expect("expired", quarantine)
	})
}

func TestAnAssetThatEnrolledAnewIsAnotherDevice(t *testing.T) {
	d := newDesk(t, admission.Options{})
	enter(d, 1, admit, time.Hour)
	d.Ready()
	again := notebook(1, active, 1)
	again.Id = deviceID(99)
	d.SetDevice(again)
	if a := ask(t, d, 1); a.Verdict != quarantine || a.DeviceID != deviceID(99) {
		t.Errorf("the old device's result still counts: %+v", a)
	}
	d.SetResult(deviceID(1), result(admit, time.Hour))
	if a := ask(t, d, 1); a.Verdict != quarantine {
		t.Errorf("the old device still reports for the asset: %+v", a)
	}
	d.SetResult(deviceID(99), result(admit, time.Hour))
	if a := ask(t, d, 1); a.Verdict != admit {
		t.Errorf("the new device: %+v", a)
	}
	// An id that turns up at another asset no longer speaks for the first.
	moved := notebook(2, active, 2)
	moved.Id = deviceID(99)
	d.SetDevice(moved)
	if a := ask(t, d, 1); a.Verdict != deny {
		t.Errorf("an asset without a device: %+v", a)
	}
}

func TestNoLeaseOutlivesItsResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, admission.Options{})
		enter(d, 1, admit, time.Minute)
		d.Ready()
		for _, at := range []struct{ passed, ttl time.Duration }{
			{0, 15 * time.Second}, {45 * time.Second, 15 * time.Second}, {11 * time.Second, 4 * time.Second},
		} {
			time.Sleep(at.passed)
			if a := ask(t, d, 1); a.Verdict != admit || a.TTL != at.ttl {
				t.Errorf("after %v more: %v for %v, want %v", at.passed, a.Verdict, a.TTL, at.ttl)
			}
		}
		time.Sleep(4 * time.Second)
		if a := ask(t, d, 1); a.Verdict != quarantine || a.TTL != 15*time.Second || a.Code == "" {
			t.Errorf("at the end: %+v", a)
		}
	})
}

func TestPositionsOnlyRise(t *testing.T) {
	d := newDesk(t, admission.Options{})
	enter(d, 1, admit, time.Hour)
	d.Ready()
	w := watch(t, d, "vpn1")
	up(t, d, "vpn1", true, admit, 1)
	last := lease.Position{}
	newer := func(what string, p lease.Position) {
		t.Helper()
		if !p.After(last) {
			t.Errorf("%s: %v is not after %v", what, p, last)
		}
		last = p
	}
	newer("first", ask(t, d, 1).Position)
	newer("second", ask(t, d, 1).Position)
	newer("renewal", lease.At(leaseOf(take(t, w), 1)))
	d.SetResult(deviceID(1), result(quarantine, time.Hour))
	news := take(t, w)
	newer("change", lease.At(news.Changes[0]))
	newer("its lease", lease.At(leaseOf(news, 1)))
	newer("third", ask(t, d, 1).Position)
	restarted := newDesk(t, admission.Options{Epoch: 8})
	restarted.Ready()
	newer("after a restart", ask(t, restarted, 1).Position)
}
