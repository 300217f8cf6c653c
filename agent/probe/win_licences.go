package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// extendedYear is one year of Extended Security Updates for Windows 10. Its
// activation identifier is the same on every machine (Microsoft Learn, "Enable
// Extended Security Updates (ESU)"). Servers in Azure and Windows 365 get them
// without one, and people at home by their account: neither shows here.
type extendedYear struct {
	id string
	// ends is the first moment that it does not cover.
	ends time.Time
}

func extendedYears() []extendedYear {
	return []extendedYear{
		{"f520e45e-7413-4a34-a497-d2765967d094", time.Date(2026, time.October, 14, 0, 0, 0, 0, time.UTC)},
		{"1043add5-23b1-4afb-9a0f-64343c8f3f8d", time.Date(2027, time.October, 13, 0, 0, 0, 0, time.UTC)},
		{"83d49986-add3-41d7-ba33-87c7bfb5c0fb", time.Date(2028, time.October, 11, 0, 0, 0, 0, time.UTC)},
	}
}

// licenceQuery asks for these alone: nothing else about licences is anybody's
// business.
func licenceQuery() string {
	var conditions []string
	for _, year := range extendedYears() {
		conditions = append(conditions, fmt.Sprintf("ID = '%s'", year.id))
	}
	return "SELECT ID, LicenseStatus FROM SoftwareLicensingProduct WHERE " + strings.Join(conditions, " OR ")
}

// extendedSupport is yes when a year is licensed (LicenseStatus 1) that has not
// ended.
func extendedSupport(licences []ProductLicence, now time.Time) posturev1.Ternary {
	for _, l := range licences {
		for _, year := range extendedYears() {
			if strings.EqualFold(l.ID, year.id) && l.Status == 1 && now.Before(year.ends) {
				return yes
			}
		}
	}
	return no
}

const (
	licencesKept     = 4 * time.Hour
	licencesRetry    = 30 * time.Minute
	licencesPatience = 6 * time.Second
)

var errStillAsking = errors.New("it has not answered yet")

// knownLicences keeps what the licensing service answered: it is slow to start.
type knownLicences struct {
	licences []ProductLicence
	err      error
	at       time.Time
}

func (k *knownLicences) current(ctx context.Context, l Licences, now time.Time) ([]ProductLicence, error) {
	if l == nil {
		return nil, errors.New("the licensing service cannot be asked on this machine")
	}
	kept := licencesKept
	if k.err != nil {
		kept = licencesRetry
	}
	if age := now.Sub(k.at); !k.at.IsZero() && age >= 0 && age < kept {
		return k.licences, k.err
	}
	patient, cancel := context.WithTimeoutCause(ctx, licencesPatience, errStillAsking)
	defer cancel()
	licences, err := l.ExtendedUpdates(patient)
	if err != nil && patient.Err() != nil {
		return nil, err // it goes on, and the next reading finds its answer
	}
	*k = knownLicences{licences: licences, err: err, at: now}
	return licences, err
}
