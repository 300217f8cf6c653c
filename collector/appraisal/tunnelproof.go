package appraisal

import (
	"regexp"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	defaultProofWithin = time.Minute
	// A notebook has to notice its tunnel and connect through it; and who never
	// does must not stay for long.
	minProofWithin = 10 * time.Second
	maxProofWithin = 10 * time.Minute
)

// gatewayPattern is a gateway's name, in which "*" stands for anything.
var gatewayPattern = regexp.MustCompile(`^[A-Za-z0-9*][A-Za-z0-9._*/-]{0,127}$`)

// tunnelProof says where a notebook has to prove that a VPN session is its own.
type tunnelProof struct {
	gateways []string
	within   time.Duration
}

// TunnelProof says whether a notebook has to prove through the tunnel that a
// session at this gateway is its own, and within what time of the session's
// beginning. Upper and lower case are one.
func (p *Policy) TunnelProof(gateway string) (within time.Duration, required bool) {
	for _, pattern := range p.tunnelProof.gateways {
		if matches(strings.ToLower(pattern), strings.ToLower(gateway)) {
			return p.tunnelProof.within, true
		}
	}
	return 0, false
}

// matches says whether a name is as the pattern says, in which "*" stands for
// any text.
func matches(pattern, name string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	name, ok := strings.CutPrefix(name, first)
	switch {
	case !ok:
		return false
	case !star:
		return name == ""
	}
	for i := range len(name) + 1 {
		if matches(rest, name[i:]) {
			return true
		}
	}
	return false
}

// readTunnelProof reads where tunnels have to be proven.
func (c *compiler) readTunnelProof(n *yaml.Node) {
	proof := tunnelProof{within: defaultProofWithin}
	c.mapping(n, map[string]func(*yaml.Node){
		"gateways": func(n *yaml.Node) {
			c.each(n, func(n *yaml.Node) {
				name := c.text(n, 128)
				if name != "" && !gatewayPattern.MatchString(name) {
					c.fail(n, `the name of a gateway is expected here, in which * stands for anything: "gw-berlin", "gw-*"`)
				}
				if strings.Count(name, "*") > maxStars {
					c.fail(n, "at most %d * are taken in one name", maxStars)
				}
				proof.gateways = append(proof.gateways, name)
			})
			if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
				c.fail(n, `no gateway is named: write "*" for all, or leave tunnel_proof out`)
			}
		},
		"within": func(n *yaml.Node) {
			proof.within = c.duration(n)
			if w := proof.within; w != 0 && (w < minProofWithin || w > maxProofWithin) {
				c.fail(n, "between 10s and 10m are taken")
			}
		},
	}, "gateways")
	c.policy.tunnelProof = proof
}

// maxStars bounds how long a name can take to be compared.
const maxStars = 4
