package probe

import (
	"math"
	"time"
)

// oleDate is a VARIANT date: days since 30 December 1899, the fraction being
// the time of day also before that day ("MS-OAUT", 2.2.25). Zero when there is
// no sensible one: Windows fills in its own zero where nothing ever happened.
func oleDate(days float64) time.Time {
	whole, part := math.Modf(days)
	// Updates did not exist before 1990, and time.Time's range is larger than
	// that of a VARIANT date.
	const first, last = 32874, 2958465 // 1990-01-01, 9999-12-31
	if math.IsNaN(days) || whole < first || whole > last {
		return time.Time{}
	}
	epoch := time.Date(1899, time.December, 30, 0, 0, 0, 0, time.UTC)
	return epoch.AddDate(0, 0, int(whole)).Add(time.Duration(math.Abs(part) * float64(24*time.Hour))).Round(time.Second)
}
