package appraisal

import (
	"fmt"
	"strconv"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// fullTunnel says whether all traffic of an address family goes through the
// tunnel. A notebook without connectivity of the family sends nothing past it.
func fullTunnel(s posturev1.RoutingScope) (bool, error) {
	switch s {
	case posturev1.RoutingScope_ROUTING_SCOPE_FULL, posturev1.RoutingScope_ROUTING_SCOPE_NO_CONNECTIVITY:
		return true, nil
	case posturev1.RoutingScope_ROUTING_SCOPE_SPLIT, posturev1.RoutingScope_ROUTING_SCOPE_NONE:
		return false, nil
	}
	return false, cannotTell("Welcher Verkehr durch das VPN geht, ist nicht feststellbar.", "It is unknown which traffic goes through the VPN.")
}

// clientCurrent says whether a VPN client has at least the version that the
// reference values demand. It cannot tell for products they do not name.
func clientCurrent(c *posturev1.VpnClient, r *References) (bool, error) {
	oldest, ok := r.oldestClient(c.GetProduct())
	if !ok {
		return false, cannotTell(
			fmt.Sprintf("Für das VPN-Programm %s ist keine Mindestversion hinterlegt.", short(c.GetProduct())),
			fmt.Sprintf("No oldest acceptable version of the VPN client %s is on record.", short(c.GetProduct())))
	}
	if c.GetVersion() == "" {
		return false, cannotTell(
			fmt.Sprintf("Die Version des VPN-Programms %s ist nicht feststellbar.", short(c.GetProduct())),
			fmt.Sprintf("The version of the VPN client %s is unknown.", short(c.GetProduct())))
	}
	return versionAtLeast(c.GetVersion(), oldest)
}

// versionAtLeast compares the leading dotted numbers of two versions, so that
// "2.6.3-1+deb12u2" is at least "2.6". It cannot tell for a version that does
// not begin with a number.
func versionAtLeast(version, oldest string) (bool, error) {
	have, err := numbers(version)
	if err != nil {
		return false, err
	}
	want, err := numbers(oldest)
	if err != nil {
		return false, err
	}
	for i, w := range want {
		h := uint64(0)
		if i < len(have) {
			h = have[i]
		}
		if h != w {
			return h > w, nil
		}
	}
	return true, nil
}

func numbers(version string) ([]uint64, error) {
	var list []uint64
	for part := range strings.SplitSeq(strings.TrimPrefix(version, "v"), ".") {
		digits := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' })
		if digits < 0 {
			digits = len(part)
		}
		n, err := strconv.ParseUint(part[:digits], 10, 32)
		if err != nil {
			break
		}
		list = append(list, n)
		if digits < len(part) {
			break
		}
	}
	if len(list) == 0 {
		return nil, cannotTell(fmt.Sprintf("Die Versionsangabe „%s“ ist keine Zahl.", short(version)),
			fmt.Sprintf("The version %q is no number.", short(version)))
	}
	return list, nil
}
