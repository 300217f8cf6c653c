package fleet

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"pfoertner/collector/appraisal"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// maxPageBytes is how large a page may get; a page of very large evidence ends
// before its number of devices is reached.
const maxPageBytes = 16 << 20

// ListDevices returns the devices that match a filter, a page at a time. The
// first page goes over the whole fleet once, record by record, and keeps only
// the places of those that match; following pages within a minute go by these.
func (s *fleetService) ListDevices(ctx context.Context, req *fleetv1.ListDevicesRequest) (*fleetv1.ListDevicesResponse, error) {
	limit, err := pageLimit(req.GetPageSize())
	if err != nil {
		return nil, invalid("page_size: %v", err)
	}
	order, err := parseOrder(req.GetOrderBy())
	if err != nil {
		return nil, invalid("order_by: %v", err)
	}
	query := req.GetOrderBy() + "\n" + req.GetFilter()
	var places []position
	start := 0
	if req.GetPageToken() == "" {
		places, err = s.places(ctx, req.GetFilter(), order)
		s.listings.keep(query, places, s.now())
	} else {
		var last position
		if last, err = decodeToken(query, req.GetPageToken()); err != nil {
			return nil, invalid("%v", err)
		}
		var ok bool
		if places, ok = s.listings.find(query, s.now()); !ok {
			places, err = s.places(ctx, req.GetFilter(), order)
		}
		var exact bool
		if start, exact = slices.BinarySearchFunc(places, last, order.compare); exact {
			start++
		}
	}
	if err != nil {
		return nil, err
	}

	answer := &fleetv1.ListDevicesResponse{Total: uint64(len(places))}
	end, err := s.fill(ctx, answer, places[start:min(start+limit, len(places))], req.GetSummary())
	if err != nil {
		return nil, err
	}
	if end += start; end < len(places) {
		answer.NextPageToken = encodeToken(query, places[end-1])
	}
	return answer, nil
}

// fill looks up the devices of a page and says how many places it took. A
// device that has gone meanwhile is left out.
func (s *fleetService) fill(ctx context.Context, answer *fleetv1.ListDevicesResponse, places []position, short bool) (taken int, err error) {
	size := 0
	for i, p := range places {
		dev, ok := s.devices.Find(p.number)
		if !ok {
			continue
		}
		v, err := s.look(ctx, dev)
		if err != nil {
			return 0, err
		}
		if short {
			v = summary(v)
		}
		answer.Devices = append(answer.Devices, v)
		if size += proto.Size(v); size > maxPageBytes {
			return i + 1, nil
		}
	}
	return len(places), nil
}

// places finds the devices that match, in order. It reads from the store only
// what filter and order need.
func (s *fleetService) places(ctx context.Context, expr string, order order) ([]position, error) {
	filter, err := appraisal.CompileFilter(expr)
	if err != nil {
		return nil, invalid("%v", err)
	}
	now := s.now()
	var places []position
	take := func(dev *fleetv1.Device, ev *posturev1.Evidence, res *posturev1.Result) error {
		v := s.view(dev, ev, res)
		ok, err := filter.Match(v, now)
		if err != nil {
			return invalid("%v", err)
		}
		if ok {
			places = append(places, position{key: order.key(v), number: v.GetAsset().GetAssetNumber()})
		}
		return nil
	}
	taken, err := s.takeReported(ctx, max(neededBy(expr), order.needs), take)
	if err != nil {
		return nil, err
	}
	for _, dev := range s.devices.All() {
		if _, ok := taken[dev.GetId()]; ok && dev.GetId() != "" {
			continue
		}
		if err := take(dev, nil, nil); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(places, order.compare)
	return places, nil
}

// takeReported goes over the devices that have reported, when that is needed,
// and says which they were.
func (s *fleetService) takeReported(ctx context.Context, needs needs, take func(*fleetv1.Device, *posturev1.Evidence, *posturev1.Result) error) (map[string]struct{}, error) {
	taken := map[string]struct{}{}
	one := func(id string, ev *posturev1.Evidence, res *posturev1.Result) error {
		dev, ok := s.devices.Device(id)
		if !ok {
			return nil
		}
		taken[id] = struct{}{}
		return take(dev, ev, res)
	}
	switch needs {
	case needsEvidence:
		return taken, s.reports.EachReport(ctx, one)
	case needsResult:
		return taken, s.reports.EachResult(ctx, func(id string, res *posturev1.Result) error { return one(id, nil, res) })
	}
	return taken, nil
}

// needs is how much of a device has to be read from the store.
type needs int

const (
	needsNothing needs = iota
	needsResult
	needsEvidence
)

// wholeDevice finds `device` used as a whole, not to reach one of its fields.
var wholeDevice = regexp.MustCompile(`\bdevice\b\s*([^.\s]|$)`)

// neededBy says what a filter may look at, by the words in it: never too little.
func neededBy(expr string) needs {
	has := func(word string) bool { return strings.Contains(expr, word) }
	switch {
	case has("evidence"), has("agent_version"), wholeDevice.MatchString(expr):
		return needsEvidence
	case has("result"), has("last_seen"):
		return needsResult
	}
	return needsNothing
}

// order is how devices are ordered.
type order struct {
	key      func(*fleetv1.Device) string
	needs    needs
	reversed bool
}

func parseOrder(name string) (order, error) {
	field, reversed := strings.CutPrefix(name, "-")
	switch field {
	case "", "asset_number":
		return order{key: func(*fleetv1.Device) string { return "" }, reversed: reversed}, nil
	case "unit":
		return order{key: func(d *fleetv1.Device) string { return d.GetAsset().GetUnit() }, reversed: reversed}, nil
	case "verdict":
		return order{key: verdictKey, needs: needsResult, reversed: reversed}, nil
	case "last_seen":
		return order{key: lastSeenKey, needs: needsResult, reversed: reversed}, nil
	}
	return order{}, fmt.Errorf(`%q is none of "asset_number", "last_seen", "verdict", "unit"`, field)
}

// verdictKey orders devices that never reported before those that are denied.
func verdictKey(d *fleetv1.Device) string {
	if d.GetResult() == nil {
		return ""
	}
	return fmt.Sprint(int32(d.GetResult().GetVerdict()))
}

func lastSeenKey(d *fleetv1.Device) string {
	if d.GetLastSeenAt() == nil {
		return ""
	}
	return d.GetLastSeenAt().AsTime().Format("2006-01-02T15:04:05.000000000")
}

func (o order) compare(a, b position) int {
	if o.reversed {
		return b.compare(a)
	}
	return a.compare(b)
}

// listings keeps the places of the newest listings for the pages that follow.
// One that is not kept any more is made anew: nothing depends on it but time.
type listings struct {
	mu     sync.Mutex
	newest []listing
}

type listing struct {
	query  string
	places []position
	made   time.Time
}

const (
	keptListings = 4
	listingAge   = time.Minute
)

func (l *listings) keep(query string, places []position, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.newest = slices.DeleteFunc(l.newest, func(one listing) bool { return one.query == query || now.Sub(one.made) > listingAge })
	l.newest = append(l.newest, listing{query: query, places: places, made: now})
	if len(l.newest) > keptListings {
		l.newest = slices.Delete(l.newest, 0, 1)
	}
}

func (l *listings) find(query string, now time.Time) ([]position, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.newest {
		if one.query == query && now.Sub(one.made) <= listingAge {
			return one.places, true
		}
	}
	return nil, false
}
