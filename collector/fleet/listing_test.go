package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// fiveDevices: 0 to 4; 3 never reported, 4 is only expected.
func fiveDevices(t *testing.T) (*house, *fleetService) {
	h := build(t)
	expected := device(4, "bau")
	expected.Id, expected.Asset.State = "", fleetv1.AssetState_ASSET_STATE_EXPECTED
	h.add(t, device(0, "inneres/polizei"), device(1, "finanzen"), device(2, "inneres"), device(3, "finanzen"), expected)
	h.report(t, deviceID(0), deny, 7, morning.Add(-2*time.Hour))
	h.report(t, deviceID(1), admit, 0, morning.Add(-time.Hour))
	h.report(t, deviceID(2), quarantine, 1, morning.Add(-3*time.Hour))
	h.presence[deviceID(0)] = "1.1.0"
	return h, newFleetService(h.options())
}

func numbers(devices []*fleetv1.Device) string {
	var n []string
	for _, d := range devices {
		n = append(n, strings.TrimLeft(strings.TrimPrefix(d.GetAsset().GetAssetNumber(), "HB-"), "0")+"")
	}
	for i := range n {
		if n[i] == "" {
			n[i] = "0"
		}
	}
	return strings.Join(n, " ")
}

func TestDevicesAreFilteredAndOrdered(t *testing.T) {
	_, s := fiveDevices(t)
	for _, tt := range []struct{ filter, order, want string }{
		{"", "", "0 1 2 3 4"},
		{"", "asset_number", "0 1 2 3 4"},
		{"", "-asset_number", "4 3 2 1 0"},
		{"", "unit", "4 1 3 2 0"},
		{"", "-unit", "0 2 3 1 4"},
		{"", "verdict", "3 4 0 2 1"},
		{"", "-verdict", "1 2 0 4 3"},
		{"", "last_seen", "3 4 2 1 0"}, // 0 is online: seen after its last report
		{"", "-last_seen", "0 1 2 4 3"},
		{`asset.unit.startsWith("inneres")`, "", "0 2"},
		{`asset.unit == "nirgends"`, "", ""},
		{`device.online`, "", "0"},
		{`device.agent_version == "1.0.0"`, "", "1 2"},
		{`device.id == ""`, "", "4"},
		{`evidence.patch.pending_security > 0u`, "", "0 2"},
		{`result.verdict == QUARANTINE`, "", "2"},
		{`result.verdict == DENY && device.id != ""`, "verdict", "3 0"},
		{`device.last_seen_at > now - duration("90m")`, "last_seen", "1 0"},
		{`result.verdict == ADMIT || evidence.patch.pending_security == 1u`, "-asset_number", "2 1"},
	} {
		answer, err := s.ListDevices(t.Context(), &fleetv1.ListDevicesRequest{Filter: tt.filter, OrderBy: tt.order})
		if err != nil {
			t.Errorf("%q by %q: %v", tt.filter, tt.order, err)
			continue
		}
		if got := numbers(answer.GetDevices()); got != tt.want {
			t.Errorf("%q by %q: got %s, want %s", tt.filter, tt.order, got, tt.want)
		}
		if want := len(strings.Fields(tt.want)); answer.GetTotal() != uint64(want) || answer.GetNextPageToken() != "" {
			t.Errorf("%q: total %d, token %q, want %d and none", tt.filter, answer.GetTotal(), answer.GetNextPageToken(), want)
		}
	}
}

func TestADeviceIsShownWithWhatIsKnownOfIt(t *testing.T) {
	_, s := fiveDevices(t)
	whole, err := s.ListDevices(t.Context(), &fleetv1.ListDevicesRequest{})
	check(t, err)
	short, err := s.ListDevices(t.Context(), &fleetv1.ListDevicesRequest{Summary: true})
	check(t, err)
	for i, d := range whole.GetDevices()[:3] {
		if d.GetEvidence() == nil || len(d.GetResult().GetFindings()) != 1 {
			t.Errorf("device %d is shown without evidence or findings", i)
		}
		brief := short.GetDevices()[i]
		if brief.GetEvidence() != nil || len(brief.GetResult().GetFindings()) != 0 || brief.GetResult().GetVerdict() != d.GetResult().GetVerdict() {
			t.Errorf("summary of device %d: %v", i, brief)
		}
	}
	online, offline := whole.GetDevices()[0], whole.GetDevices()[1]
	if !online.GetOnline() || online.GetAgentVersion() != "1.1.0" || !online.GetLastSeenAt().AsTime().Equal(morning.Add(time.Hour)) {
		t.Errorf("online device: %v", online)
	}
	if offline.GetOnline() || offline.GetAgentVersion() != "1.0.0" || !offline.GetLastSeenAt().AsTime().Equal(morning.Add(-time.Hour)) {
		t.Errorf("offline device: %v", offline)
	}
	if unknown := whole.GetDevices()[3]; unknown.GetResult() != nil || unknown.GetLastSeenAt() != nil {
		t.Errorf("device that never reported: %v", unknown)
	}
}

// follow reads a list page by page.
func follow(t *testing.T, s *fleetService, req *fleetv1.ListDevicesRequest, between func(page int)) (pages []string) {
	t.Helper()
	for {
		answer, err := s.ListDevices(t.Context(), req)
		check(t, err)
		pages = append(pages, numbers(answer.GetDevices()))
		if req.PageToken = answer.GetNextPageToken(); req.PageToken == "" {
			return pages
		}
		between(len(pages))
	}
}

func TestPagesLeadThroughTheWholeList(t *testing.T) {
	h, s := fiveDevices(t)
	for name, between := range map[string]func(int){
		"soon":     func(int) {},
		"too late": func(int) { h.pass(2 * listingAge) },
	} {
		for order, want := range map[string][]string{
			"": {"0 1", "2 3", "4"}, "-verdict": {"1 2", "0 4", "3"}, "unit": {"4 1", "3 2", "0"},
		} {
			got := follow(t, s, &fleetv1.ListDevicesRequest{OrderBy: order, PageSize: 2, Summary: true}, between)
			if !slices.Equal(got, want) {
				t.Errorf("%s, by %q: got %q, want %q", name, order, got, want)
			}
		}
	}
}

// What comes or moves between two pages neither hides nor repeats a device that
// stays where it is.
func TestPagesStandWhileTheFleetChanges(t *testing.T) {
	h, s := fiveDevices(t)
	got := follow(t, s, &fleetv1.ListDevicesRequest{OrderBy: "verdict", PageSize: 2}, func(page int) {
		if page > 1 {
			return
		}
		h.pass(2 * listingAge)
		h.report(t, deviceID(3), admit, 0, morning) // from page 1 to the end
		h.add(t, device(7, "bau"))                  // comes in behind page 1
		s.devices = h.registry
	})
	if want := []string{"3 4", "7 0", "2 1", "3"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBadQuestionsAreRefusedWithAReason(t *testing.T) {
	_, s := fiveDevices(t)
	first, err := s.ListDevices(t.Context(), &fleetv1.ListDevicesRequest{PageSize: 1})
	check(t, err)
	good := first.GetNextPageToken()
	for _, tt := range []struct {
		req  *fleetv1.ListDevicesRequest
		want string
	}{
		{&fleetv1.ListDevicesRequest{PageSize: 1001}, "at most 1000"},
		{&fleetv1.ListDevicesRequest{OrderBy: "serial"}, `"serial" is none of`},
		{&fleetv1.ListDevicesRequest{OrderBy: "--unit"}, `"-unit" is none of`},
		{&fleetv1.ListDevicesRequest{Filter: "asset.colour == 1"}, "column 6"},
		{&fleetv1.ListDevicesRequest{Filter: "asset.unit"}, "true or false"},
		{&fleetv1.ListDevicesRequest{Filter: "evidence.volumes.volumes[0].filesystem == ''"}, assetNumber(0)},
		{&fleetv1.ListDevicesRequest{PageToken: "none"}, "begin again"},
		{&fleetv1.ListDevicesRequest{PageToken: good + "A"}, "begin again"},
		{&fleetv1.ListDevicesRequest{PageToken: good[:len(good)-2]}, "begin again"},
		{&fleetv1.ListDevicesRequest{PageToken: good, OrderBy: "unit"}, "begin again"},
		{&fleetv1.ListDevicesRequest{PageToken: good, Filter: "device.online"}, "begin again"},
	} {
		_, err := s.ListDevices(t.Context(), tt.req)
		refused(t, err, codes.InvalidArgument, tt.want)
	}
}

func TestAFilterReadsNoLessThanItLooksAt(t *testing.T) {
	for expr, want := range map[string]needs{
		``:                                  needsNothing,
		`asset.unit == "x"`:                 needsNothing,
		`device.id == "x" && device.online`: needsNothing,
		`result.verdict == DENY`:            needsResult,
		`device.last_seen_at < now`:         needsResult,
		`device.result.verdict == DENY`:     needsResult,
		`has(device.evidence.patch)`:        needsEvidence,
		`device.agent_version == "1"`:       needsEvidence,
		`[device].exists(d, d.online)`:      needsEvidence,
		`dyn(device) == dyn(asset)`:         needsEvidence,
		`device  .online`:                   needsNothing,
		`device`:                            needsEvidence,
		"device == device":                  needsEvidence,
	} {
		if got := neededBy(expr); got != want {
			t.Errorf("%q needs %d, want %d", expr, got, want)
		}
	}
}

func FuzzPageToken(f *testing.F) {
	f.Add("unit\n", "inneres", "HB-000001", "")
	f.Add("", "", "", "AAAA")
	f.Add("x", "\xff", "\x00", "____________")
	f.Fuzz(func(t *testing.T, query, key, number, foreign string) {
		want := position{key: key, number: number}
		got, err := decodeToken(query, encodeToken(query, want))
		if err != nil || got != want {
			t.Fatalf("got %q %v, want %q", got, err, want)
		}
		if _, err := decodeToken(query+"x", encodeToken(query, want)); err == nil {
			t.Fatal("token of another query was taken")
		}
		if p, err := decodeToken(query, foreign); err == nil && encodeToken(query, p) != foreign {
			t.Fatalf("foreign token %q was read as %q", foreign, p)
		}
	})
}

// BenchmarkListDevices is one page of a fleet of 100,000 devices that all have
// reported.
func BenchmarkListDevices(b *testing.B) {
	const fleet = 100_000
	h := build(b)
	devices := make([]*fleetv1.Device, fleet)
	for i := range devices {
		devices[i] = device(i, fmt.Sprintf("unit-%d", i%97))
	}
	h.add(b, devices...)
	fillReports(b, h, fleet)
	s := newFleetService(h.options())
	for _, bb := range []struct{ name, filter, order string }{
		{"all by number", "", ""},
		{"unit by filter", `asset.unit == "unit-7"`, ""},
		{"by verdict", "", "verdict"},
		{"denied by result", `result.verdict == DENY`, ""},
		{"pending by evidence", `evidence.patch.pending_security > 5u`, ""},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				req := &fleetv1.ListDevicesRequest{Filter: bb.filter, OrderBy: bb.order, Summary: true}
				if _, err := s.ListDevices(context.Background(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("next page", func(b *testing.B) {
		first, err := s.ListDevices(b.Context(), &fleetv1.ListDevicesRequest{OrderBy: "verdict", Summary: true})
		check(b, err)
		for b.Loop() {
			req := &fleetv1.ListDevicesRequest{OrderBy: "verdict", Summary: true, PageToken: first.GetNextPageToken()}
			if _, err := s.ListDevices(context.Background(), req); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func fillReports(b *testing.B, h *house, fleet int) {
	b.Helper()
	ids := make(chan int)
	done := make(chan error, 64)
	for range cap(done) {
		go func() {
			var err error
			for n := range ids {
				if err == nil {
					err = saveLarge(b.Context(), h, n)
				}
			}
			done <- err
		}()
	}
	for n := range fleet {
		ids <- n
	}
	close(ids)
	for range cap(done) {
		check(b, <-done)
	}
}
