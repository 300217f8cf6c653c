package probe

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// supportKind tells what the end-of-life columns of distro-info mean. They are
// different dates: after "eol" Debian's LTS team and Ubuntu's paid maintenance
// go on. "eol-server" is left out: notebooks run the desktop.
func supportKind(column string) posturev1.SupportKind {
	switch column {
	case "eol":
		return posturev1.SupportKind_SUPPORT_KIND_STANDARD
	case "eol-lts":
		return posturev1.SupportKind_SUPPORT_KIND_LTS
	case "eol-elts", "eol-esm", "eol-legacy":
		return posturev1.SupportKind_SUPPORT_KIND_EXTENDED
	default:
		return posturev1.SupportKind_SUPPORT_KIND_UNSPECIFIED
	}
}

// parseDistroInfo reads a table of distro-info-data, such as
// /usr/share/distro-info/debian.csv, and returns the ends of support of the
// release with the given codename: none when the table does not know it or
// has no date for it yet. source names the table in evidence.
func parseDistroInfo(r io.Reader, codename, source string) ([]*posturev1.SupportEnd, error) {
	table := csv.NewReader(r)
	table.FieldsPerRecord = -1 // later columns are left out where they are empty
	header, err := table.Read()
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	series := -1
	for i, column := range header {
		if column == "series" {
			series = i
		}
	}
	if series < 0 {
		return nil, errors.New("no column series")
	}
	for {
		row, err := table.Read()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if series < len(row) && row[series] == codename {
			return supportEnds(header, row, source)
		}
	}
}

func supportEnds(header, row []string, source string) ([]*posturev1.SupportEnd, error) {
	var ends []*posturev1.SupportEnd
	for i, column := range header[:min(len(header), len(row))] {
		kind := supportKind(column)
		if kind == posturev1.SupportKind_SUPPORT_KIND_UNSPECIFIED || row[i] == "" {
			continue
		}
		end, err := lastMoment(row[i])
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", column, err)
		}
		ends = append(ends, &posturev1.SupportEnd{Kind: kind, EndsAt: end, Source: source + " " + column})
	}
	return ends, nil
}

// lastMoment is the last second of a day such as "2028-06-30", in UTC: the day
// named is supported to its end.
func lastMoment(day string) (*timestamppb.Timestamp, error) {
	t, err := time.Parse(time.DateOnly, strings.TrimSpace(day))
	if err != nil {
		return nil, fmt.Errorf("%.20q is not a date like 2028-06-30", day)
	}
	return timestamppb.New(t.Add(24*time.Hour - time.Second)), nil
}
