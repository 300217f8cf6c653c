package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// backend is a database that a Store can lie in. New ones join here and must
// pass all of TestConformance.
type backend struct {
	name string
	// open returns a function that opens the same empty database again and again.
	open func(t *testing.T) func() *Store
}

var backends = []backend{
	{"sqlite", func(t *testing.T) func() *Store {
		path := filepath.Join(t.TempDir(), "pfoertner.db")
		return func() *Store { return open(t, path, Options{}) }
	}},
}

func TestConformance(t *testing.T) {
	behaviours := []struct {
		name string
		test func(t *testing.T, open func() *Store)
	}{
		{"an empty store has nothing", emptyStore},
		{"each start has the next epoch", epochs},
		{"devices come back as they were saved", devices},
		{"an import is all or nothing", devicesAllOrNothing},
		{"a VPN certificate belongs to one asset", certificates},
		{"a new device id drops what the old one had", newIdentity},
		{"a report comes back as it was saved", reports},
		{"a report needs a device and evidence", reportsRefused},
		{"history holds changes, not heartbeats", history},
		{"trimming keeps what still holds", trim},
		{"a refusal code is resolved", refusals},
		{"credentials are replaced", credentials},
		{"a renewal keeps the key before it until the new one is used", renewals},
		{"a renewal by another key changes nothing", renewalsRefused},
		{"a new enrolment leaves no key before it", renewalsEnd},
		{"TPMs come back as they were saved", tpms},
		{"what is overtaken brings no TPM back", overtakenTPMs},
		{"an enrolment is whole or not at all", enrolments},
		{"a decision ends keys and proposals with it", dismissals},
		{"an endorsement key belongs to one asset for ever", endorsementKeys},
		{"proposals wait until they are settled", proposals},
		{"boot references are learned once", bootReferences},
		{"uploaded authorities are kept with who and when", authorities},
		{"a token is spent once", tokens},
		{"of many callers one gets the token", tokenRace},
		{"policies are numbered and kept", policies},
		{"signed files are numbered and kept by kind", signedFiles},
		{"changes and their audit records stand together", auditTogether},
		{"events are found by device and by asset", events},
		{"many at once are one after the other", concurrency},
		{"one that fails fails alone", failsAlone},
		{"what was committed is there after opening again", reopened},
		{"pages are whole", pages},
		{"a read may use the store", readsWithin},
		{"a closed store says so", closedStore},
		{"a caller that gave up changed nothing", cancelled},
	}
	for _, b := range backends {
		for _, behaviour := range behaviours {
			t.Run(b.name+"/"+behaviour.name, func(t *testing.T) {
				t.Parallel()
				behaviour.test(t, b.open(t))
			})
		}
	}
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wants(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("got error %v, want one that is %v", err, target)
	}
}

func result(verdict posturev1.Verdict, digest string) *posturev1.Result {
	return &posturev1.Result{
		Verdict: verdict, EvidenceDigest: []byte(digest), Policy: "dienstgeraete", PolicyVersion: 1,
		AppraisedAt: timestamppb.New(morning), CollectedAt: timestamppb.New(morning),
		Findings: []*posturev1.Finding{{Rule: "disk", Outcome: posturev1.Outcome_OUTCOME_PASS, Effect: posturev1.Effect_EFFECT_NONE}},
	}
}

func evidence(kernel string) *posturev1.Evidence {
	return &posturev1.Evidence{Platform: &posturev1.Platform{KernelRelease: kernel}}
}

const (
	deny  = posturev1.Verdict_VERDICT_DENY
	admit = posturev1.Verdict_VERDICT_ADMIT
)

func emptyStore(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	check(t, s.Ping(ctx))
	_, _, err := s.Report(ctx, deviceID(1))
	wants(t, err, fs.ErrNotExist)
	_, _, _, err = s.Credential(ctx, deviceID(1))
	wants(t, err, fs.ErrNotExist)
	_, _, err = s.Policy(ctx, 0)
	wants(t, err, fs.ErrNotExist)
	_, err = s.UseToken(ctx, []byte("none"), morning)
	wants(t, err, fs.ErrNotExist)
	if got := must(s.Refusals(ctx, "7K4-QX2"))(t); len(got) != 0 {
		t.Errorf("refusals %v", got)
	}
	head := must(s.AuditHead(ctx))(t)
	if head.Sequence != 0 || !bytes.Equal(head.Hash, audit.Genesis().Hash) {
		t.Errorf("head %+v, want Genesis", head)
	}
}

func epochs(t *testing.T, open func() *Store) {
	for want := uint64(1); want <= 3; want++ {
		s := open()
		if got := must(s.NextEpoch(t.Context()))(t); got != want {
			t.Errorf("epoch %d, want %d", got, want)
		}
		check(t, s.Close())
	}
}

func reports(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 3)
	wantEv, wantRes := threeKB()
	check(t, s.SaveReport(ctx, deviceID(2), evidence("old"), result(deny, "old")))
	check(t, s.SaveReport(ctx, deviceID(2), wantEv, wantRes))
	check(t, s.SaveReport(ctx, deviceID(1), evidence("6.1"), result(deny, "b")))

	ev, res, err := s.Report(ctx, deviceID(2))
	check(t, err)
	if !proto.Equal(ev, wantEv) || !proto.Equal(res, wantRes) {
		t.Errorf("got %v %v", ev, res)
	}
	heartbeat := proto.CloneOf(wantRes)
	heartbeat.FreshUntil = timestamppb.New(morning.Add(time.Hour))
	check(t, s.SaveReport(ctx, deviceID(2), nil, heartbeat))
	ev, res, err = s.Report(ctx, deviceID(2))
	check(t, err)
	if !proto.Equal(ev, wantEv) || !proto.Equal(res, heartbeat) {
		t.Errorf("after a heartbeat: got %v %v", ev, res)
	}

	var seen []string
	check(t, s.EachReport(ctx, func(id string, ev *posturev1.Evidence, res *posturev1.Result) error {
		seen = append(seen, fmt.Sprint(id, ev.GetPlatform().GetKernelRelease(), res.GetVerdict()))
		return nil
	}))
	check(t, s.EachResult(ctx, func(id string, res *posturev1.Result) error {
		seen = append(seen, fmt.Sprint(id, res.GetVerdict()))
		return nil
	}))
	want := []string{
		fmt.Sprint(deviceID(1), "6.1", deny), fmt.Sprint(deviceID(2), "", admit),
		fmt.Sprint(deviceID(1), deny), fmt.Sprint(deviceID(2), admit),
	}
	if !slices.Equal(seen, want) {
		t.Errorf("got %q, want %q", seen, want)
	}
}

func reportsRefused(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 1)
	record := audit.Record{At: morning, Kind: "verdict.changed", DeviceID: deviceID(0)}
	wants(t, s.SaveReport(ctx, "unknown", evidence("6.1"), result(admit, "a"), record), fs.ErrNotExist)
	wants(t, s.SaveReport(ctx, deviceID(0), nil, result(admit, "a"), record), fs.ErrNotExist)
	if err := s.SaveReport(ctx, deviceID(0), evidence("6.1"), nil, record); err == nil {
		t.Error("a report without a result was taken")
	}
	if err := s.SaveReport(ctx, deviceID(0), &posturev1.Evidence{Platform: &posturev1.Platform{Version: "\xff"}}, result(admit, "a")); err == nil {
		t.Error("evidence that is not UTF-8 was taken")
	}
	if head := must(s.AuditHead(ctx))(t); head.Sequence != 0 {
		t.Errorf("%d audit records of reports that were not saved", head.Sequence)
	}
}

func history(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	at := 0
	save := func(ev *posturev1.Evidence, change func(*posturev1.Result)) {
		t.Helper()
		at++
		res := result(admit, "same")
		res.AppraisedAt = timestamppb.New(morning.Add(time.Duration(at) * time.Minute))
		res.ExpiresAt = timestamppb.New(morning.Add(time.Hour))
		change(res)
		check(t, s.SaveReport(ctx, deviceID(1), ev, res))
	}
	as := func(*posturev1.Result) {}
	save(evidence("6.1"), as)                                                                                       // 1: the first
	save(evidence("6.1"), as)                                                                                       // the same again
	save(nil, as)                                                                                                   // heartbeat
	save(evidence("6.2"), func(r *posturev1.Result) { r.EvidenceDigest = []byte("new") })                           // 4: other evidence
	save(nil, func(r *posturev1.Result) { r.EvidenceDigest = []byte("new") })                                       // heartbeat
	save(nil, func(r *posturev1.Result) { r.EvidenceDigest = []byte("new"); r.Verdict = deny; r.Code = "7K4-QX2" }) // 6: grace ended
	save(evidence("6.1"), func(r *posturev1.Result) { r.Findings[0].Outcome = posturev1.Outcome_OUTCOME_UNKNOWN })  // 7: other outcome
	save(evidence("6.1"), func(r *posturev1.Result) {                                                               // the same, times differ
		r.Findings[0].Outcome = posturev1.Outcome_OUTCOME_UNKNOWN
		r.Findings[0].FailingSince = timestamppb.New(morning)
	})
	save(evidence("6.1"), func(r *posturev1.Result) { r.Findings = append(r.Findings, &posturev1.Finding{Rule: "patches"}) }) // 9: another rule

	minutes := func(limit int) (got []int) {
		for _, r := range must(s.History(ctx, deviceID(1), limit))(t) {
			got = append(got, int(r.GetAppraisedAt().AsTime().Sub(morning)/time.Minute))
		}
		return got
	}
	if got, want := minutes(100), []int{9, 7, 6, 4, 1}; !slices.Equal(got, want) {
		t.Errorf("history has the results of minutes %v, want %v", got, want)
	}
	if got, want := minutes(2), []int{9, 7}; !slices.Equal(got, want) {
		t.Errorf("the newest two are %v, want %v", got, want)
	}
	if got := must(s.History(ctx, deviceID(0), 9))(t); len(got) != 0 {
		t.Errorf("another device has history %v", got)
	}
}

func trim(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	const old = trimBatch + 20
	for i := range old {
		res := result(deny, fmt.Sprint(i))
		res.Code = fmt.Sprintf("%06d", i%2)
		res.AppraisedAt = timestamppb.New(morning.Add(time.Duration(i) * time.Second))
		check(t, s.SaveReport(ctx, deviceID(1), evidence("6.1"), res))
	}
	check(t, s.SaveReport(ctx, deviceID(0), evidence("6.1"), result(admit, "quiet since")))
	young := result(admit, "young")
	young.AppraisedAt = timestamppb.New(morning.AddDate(0, 0, 100))
	check(t, s.SaveReport(ctx, deviceID(1), evidence("6.1"), young))

	if n := must(s.Trim(ctx, morning))(t); n != 0 {
		t.Errorf("%d rows trimmed from before the first", n)
	}
	if n := must(s.Trim(ctx, morning.AddDate(0, 0, 10)))(t); n != old+2 {
		t.Errorf("%d rows trimmed, want %d results and 2 refusals", n, old)
	}
	if got := must(s.History(ctx, deviceID(1), 1000))(t); len(got) != 1 || !proto.Equal(got[0], young) {
		t.Errorf("left of the busy device: %v", got)
	}
	if got := must(s.History(ctx, deviceID(0), 1000))(t); len(got) != 1 {
		t.Errorf("left of the quiet device: %v, want since when it is as it is", got)
	}
	if got := must(s.Refusals(ctx, "000001"))(t); len(got) != 0 {
		t.Errorf("left of the refusals: %v", got)
	}
}

func refusals(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	res := result(deny, "a")
	res.Code = "7K4-QX2"
	check(t, s.SaveReport(ctx, deviceID(1), evidence("6.1"), res))
	check(t, s.SaveReport(ctx, deviceID(1), evidence("6.1"), result(admit, "a")))
	stranger := &fleetv1.Explanation{
		Gateway: "vpn-1", CertificateSha256: bytes.Repeat([]byte{7}, 32), RefusedAt: timestamppb.New(morning.Add(time.Minute)),
	}
	for range 3 {
		check(t, s.SaveRefusal(ctx, stranger, "7K4-QX2", audit.Record{At: morning, Kind: "session.refused"}))
	}
	got := must(s.Refusals(ctx, "7K4-QX2"))(t)
	want := []*fleetv1.Explanation{stranger, {
		Device: &fleetv1.Device{Id: deviceID(1)}, Result: res, Verdict: deny, RefusedAt: res.AppraisedAt,
	}}
	if !slices.EqualFunc(got, want, func(a, b *fleetv1.Explanation) bool { return proto.Equal(a, b) }) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if head := must(s.AuditHead(ctx))(t); head.Sequence != 3 {
		t.Errorf("%d audit records, want one for each refusal", head.Sequence)
	}
}

func policies(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	for i, want := range []uint64{1, 2, 3} {
		p := &fleetv1.PolicyVersion{Name: "dienstgeraete", Version: 77, Operator: "anna", Comment: fmt.Sprint(i), AppliedAt: timestamppb.New(morning)}
		if got := must(s.AddPolicy(ctx, p, fmt.Appendf(nil, "text %d", i), audit.Record{At: morning, Kind: "policy.applied"}))(t); got != want {
			t.Errorf("version %d, want %d", got, want)
		}
	}
	for asked, want := range map[uint64]string{0: "3 2 text 2", 1: "1 0 text 0", 3: "3 2 text 2"} {
		p, yaml, err := s.Policy(ctx, asked)
		check(t, err)
		if got := fmt.Sprintf("%d %s %s", p.GetVersion(), p.GetComment(), yaml); got != want {
			t.Errorf("version %d: got %q, want %q", asked, got, want)
		}
	}
	for _, unknown := range []uint64{4, math.MaxUint64} {
		_, _, err := s.Policy(ctx, unknown)
		wants(t, err, fs.ErrNotExist)
	}
	all := must(s.Policies(ctx))(t)
	if len(all) != 3 || all[0].GetVersion() != 3 || all[2].GetVersion() != 1 {
		t.Errorf("got %v", all)
	}
}

func signedFiles(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	_, _, err := s.References(ctx, "references", 0)
	wants(t, err, fs.ErrNotExist)
	for i, kind := range []string{"references", "vpn-catalogue", "references"} {
		v := &fleetv1.ReferenceVersion{Version: 77, Kind: kind, Signer: "it", Operator: "anna", Comment: fmt.Sprint(i), ImportedAt: timestamppb.New(morning)}
		if got := must(s.AddReferences(ctx, v, fmt.Appendf(nil, "file %d", i), audit.Record{At: morning, Kind: "references.imported"}))(t); got != uint64(i+1) {
			t.Errorf("version %d, want %d", got, i+1)
		}
	}
	for _, ask := range []struct {
		kind    string
		version uint64
		want    string
	}{
		{"references", 0, "3 2 file 2"}, {"references", 1, "1 0 file 0"}, {"vpn-catalogue", 0, "2 1 file 1"},
		{"references", 2, ""}, {"references", 4, ""}, {"references", math.MaxUint64, ""}, {"policy", 0, ""},
	} {
		v, file, err := s.References(ctx, ask.kind, ask.version)
		if ask.want == "" {
			wants(t, err, fs.ErrNotExist)
			continue
		}
		check(t, err)
		if got := fmt.Sprintf("%d %s %s", v.GetVersion(), v.GetComment(), file); got != ask.want {
			t.Errorf("%s %d: got %q, want %q", ask.kind, ask.version, got, ask.want)
		}
	}
	all := must(s.ReferenceVersions(ctx))(t)
	if len(all) != 3 || all[0].GetVersion() != 3 || all[2].GetVersion() != 1 || all[1].GetKind() != "vpn-catalogue" {
		t.Errorf("got %v", all)
	}
	if head := must(s.AuditHead(ctx))(t); head.Sequence != 3 {
		t.Errorf("%d audit records, want one for each import", head.Sequence)
	}
}

func wholeChain(t *testing.T, s *Store) uint64 {
	t.Helper()
	v := audit.NewVerifier()
	check(t, s.EachAudit(t.Context(), 0, func(r audit.Sealed) error {
		v.Next(r)
		return nil
	}))
	checked := v.Checked()
	if faults := v.Finish(must(s.AuditHead(t.Context()))(t).Head()); len(faults) > 0 {
		t.Errorf("audit log: %+v", faults)
	}
	return checked
}

func auditTogether(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 1)
	good := audit.Record{
		At: morning, Kind: "token.created", Actor: "anna", AssetNumber: assetNumber(0),
		Details: map[string]string{"de": "»Prüfung« \u2028 \"<&>", "": ""},
	}
	check(t, s.SaveToken(ctx, []byte("h1"), assetNumber(0), morning, good, good))
	if err := s.SaveToken(ctx, []byte("h2"), assetNumber(0), morning, good, audit.Record{At: morning}); err == nil {
		t.Error("a record without a kind was taken")
	}
	check(t, s.SaveToken(ctx, []byte("h2"), assetNumber(0), morning))
	wants(t, s.SaveToken(ctx, []byte("h2"), assetNumber(0), morning, good), fs.ErrExist)
	check(t, s.AppendAudit(ctx, good))
	check(t, s.AppendAudit(ctx))
	if n := wholeChain(t, s); n != 3 {
		t.Errorf("%d records, want 3", n)
	}
	head := must(s.AuditHead(ctx))(t)
	if head.Kind != "token.created" || head.Sequence != 3 || head.Details["de"] != good.Details["de"] {
		t.Errorf("head %+v", head)
	}
	var from []uint64
	check(t, s.EachAudit(ctx, 2, func(r audit.Sealed) error {
		from = append(from, r.Sequence)
		return nil
	}))
	if !slices.Equal(from, []uint64{2, 3}) {
		t.Errorf("from 2: %v", from)
	}
}

func events(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	for i, r := range []audit.Record{
		{Kind: "token.created", AssetNumber: assetNumber(1), Actor: "anna"},
		{Kind: "device.enrolled", DeviceID: deviceID(1), AssetNumber: assetNumber(1)},
		{Kind: "token.created", AssetNumber: assetNumber(0)},
		{Kind: "verdict.changed", DeviceID: deviceID(1), Details: map[string]string{"to": "DENY"}},
		{Kind: "policy.applied"},
	} {
		r.At = morning.Add(time.Duration(i) * time.Hour)
		check(t, s.AppendAudit(ctx, r))
	}
	for _, tt := range []struct {
		device string
		since  time.Time
		limit  int
		want   []uint64
	}{
		{"", time.Time{}, 100, []uint64{5, 4, 3, 2, 1}},
		{"", time.Time{}, 2, []uint64{5, 4}},
		{"", morning.Add(3 * time.Hour), 100, []uint64{5, 4}},
		{deviceID(1), time.Time{}, 100, []uint64{4, 2, 1}},
		{assetNumber(1), time.Time{}, 100, []uint64{4, 2, 1}},
		{assetNumber(1), morning.Add(time.Hour), 1, []uint64{4}},
		{assetNumber(0), time.Time{}, 100, []uint64{3}},
		{"unknown", time.Time{}, 100, nil},
	} {
		var got []uint64
		for _, e := range must(s.Events(ctx, tt.device, tt.since, tt.limit))(t) {
			got = append(got, e.GetSequence())
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("events of %q since %v: %v, want %v", tt.device, tt.since, got, tt.want)
		}
	}
	newest := must(s.Events(ctx, deviceID(1), time.Time{}, 1))(t)[0]
	if newest.GetKind() != "verdict.changed" || newest.GetDetails()["to"] != "DENY" || !newest.GetAt().AsTime().Equal(morning.Add(3*time.Hour)) {
		t.Errorf("got %v", newest)
	}
}

func concurrency(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 40)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for n := range 10 {
				record := audit.Record{At: morning, Kind: "verdict.changed", DeviceID: deviceID(i)}
				if err := s.SaveReport(ctx, deviceID(i), evidence("6.1"), result(admit, fmt.Sprint(n)), record); err != nil {
					t.Error(err)
				}
				if _, res, err := s.Report(ctx, deviceID(i)); err != nil || string(res.GetEvidenceDigest()) != fmt.Sprint(n) {
					t.Errorf("own report %d is not there: %v %v", n, res, err)
				}
			}
		})
	}
	wg.Wait()
	if n := wholeChain(t, s); n != 400 {
		t.Errorf("%d audit records, want 400", n)
	}
}

// While a slow commit is under way, a group gathers in which every third job
// breaks a rule after it has begun to write.
func failsAlone(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 30)
	check(t, s.SaveToken(ctx, []byte("taken"), assetNumber(0), morning))
	entered, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := s.writer.write(ctx, func(*tx) error {
			close(entered)
			<-release
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-entered
	for i := range 30 {
		wg.Go(func() {
			record := audit.Record{At: morning, Kind: "verdict.changed", DeviceID: deviceID(i)}
			if i%3 != 0 {
				if err := s.SaveReport(ctx, deviceID(i), evidence("6.1"), result(admit, "a"), record); err != nil {
					t.Error(err)
				}
				return
			}
			err := s.change(ctx, "breaking", []audit.Record{record}, func(t *tx) error {
				if err := t.appendAudit([]audit.Record{record}); err != nil {
					return err
				}
				_, err := t.exec(`INSERT INTO tokens (hash, asset_number, expires_at) VALUES (?, ?, 0)`, []byte("taken"), assetNumber(i))
				return err
			})
			wants(t, err, fs.ErrExist)
		})
	}
	for queued := 0; queued < 30; runtime.Gosched() {
		s.writer.mu.Lock()
		queued = len(s.writer.queue)
		s.writer.mu.Unlock()
	}
	close(release)
	wg.Wait()
	if n := wholeChain(t, s); n != 20 {
		t.Errorf("%d audit records, want those of the 20 that did not fail", n)
	}
}

func reopened(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	check(t, s.SaveReport(ctx, deviceID(1), evidence("6.1"), result(admit, "a"), audit.Record{At: morning, Kind: "verdict.changed"}))
	check(t, s.Close())
	s = open()
	if _, res, err := s.Report(ctx, deviceID(1)); err != nil || res.GetVerdict() != admit {
		t.Errorf("got %v %v", res, err)
	}
	check(t, s.AppendAudit(ctx, audit.Record{At: morning, Kind: "verdict.changed"}))
	if n := wholeChain(t, s); n != 2 {
		t.Errorf("%d audit records, want 2", n)
	}
}

func pages(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	for _, n := range []int{pageSize - 1, pageSize, pageSize + 1, 2*pageSize + 1} {
		enrol(t, s, n)
		for i, d := range allDevices(t, s) {
			if d.GetId() != deviceID(i) {
				t.Fatalf("of %d: place %d has %s", n, i, d.GetId())
			}
		}
		if got := len(allDevices(t, s)); got != n {
			t.Errorf("%d devices, want %d", got, n)
		}
	}
	broken := errors.New("enough")
	wants(t, s.EachDevice(ctx, func(*fleetv1.Device) error { return broken }), broken)
}

func readsWithin(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 3)
	check(t, s.EachDevice(ctx, func(d *fleetv1.Device) error {
		return s.EachDevice(ctx, func(other *fleetv1.Device) error {
			return s.SaveReport(ctx, d.GetId(), evidence("6.1"), result(admit, other.GetId()))
		})
	}))
}

func closedStore(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 1)
	check(t, s.Close())
	check(t, s.Close())
	wants(t, s.Ping(ctx), ErrClosed)
	wants(t, s.SaveReport(ctx, deviceID(0), evidence("6.1"), result(admit, "a")), ErrClosed)
	_, _, err := s.Report(ctx, deviceID(0))
	wants(t, err, ErrClosed)
	wants(t, s.EachDevice(ctx, func(*fleetv1.Device) error { return nil }), ErrClosed)
}

func cancelled(t *testing.T, open func() *Store) {
	s := open()
	enrol(t, s, 1)
	release, working := make(chan struct{}), make(chan struct{})
	slow := make(chan error)
	started, stopStarted := context.WithCancel(t.Context())
	go func() {
		var once sync.Once
		slow <- s.change(started, "working slowly", []audit.Record{{At: morning, Kind: "test.slow"}}, func(*tx) error {
			once.Do(func() { close(working) })
			<-release
			return nil
		})
	}()
	<-working
	stopStarted() // too late: the writer is at it
	waiting, stopWaiting := context.WithCancel(t.Context())
	stopWaiting()
	wants(t, s.AppendAudit(waiting, audit.Record{At: morning, Kind: "test.waiting"}), context.Canceled)
	close(release)
	if err := <-slow; err != nil {
		t.Errorf("a write under way was given up: %v", err)
	}
	if n := wholeChain(t, s); n != 1 {
		t.Errorf("%d audit records, want that of the write that was under way", n)
	}
}
