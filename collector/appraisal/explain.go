package appraisal

import (
	"time"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Explain renders an explanation as a person wants to read it: the verdict in
// words, since when, then rule by rule, the gravest first. lang is "de" or
// "en"; times are shown in zone (nil: UTC).
func Explain(x *fleetv1.Explanation, lang string, zone *time.Location) string { return "" }

// RefusalText is what is shown where there is room for one line: why, and the
// code. Each language has at most 200 bytes and no line breaks, quotation marks
// or backslashes. It is empty for a result that admits.
func RefusalText(res *posturev1.Result) *posturev1.LocalText { return nil }
