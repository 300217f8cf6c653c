package probe

import (
	"cmp"
	"strings"
)

// compareVersions orders two Debian package versions as dpkg does
// (deb-version(7)): negative when a is older than b, 0 when they are equal.
// It never fails, because a version that could not be compared would have to
// count as not fixed. Numbers may have any length: dated snapshots with 20
// digits and more exist, and must not silently become equal.
func compareVersions(a, b string) int {
	epochA, upstreamA, revisionA := splitVersion(a)
	epochB, upstreamB, revisionB := splitVersion(b)
	return cmp.Or(
		compareParts(epochA, epochB),
		compareParts(upstreamA, upstreamB),
		compareParts(revisionA, revisionB),
	)
}

func splitVersion(v string) (epoch, upstream, revision string) {
	v = strings.TrimSpace(v)
	if before, after, found := strings.Cut(v, ":"); found {
		epoch, v = before, after
	}
	upstream = v
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		upstream, revision = v[:i], v[i+1:]
	}
	return epoch, upstream, revision
}

// compareParts compares in turns a run of non-digits by weight and a run of
// digits by value, from left to right.
func compareParts(a, b string) int {
	for a != "" || b != "" {
		for startsWithText(a) || startsWithText(b) {
			if d := cmp.Compare(weight(a), weight(b)); d != 0 {
				return d
			}
			a, b = a[1:], b[1:]
		}
		numberA, restA := cutNumber(a)
		numberB, restB := cutNumber(b)
		if d := cmp.Or(cmp.Compare(len(numberA), len(numberB)), strings.Compare(numberA, numberB)); d != 0 {
			return d
		}
		a, b = restA, restB
	}
	return 0
}

func startsWithText(s string) bool { return s != "" && !isDigit(s[0]) }

// weight of the first character: a tilde sorts before the end, the end before
// letters, letters before everything else.
func weight(s string) int {
	switch {
	case s == "" || isDigit(s[0]):
		return 0
	case s[0] == '~':
		return -1
	case 'a' <= s[0]|0x20 && s[0]|0x20 <= 'z':
		return int(s[0])
	default:
		return int(s[0]) + 256
	}
}

// cutNumber returns the digits that s begins with, without leading zeros, and
// the rest.
func cutNumber(s string) (number, rest string) {
	i := 0
	for i < len(s) && isDigit(s[i]) {
		i++
	}
	return strings.TrimLeft(s[:i], "0"), s[i:]
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
