package probe

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// licensing answers as told and counts.
type licensing struct {
	licences []ProductLicence
	err      error
	asked    int
}

func (l *licensing) ExtendedUpdates(context.Context) ([]ProductLicence, error) {
	l.asked++
	return l.licences, l.err
}

func TestExtendedSupportIsProvenByAnActiveYear(t *testing.T) {
	years := extendedYears()
	first, second := years[0].id, years[1].id
	day := func(text string) time.Time {
		at, err := time.Parse(time.DateOnly, text)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	for name, c := range map[string]struct {
		licences []ProductLicence
		now      time.Time
		want     posturev1.Ternary
	}{
		"none":                    {nil, day("2026-06-20"), no},
		"first year":              {[]ProductLicence{{first, 1}}, day("2026-06-20"), yes},
		"last day of the year":    {[]ProductLicence{{first, 1}}, day("2026-10-13").Add(23 * time.Hour), yes},
		"the year has ended":      {[]ProductLicence{{first, 1}}, day("2026-10-14"), no},
		"second year":             {[]ProductLicence{{first, 1}, {second, 1}}, day("2026-11-21"), yes},
		"in upper case":           {[]ProductLicence{{strings.ToUpper(second), 1}}, day("2026-11-21"), yes},
		"not activated":           {[]ProductLicence{{first, 0}, {second, 5}}, day("2026-06-20"), no},
		"a licence for something": {[]ProductLicence{{"55c92734-d682-4d71-983e-d6ec3f16059f", 1}}, day("2026-06-20"), no},
	} {
		if got := extendedSupport(c.licences, c.now); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestOnlyLicencesOfExtendedUpdatesAreAskedFor(t *testing.T) {
	want := "SELECT ID, LicenseStatus FROM SoftwareLicensingProduct WHERE ID = 'f520e45e-7413-4a34-a497-d2765967d094'" +
		" OR ID = '1043add5-23b1-4afb-9a0f-64343c8f3f8d' OR ID = '83d49986-add3-41d7-ba33-87c7bfb5c0fb'"
	if got := licenceQuery(); got != want {
		t.Errorf("the query is %s", got)
	}
}

func TestLicencesAreAskedForSeldomAndOnlyOnWindows10(t *testing.T) {
	service := &licensing{licences: []ProductLicence{{extendedYears()[0].id, 1}}}
	now := time.Date(2026, 6, 20, 8, 0, 0, 0, time.UTC)
	registry := registeredRelease("19045", 7417, nil)
	probe := platformProbe("1")
	read := func() *posturev1.Platform {
		host := Host{Windows: &Windows{Registry: registry, Licences: service}, Now: func() time.Time { return now }}
		return NewCollector(host, []Probe{probe}).Collect(t.Context()).GetPlatform()
	}
	for range 3 {
		if got := read().GetWindows().GetExtendedSupport(); got != yes {
			t.Fatalf("extended support is %v", got)
		}
	}
	if service.asked != 1 {
		t.Errorf("asked %d times", service.asked)
	}
	now = now.Add(licencesKept)
	service.err = errors.New("no answer")
	if p := read(); p.GetWindows().GetExtendedSupport() != unknown || service.asked != 2 {
		t.Errorf("after an error: %v, asked %d times", p.GetWindows(), service.asked)
	}
	now = now.Add(licencesRetry)
	service.err = nil
	if p := read(); p.GetWindows().GetExtendedSupport() != yes {
		t.Errorf("after the error: %v", p.GetWindows())
	}
	registry = registeredRelease("26100", 8655, nil)
	now = now.Add(licencesKept)
	if p := read(); p.GetWindows().GetExtendedSupport() != unknown || service.asked != 3 {
		t.Errorf("Windows 11: %v, asked %d times", p.GetWindows(), service.asked)
	}
}
