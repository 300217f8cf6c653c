package verifier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"pfoertner/collector/appraisal"
	"pfoertner/collector/audit"
	"pfoertner/collector/store"
	"pfoertner/internal/posture"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	admit      = posturev1.Verdict_VERDICT_ADMIT
	quarantine = posturev1.Verdict_VERDICT_QUARANTINE
	deny       = posturev1.Verdict_VERDICT_DENY
)

// inventory is devices in memory.
type inventory struct {
	mu      sync.Mutex
	devices map[string]*fleetv1.Device
	// store is told too: it takes reports of known devices only.
	store interface {
		SaveDevices(ctx context.Context, devices []*fleetv1.Device, records ...audit.Record) error
	}
}

func (i *inventory) Device(id string) (*fleetv1.Device, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	d, ok := i.devices[id]
	return d, ok
}

func (i *inventory) All() []*fleetv1.Device {
	i.mu.Lock()
	defer i.mu.Unlock()
	var list []*fleetv1.Device
	for _, d := range i.devices {
		list = append(list, d)
	}
	return list
}

func (i *inventory) set(t testing.TB, id string, state fleetv1.AssetState) *fleetv1.Device {
	i.mu.Lock()
	defer i.mu.Unlock()
	d := &fleetv1.Device{Id: id, Asset: &fleetv1.Asset{AssetNumber: "NB-" + id, Unit: "inneres", State: state}}
	i.devices[id] = d
	if i.store != nil {
		if err := i.store.SaveDevices(t.Context(), []*fleetv1.Device{d}); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// recorder is a Desk that remembers what it was told.
type recorder struct {
	mu       sync.Mutex
	results  map[string][]*posturev1.Result
	order    []string
	sessions []*fleetv1.Session
}

func (r *recorder) SetResult(id string, res *posturev1.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results[id] = append(r.results[id], res)
	r.order = append(r.order, id)
}

func (r *recorder) Sessions(string) []*fleetv1.Session { return r.sessions }

func (r *recorder) last(id string) *posturev1.Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	if list := r.results[id]; len(list) > 0 {
		return list[len(list)-1]
	}
	return nil
}

// faulty is a real store that can be told to fail, and to wait.
type faulty struct {
	*store.Store
	mu     sync.Mutex
	broken error
	saving func(deviceID string)
}

func (s *faulty) SaveReport(ctx context.Context, id string, ev *posturev1.Evidence, res *posturev1.Result, records ...audit.Record) error {
	s.mu.Lock()
	err, saving := s.broken, s.saving
	s.mu.Unlock()
	if saving != nil {
		saving(id)
	}
	if err != nil {
		return err
	}
	return s.Store.SaveReport(ctx, id, ev, res, records...)
}

func (s *faulty) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = err
}

// house is a Verifier with what stands around it.
type house struct {
	*Verifier
	store     *faulty
	inventory *inventory
	desk      *recorder
	metrics   *Metrics
	gather    prometheus.Gatherer

	mu       sync.Mutex
	clock    time.Time
	attested map[string]*posturev1.Attestation
}

// vouch is what a device's TPM vouches for from now on.
func (h *house) vouch(id string, a *posturev1.Attestation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.attested[id] = a
}

func (h *house) vouched(id string) *posturev1.Attestation {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.attested[id]
}

func (h *house) advance(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock = h.clock.Add(d)
}

func (h *house) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clock
}

const tpmPolicy = `
name: tpm-only
freshness: {max_age: 45m}
rules:
  - id: tpm
    title: {de: TPM, en: TPM}
    remedy: {de: TPM, en: TPM}
    require: yes(evidence.tpm.present)
    on_fail: deny
`

func compile(t testing.TB, yaml string) *appraisal.Policy {
	t.Helper()
	p, errs := appraisal.Compile([]byte(yaml))
	if p == nil {
		t.Fatal(errs)
	}
	return p
}

func newHouse(t testing.TB) *house {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "collector.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	registry := prometheus.NewRegistry()
	h := &house{
		store:     &faulty{Store: s},
		inventory: &inventory{devices: map[string]*fleetv1.Device{}, store: s},
		desk:      &recorder{results: map[string][]*posturev1.Result{}},
		metrics:   NewMetrics(registry),
		gather:    registry,
		clock:     time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC),
		attested:  map[string]*posturev1.Attestation{},
	}
	h.restart(t)
	return h
}

// restart makes a new Verifier over the same store, as a collector that was
// killed does.
func (h *house) restart(t testing.TB) {
	policy := compile(t, tpmPolicy).WithVersion(1)
	if h.Verifier != nil {
		policy = h.Policy()
	}
	h.Verifier = New(Options{Store: h.store, Desk: h.desk, Devices: h.inventory, Policy: policy, Attested: h.vouched, Now: h.now, Metrics: h.metrics})
}

func evidence(present posturev1.Ternary) *posturev1.Evidence {
	return &posturev1.Evidence{Tpm: &posturev1.Tpm{
		Reading: &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_OBSERVED},
		Present: present,
	}}
}

const (
	yes = posturev1.Ternary_TERNARY_YES
	no  = posturev1.Ternary_TERNARY_NO
)

func (h *house) submit(t testing.TB, id string, present posturev1.Ternary) *posturev1.Result {
	t.Helper()
	res, err := h.try(t, id, present)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func (h *house) try(t testing.TB, id string, present posturev1.Ternary) (*posturev1.Result, error) {
	t.Helper()
	ev := evidence(present)
	digest, err := posture.Digest(ev)
	if err != nil {
		t.Fatal(err)
	}
	return h.Submit(t.Context(), id, ev, digest, h.now())
}

func (h *house) records(t testing.TB) []string {
	t.Helper()
	var list []string
	err := h.store.EachAudit(t.Context(), 1, func(r audit.Sealed) error {
		list = append(list, fmt.Sprintf("%s %s %s→%s %s", r.Kind, r.AssetNumber, r.Details["from"], r.Details["to"], r.Details["rules"]))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func active() fleetv1.AssetState    { return fleetv1.AssetState_ASSET_STATE_ACTIVE }
func suspended() fleetv1.AssetState { return fleetv1.AssetState_ASSET_STATE_SUSPENDED }

func TestAReportIsAppraisedStoredAndTold(t *testing.T) {
	h := newHouse(t)
	h.inventory.set(t, "a", active())
	res := h.submit(t, "a", yes)
	if res.GetVerdict() != admit || res.GetPolicy() != "tpm-only" || res.GetPolicyVersion() != 1 {
		t.Errorf("result %v", res)
	}
	digest, err := posture.Digest(evidence(yes))
	if err != nil || string(res.GetEvidenceDigest()) != string(digest) {
		t.Errorf("digest %x, want %x (%v)", res.GetEvidenceDigest(), digest, err)
	}
	ev, stored, err := h.store.Report(t.Context(), "a")
	if err != nil || !proto.Equal(ev, evidence(yes)) || !proto.Equal(stored, res) || h.desk.last("a") != res {
		t.Errorf("stored %v, %v, told %v (%v)", ev, stored, h.desk.last("a"), err)
	}
}

func TestOnlyAFlipIsAudited(t *testing.T) {
	h := newHouse(t)
	h.inventory.set(t, "a", active())
	for _, present := range []posturev1.Ternary{yes, yes, no, no, yes} {
		h.submit(t, "a", present)
		h.advance(time.Minute)
	}
	if _, err := h.Confirm(t.Context(), "a", h.now()); err != nil {
		t.Fatal(err)
	}
	want := []string{"verdict.changed NB-a none→admit ", "verdict.changed NB-a admit→deny tpm", "verdict.changed NB-a deny→admit "}
	if got := h.records(t); !slices.Equal(got, want) {
		t.Errorf("audited\n%s", strings.Join(got, "\n"))
	}
}

func TestAReportThatIsNotStoredIsNotTold(t *testing.T) {
	h := newHouse(t)
	h.inventory.set(t, "a", active())
	h.submit(t, "a", no)
	disk := errors.New("disk full")
	h.store.fail(disk)
	if _, err := h.try(t, "a", yes); !errors.Is(err, disk) {
		t.Errorf("error %v", err)
	}
	if got := h.desk.last("a").GetVerdict(); got != deny {
		t.Errorf("the Desk was told %v", got)
	}
	h.store.fail(nil)
	if res, err := h.Confirm(t.Context(), "a", h.now()); err != nil || res.GetVerdict() != deny {
		t.Errorf("a heartbeat confirms evidence that was never stored: %v, %v", res.GetVerdict(), err)
	}
}

func TestClosingTheGateDoesNotWaitForTheStore(t *testing.T) {
	h := newHouse(t)
	h.inventory.set(t, "a", active())
	h.submit(t, "a", yes)
	disk := errors.New("disk full")
	h.store.fail(disk)
	if _, err := h.try(t, "a", no); !errors.Is(err, disk) {
		t.Errorf("error %v: the agent would be acknowledged", err)
	}
	if got := h.desk.last("a").GetVerdict(); got != deny {
		t.Errorf("the Desk still says %v", got)
	}
	if _, stored, err := h.store.Report(t.Context(), "a"); err != nil || stored.GetVerdict() != admit {
		t.Errorf("stored %v (%v)", stored.GetVerdict(), err)
	}
}

func TestOnlyWhatNoReportAskedForIsAnnounced(t *testing.T) {
	h := newHouse(t)
	var announced []*posturev1.Result
	h.Announce = func(id string, res *posturev1.Result) { announced = append(announced, res) }
	h.inventory.set(t, "a", active())
	h.submit(t, "a", yes)
	if _, err := h.Confirm(t.Context(), "a", h.now()); err != nil {
		t.Fatal(err)
	}
	if len(announced) != 0 {
		t.Fatalf("a report was announced beside its answer: %v", announced)
	}
	h.inventory.set(t, "a", suspended())
	res, err := h.Reappraise(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if len(announced) != 1 || announced[0] != res {
		t.Errorf("announced %v, want the new result", announced)
	}
}

func TestAHeartbeatKeepsEvidenceFresh(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("collector restarted %v", restarted), func(t *testing.T) {
			h := newHouse(t)
			h.inventory.set(t, "a", active())
			first := h.submit(t, "a", yes)
			h.advance(40 * time.Minute)
			if restarted {
				h.restart(t)
			}
			res, err := h.Confirm(t.Context(), "a", h.now())
			if err != nil {
				t.Fatal(err)
			}
			if res.GetVerdict() != admit || !res.GetFreshUntil().AsTime().Equal(h.now().Add(45*time.Minute)) || string(res.GetEvidenceDigest()) != string(first.GetEvidenceDigest()) {
				t.Errorf("%v", res)
			}
			ev, stored, err := h.store.Report(t.Context(), "a")
			if err != nil || !proto.Equal(ev, evidence(yes)) || !stored.GetCollectedAt().AsTime().Equal(h.now()) {
				t.Errorf("stored %v, %v (%v)", ev, stored.GetCollectedAt().AsTime(), err)
			}
			if history, err := h.store.History(t.Context(), "a", 10); err != nil || len(history) != 1 {
				t.Errorf("a heartbeat is a change: %d in history (%v)", len(history), err)
			}
		})
	}
}

func TestWhoNeverReportedHasNothingToConfirm(t *testing.T) {
	h := newHouse(t)
	h.inventory.set(t, "a", active())
	if _, err := h.Confirm(t.Context(), "a", h.now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("confirm: %v", err)
	}
	if res, err := h.Reappraise(t.Context(), "a"); res != nil || err != nil {
		t.Errorf("reappraise: %v, %v", res, err)
	}
	if _, err := h.try(t, "stranger", yes); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("submit of an unknown device: %v", err)
	}
}

func TestFailingSinceSurvivesARestart(t *testing.T) {
	h := newHouse(t)
	h.inventory.set(t, "a", active())
	first := h.submit(t, "a", no)
	h.advance(100 * time.Hour)
	h.restart(t)
	res := h.submit(t, "a", no)
	since := func(r *posturev1.Result) time.Time {
		for _, f := range r.GetFindings() {
			if f.GetRule() == "tpm" {
				return f.GetFailingSince().AsTime()
			}
		}
		return time.Time{}
	}
	if !since(res).Equal(since(first)) || res.GetCode() != first.GetCode() {
		t.Errorf("since %v, then %v; code %s, then %s", since(first), since(res), first.GetCode(), res.GetCode())
	}
}

func TestRunJudgesAnewWhatRanOutOrChanged(t *testing.T) {
	h := newHouse(t)
	stop := running(t, h)
	defer stop()
	h.inventory.set(t, "a", active())
	h.inventory.set(t, "b", active())
	h.submit(t, "a", yes)
	h.submit(t, "b", yes)

	h.AssetChanged(h.inventory.set(t, "b", suspended()))
	h.await(t, "b", deny)
	if h.desk.last("a").GetVerdict() != admit {
		t.Error("the other device was touched")
	}
	h.advance(45 * time.Minute)
	h.Expired("a")
	h.Expired("a")
	h.Expired("gone from the inventory")
	h.await(t, "a", quarantine)
	h.AssetChanged(&fleetv1.Device{}) // expected, never enrolled
}

// running starts Run and returns what ends it.
func running(t testing.TB, h *house) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// await waits until the Desk was told the verdict.
func (h *house) await(t testing.TB, id string, want posturev1.Verdict) {
	t.Helper()
	deadline, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for h.desk.last(id).GetVerdict() != want {
		select {
		case <-deadline.Done():
			t.Fatalf("%s: %v, want %v", id, h.desk.last(id).GetVerdict(), want)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestRunGoesOnWithAPolicyThatAStoppedCollectorAdopted(t *testing.T) {
	h := newHouse(t)
	h.inventory.set(t, "a", active())
	h.submit(t, "a", no)
	h.policy.Store(compile(t, strings.Replace(tpmPolicy, "on_fail: deny", "on_fail: quarantine", 1)).WithVersion(2))
	h.restart(t)
	stop := running(t, h)
	defer stop()
	h.await(t, "a", quarantine)
}

func TestAdoptJudgesTheWholeFleetLiveSessionsFirst(t *testing.T) {
	h := newHouse(t)
	for i := range 300 {
		id := fmt.Sprintf("d%03d", i)
		h.inventory.set(t, id, active())
		if i != 7 { // never reported
			h.submit(t, id, []posturev1.Ternary{yes, no}[i%2])
		}
	}
	h.inventory.set(t, "", fleetv1.AssetState_ASSET_STATE_EXPECTED)
	h.desk.sessions = []*fleetv1.Session{{DeviceId: "d250"}, {DeviceId: "d250"}, {}}
	h.desk.order = nil
	policy := compile(t, strings.Replace(tpmPolicy, "on_fail: deny", "on_fail: quarantine", 1)).WithVersion(2)
	var steps []*fleetv1.ApplyResponse
	if err := h.Adopt(t.Context(), policy, func(s *fleetv1.ApplyResponse) { steps = append(steps, s) }); err != nil {
		t.Fatal(err)
	}
	last := steps[len(steps)-1]
	if last.GetTotal() != 300 || last.GetAppraised() != 300 || last.GetNowQuarantined() != 149 || last.GetNowAdmitted()+last.GetNowDenied() != 0 {
		t.Errorf("at the end %v", last)
	}
	if len(steps) < 90 || len(steps) > 110 {
		t.Errorf("%d steps of progress", len(steps))
	}
	if first := slices.Index(h.desk.order, "d250"); first != 0 {
		t.Errorf("the live session came as number %d", first)
	}
	for i := range 300 {
		id := fmt.Sprintf("d%03d", i)
		if _, res, err := h.store.Report(t.Context(), id); i != 7 && (err != nil || res.GetPolicyVersion() != 2) {
			t.Fatalf("%s: %v (%v)", id, res.GetPolicyVersion(), err)
		}
	}
	if h.Policy() != policy || h.ReportInterval() != policy.ReportInterval() {
		t.Error("the policy is not in force")
	}
}

// supportPolicy depends on reference values alone.
const supportPolicy = `
name: supported-only
freshness: {max_age: 45m}
rules:
  - id: supported
    title: {de: Unterstützt, en: Supported}
    remedy: {de: Neu einrichten, en: Set up anew}
    require: supported(evidence.platform, reference, now)
    on_fail: deny
`

func TestNewReferenceValuesJudgeTheWholeFleetAtOnce(t *testing.T) {
	h := newHouse(t)
	if err := h.Adopt(t.Context(), compile(t, supportPolicy).WithVersion(2), nil); err != nil {
		t.Fatal(err)
	}
	ev := &posturev1.Evidence{Platform: &posturev1.Platform{
		Reading:      &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_OBSERVED},
		Distribution: "house", Version: "1",
	}}
	digest, err := posture.Digest(ev)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		h.inventory.set(t, id, active())
		if res, err := h.Submit(t.Context(), id, ev, digest, h.now()); err != nil || res.GetVerdict() != deny {
			t.Fatalf("without reference values: %v, %v", res.GetVerdict(), err)
		}
	}
	references, faults := appraisal.ParseReferences([]byte(`issued: 2026-11-01
sources: {s: {text: t, read: 2026-11-01}}
distributions: [{id: house, version: "1", ends: 2099-01-01, source: s}]
`))
	if references == nil {
		t.Fatal(faults)
	}
	last := &fleetv1.ApplyResponse{}
	if err := h.AdoptReferences(t.Context(), references, func(s *fleetv1.ApplyResponse) { last = s }); err != nil {
		t.Fatal(err)
	}
	if last.GetAppraised() != 2 || last.GetNowAdmitted() != 2 || h.References() != references {
		t.Errorf("at the end %v", last)
	}
	for _, id := range []string{"a", "b"} {
		if _, res, err := h.store.Report(t.Context(), id); err != nil || res.GetVerdict() != admit {
			t.Errorf("%s: %v, %v", id, res.GetVerdict(), err)
		}
	}
}

func TestAdoptTellsWhatIsNotJudgedYetAndRunMakesUpForIt(t *testing.T) {
	h := newHouse(t)
	h.inventory.set(t, "a", active())
	h.submit(t, "a", no)
	disk := errors.New("disk full")
	h.store.fail(disk)
	policy := compile(t, strings.Replace(tpmPolicy, "on_fail: deny", "on_fail: quarantine", 1)).WithVersion(2)
	if err := h.Adopt(t.Context(), policy, nil); !errors.Is(err, disk) {
		t.Errorf("error %v", err)
	}
	h.store.fail(nil)
	stop := running(t, h)
	defer stop()
	h.await(t, "a", quarantine)
}

func TestAStoreThatFailsIsTriedAgainAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var saves atomic.Int32
		s := scripted{save: func() error {
			if saves.Add(1) < 4 {
				return errors.New("database is locked")
			}
			return nil
		}}
		inv := &inventory{devices: map[string]*fleetv1.Device{}}
		inv.set(t, "a", active())
		v := New(Options{
			Store: s, Desk: &recorder{results: map[string][]*posturev1.Result{}}, Devices: inv,
			Policy: compile(t, tpmPolicy), Now: time.Now,
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = v.Run(ctx) })
		v.Expired("a")
		time.Sleep(2*retryAfter + retryAfter/2)
		if synctest.Wait(); saves.Load() != 3 {
			t.Errorf("%d tries after two pauses and a half", saves.Load())
		}
		time.Sleep(time.Hour)
		if synctest.Wait(); saves.Load() != 4 {
			t.Errorf("%d tries in the end", saves.Load())
		}
		cancel()
		wg.Wait()
	})
}

// scripted is a store whose answers a test decides.
type scripted struct{ save func() error }

func (s scripted) SaveReport(context.Context, string, *posturev1.Evidence, *posturev1.Result, ...audit.Record) error {
	return s.save()
}

func (s scripted) Report(context.Context, string) (*posturev1.Evidence, *posturev1.Result, error) {
	return evidence(yes), &posturev1.Result{}, nil
}

func (s scripted) EachResult(context.Context, func(string, *posturev1.Result) error) error {
	return nil
}

// A slow report must not overwrite what came after it, and what the Desk was
// told last has to be what is stored.
func TestReportsOfOneDeviceKeepTheirOrder(t *testing.T) {
	h := newHouse(t)
	h.inventory.set(t, "a", active())
	h.submit(t, "a", yes)
	slow, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.store.saving = func(string) { once.Do(func() { close(slow); <-goOn }) }
	var wg sync.WaitGroup
	wg.Go(func() { h.submit(t, "a", yes) })
	<-slow
	wg.Go(func() { h.submit(t, "a", no) })
	wg.Go(func() { _, _ = h.Reappraise(t.Context(), "a") })
	close(goOn)
	wg.Wait()
	_, stored, err := h.store.Report(t.Context(), "a")
	if err != nil || stored.GetVerdict() != deny || h.desk.last("a").GetVerdict() != deny {
		t.Errorf("stored %v, told %v (%v)", stored.GetVerdict(), h.desk.last("a").GetVerdict(), err)
	}
}

func TestManyDevicesAtOnce(t *testing.T) {
	h := newHouse(t)
	stop := running(t, h)
	defer stop()
	var wg sync.WaitGroup
	for i := range 16 {
		id := fmt.Sprintf("d%d", i)
		h.inventory.set(t, id, active())
		wg.Go(func() {
			for round := range 6 {
				h.submit(t, id, []posturev1.Ternary{yes, no}[round%2])
				if _, err := h.Confirm(t.Context(), id, h.now()); err != nil {
					t.Error(err)
				}
				h.Expired(id)
			}
		})
	}
	wg.Go(func() {
		if err := h.Adopt(t.Context(), h.Policy().WithVersion(2), nil); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	for i := range 16 {
		id := fmt.Sprintf("d%d", i)
		ev, res, err := h.store.Report(t.Context(), id)
		if err != nil || ev.GetTpm().GetPresent() != no || res.GetVerdict() != deny || h.desk.last(id).GetVerdict() != deny {
			t.Errorf("%s: %v, %v, told %v (%v)", id, ev.GetTpm().GetPresent(), res.GetVerdict(), h.desk.last(id).GetVerdict(), err)
		}
	}
}

func TestMemoryHoldsABoundedNumberOfReports(t *testing.T) {
	s := &stripe{reports: map[string]*report{}}
	for i := range 10 * reportsPerStripe {
		s.keep(fmt.Sprint(i), &report{})
	}
	if len(s.reports) != reportsPerStripe || s.reports[fmt.Sprint(10*reportsPerStripe-1)] == nil {
		t.Errorf("%d reports kept", len(s.reports))
	}
}

func TestMetricsCountByTriggerAndVerdict(t *testing.T) {
	h := newHouse(t)
	h.inventory.set(t, "a", active())
	h.submit(t, "a", yes)
	h.submit(t, "a", no)
	if _, err := h.Confirm(t.Context(), "a", h.now()); err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{
		"pfoertner_appraisals_total report admit":   1,
		"pfoertner_appraisals_total report deny":    1,
		"pfoertner_appraisals_total heartbeat deny": 1,
		"pfoertner_verdict_changes_total admit":     1,
		"pfoertner_verdict_changes_total deny":      1,
	}
	families, err := h.gather.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			if c := m.GetCounter(); c != nil {
				got[name] = c.GetValue()
			}
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("counted %v", got)
	}
}
