//go:build !windows

package probe

// asideReadings is empty: only Windows has readings that are made aside.
func asideReadings() map[string]asideRead { return nil }
